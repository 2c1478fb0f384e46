"""Data sets are built into buckets as into folders: the same shards, resumed after a stop, and read by training."""

import json
import os

import pytest
import servers

from tests.builders import streets
from vlm3_jax import synth
from vlm3_jax.builders.running import shards
from vlm3_jax.builders.running.build import build
from vlm3_jax.builders.running.plan import make_build
from vlm3_jax.data.sources import make_source
from vlm3_jax.errors import UserError
from vlm3_jax.storage import bucket_lock, lock

COUNT = 5


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return streets.write(tmp_path_factory.mktemp("streets"), COUNT)


def of(raw, out, **options):
    return make_build("street_scenes", raw, out, **{"shard_items": 2} | options)


def contents(folder) -> dict:
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_a_bucket_gets_the_same_files_and_they_are_a_source(raw, run_place, tmp_path):
    place = run_place
    build(of(raw, tmp_path / "here"), workers=1)
    summary = build(of(raw, str(place / "there")), workers=2)
    assert contents(place / "there") == contents(tmp_path / "here")
    assert str(summary).startswith(f"{place}/there: 5 records of 5 items in 3 shards")
    source = make_source("streets", {"path": str(place / "there")})
    assert [source[n].id for n in range(len(source))] == sorted(source[n].id for n in range(COUNT))


def test_one_command_at_a_time(raw, place):
    options = synth.SynthOptions(width=64, height=48, focal_px=64.0)
    places = {"streets": place / "streets" / "built" / "lock", "rendered": place / ".rendered.lock"}
    calls = {
        "streets": lambda: build(of(raw, place / "streets"), workers=1),
        "rendered": lambda: synth.build(place / "rendered", 1, options, seed=1, workers=1, progress=False),
    }
    for name, call in calls.items():
        with lock.held(places[name], place / name):
            who = (
                rf"another build is writing it \(process {os.getpid()} on .*\); wait until it has ended, or use another"
            )
            with pytest.raises(UserError, match=rf"^{place}/{name}: {who} --out$"):
                call()
        call()
        assert not places[name].exists()


def test_what_a_kill_has_left_is_taken_over_and_the_old_one_stops(raw, place, monkeypatch):
    monkeypatch.setattr(bucket_lock, "LEASE_S", 0.3)
    out, found = place / "there", place / "there" / "built" / "lock"
    found.write_text("process 7 on elsewhere 00 3\n")
    write = shards._write

    def taken_over(job, *rest):
        if job.number == 1:
            found.write_text("process 8 on elsewhere 00 0\n")
            servers.let_locks_notice()
        return write(job, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "_write", taken_over)
        with pytest.raises(UserError, match=rf"^{out}: process 8 on elsewhere has taken it over while this build was"):
            build(of(raw, out), workers=1)
    assert not (out / "build.json").exists()
    assert build(of(raw, out), workers=1).counts["written"] == COUNT


def test_the_same_command_goes_on(raw, place, monkeypatch):
    out = place / "there"
    write, written = shards._write, []

    def stopped(job, *rest):
        if job.number == 1:
            raise KeyboardInterrupt
        return write(job, *rest)

    monkeypatch.setattr(shards, "_write", stopped)
    with pytest.raises(KeyboardInterrupt):
        build(of(raw, out), workers=1)
    assert not (out / "build.json").exists()
    monkeypatch.setattr(shards, "_write", lambda job, *rest: written.append(job.number) or write(job, *rest))
    build(of(raw, out), workers=1)
    assert written == [1, 2]
    assert json.loads((out / "build.json").read_text())["counts"]["written"] == COUNT
    with pytest.raises(UserError, match="holds another build, items = 5"):
        build(of(raw, out, limit=2), workers=1)
