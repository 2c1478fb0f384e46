"""A store that fails, is slow, cuts answers short or refuses: tried again, then told in one line."""

import logging

import pytest
import servers

from vlm3_jax.errors import Again
from vlm3_jax.storage import buckets
from vlm3_jax.storage.buckets import Failing, Refused


@pytest.mark.parametrize(
    "fault", [503, 429, "cut", *(pytest.param(code, marks=pytest.mark.slow) for code in (500, 408))]
)
def test_what_passes_is_waited_for(faulty, fault, caplog):
    place, proxy = faulty
    with caplog.at_level(logging.WARNING):
        (place / "x").write_bytes(b"data" * 1000)
        for call, expected in [
            (lambda: (place / "x").read_bytes(), b"data" * 1000),
            (lambda: (place / "x").read_range(4, 12), b"datadata"),
            (lambda: (place / "y").write_bytes(b"more"), 4),
            (lambda: (place / "y").read_bytes(), b"more"),
        ]:
            proxy.rule = servers.first(3, fault)
            assert call() == expected
        proxy.rule = servers.first(3, 503)
        assert [path.name for path in place.iterdir()] == ["x", "y"]
    said = [line for line in caplog.messages if "trying again" in line]
    assert said
    assert all(line.startswith(str(place)) and "\n" not in line for line in said)


def test_a_machine_that_stood_still_asks_again(faulty, monkeypatch):
    """The time is over before the second try."""
    place, proxy = faulty
    (place / "x").write_bytes(b"data")
    monkeypatch.setattr(buckets, "READ_PATIENCE_S", 0)
    # A try is two requests (`_RETRY`).
    proxy.rule = servers.first(2 * buckets.FEWEST_TRIES - 1, 503)
    assert (place / "x").read_bytes() == b"data"
    proxy.rule = lambda *_: 503
    with pytest.raises(Failing, match="failed for 0 s"):
        (place / "x").read_bytes()


def test_a_store_that_stays_down_is_told_in_one_line(faulty):
    place, proxy = faulty
    proxy.rule = lambda *_: 503
    for call in (lambda: (place / "x").read_bytes(), lambda: (place / "x").write_text("x"), place.is_dir):
        with pytest.raises(Failing, match=rf"^{place}(/x)?: failed for 0.8 s, the last time with: .*503") as caught:
            call()
        assert isinstance(caught.value, Again)
        assert "\n" not in str(caught.value)
    # Nothing was lost of what was there, and nothing is there by half.
    proxy.rule = lambda *_: None
    assert not (place / "x").exists()


def test_permission_is_told_at_once(faulty):
    place, proxy = faulty
    for status in (403, 401):
        proxy.rule = lambda *_, status=status: status
        with pytest.raises(Refused, match=rf"^{place}/x: permission denied \(.*\); see docs/storage.md") as caught:
            (place / "x").write_text("x")
        assert isinstance(caught.value, PermissionError)
        assert caught.value.code == 2


def test_nobody_there(place, monkeypatch):
    for name in ("STORAGE_EMULATOR_HOST", "AWS_ENDPOINT_URL"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{servers.free_port()}")
    with pytest.raises(Failing, match=rf"^{place}/x: failed for 0.8 s, the last time with: "):
        (place / "x").read_bytes()


def test_a_connection_that_gives_nothing_is_given_up(faulty, monkeypatch):
    place, proxy = faulty
    (place / "x").write_text("x")
    monkeypatch.setattr(buckets, "STALLED_S", 0.3)
    buckets._open.cache_clear()
    proxy.rule = servers.first(1, 1.5)
    assert (place / "x").read_text() == "x"
    buckets._open.cache_clear()
