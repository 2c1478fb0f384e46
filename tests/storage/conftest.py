"""A server of each kind, once a session; tests share the bucket "lab" under folders of their own."""

import contextlib
import itertools

import pytest
import servers

from vlm3_jax import storage
from vlm3_jax.storage import bucket_lock, buckets, orbax

_numbers = itertools.count()
SERVERS = {"gs": "gcs_url", "s3": "s3_url"}
ENVIRONMENT = {
    "gs": ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL", "CLOUD_STORAGE_EMULATOR_ENDPOINT"),
    "s3": ("AWS_ENDPOINT_URL",),
}


@pytest.fixture(scope="session")
def gcs_url():
    with servers.gcs() as url:
        yield url


@pytest.fixture(scope="session")
def s3_url():
    with servers.s3() as url:
        yield url


def point_at(patch, scheme: str, url: str) -> None:
    """Makes this process, and those it starts, use a server."""
    for name in ENVIRONMENT[scheme]:
        patch.setenv(name, url)
    for name, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("REGION", "us-east-1")):
        patch.setenv(f"AWS_{name}", value)


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """Little patience, a cache of its own."""
    for name, seconds in (("PATIENCE_S", 0.8), ("READ_PATIENCE_S", 0.8), ("FIRST_PAUSE_S", 0.02)):
        monkeypatch.setattr(buckets, name, seconds)
    monkeypatch.setattr(buckets, "LONGEST_PAUSE_S", 0.2)
    monkeypatch.setattr(orbax, "RETRIES", {"max_retries": 12, "initial_delay": "20ms", "max_delay": "200ms"})
    # A lock is stale only where a test says so, however slow the machine is.
    for name, seconds in (("BEAT_S", 0.1), ("LOOK_S", 0.05), ("LEASE_S", 60.0)):
        monkeypatch.setattr(bucket_lock, name, seconds)
    monkeypatch.setenv("VLM3_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def gs(gcs_url, monkeypatch) -> storage.BucketPath:
    """An empty folder of gs://lab."""
    return _folder("gs", gcs_url, monkeypatch)


@pytest.fixture(params=["gs", "s3"])
def place(request, monkeypatch) -> storage.BucketPath:
    """An empty folder of gs://lab, and of s3://lab."""
    return _folder(request.param, request.getfixturevalue(SERVERS[request.param]), monkeypatch)


@pytest.fixture(params=["gs", pytest.param("s3", marks=pytest.mark.slow)])
def run_place(request, monkeypatch) -> storage.BucketPath:
    """As `place`, for what takes long: that of s3://lab among the slow tests."""
    return _folder(request.param, request.getfixturevalue(SERVERS[request.param]), monkeypatch)


def _folder(scheme: str, url: str, patch) -> storage.BucketPath:
    point_at(patch, scheme, url)
    return storage.path(f"{scheme}://lab/{next(_numbers)}")


@pytest.fixture
def faulty(place, monkeypatch):
    """(folder, proxy): as `place`, behind a proxy that can be told to fail."""
    with _behind_a_proxy(place, monkeypatch) as proxy:
        yield place, proxy


@pytest.fixture
def faulty_run(run_place, monkeypatch):
    """The same of `run_place`."""
    with _behind_a_proxy(run_place, monkeypatch) as proxy:
        yield run_place, proxy


@contextlib.contextmanager
def _behind_a_proxy(place, patch):
    proxy = servers.Faults(buckets.endpoint(place.scheme))
    point_at(patch, place.scheme, proxy.url)
    yield proxy
    proxy.close()
