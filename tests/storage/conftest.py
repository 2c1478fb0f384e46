"""A server of each kind, once a session; tests share the bucket "lab" under folders of their own."""

import itertools

import pytest
import servers

from vlm3_jax import storage
from vlm3_jax.storage import buckets

_numbers = itertools.count()
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
    monkeypatch.setattr(buckets, "PATIENCE_S", 0.8)
    monkeypatch.setattr(buckets, "READ_PATIENCE_S", 0.8)
    monkeypatch.setattr(buckets, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(buckets, "LONGEST_PAUSE_S", 0.2)
    monkeypatch.setenv("VLM3_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def gs(gcs_url, monkeypatch) -> storage.BucketPath:
    """An empty folder of gs://lab."""
    point_at(monkeypatch, "gs", gcs_url)
    return storage.path(f"gs://lab/{next(_numbers)}")


@pytest.fixture(params=["gs", "s3"])
def place(request, monkeypatch) -> storage.BucketPath:
    """An empty folder of gs://lab, and of s3://lab."""
    point_at(monkeypatch, request.param, request.getfixturevalue("gcs_url" if request.param == "gs" else "s3_url"))
    return storage.path(f"{request.param}://lab/{next(_numbers)}")


@pytest.fixture
def faulty(place, monkeypatch):
    """(folder, proxy): as `place`, behind a proxy that can be told to fail."""
    proxy = servers.Faults(buckets.endpoint(place.scheme))
    point_at(monkeypatch, place.scheme, proxy.url)
    yield place, proxy
    proxy.close()
