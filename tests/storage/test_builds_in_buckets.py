"""Data sets are built into buckets as into folders: the same shards, resumed after a stop, and read by training."""

import json

import pytest

from tests.builders import streets
from vlm3_jax.builders.running import shards
from vlm3_jax.builders.running.build import build
from vlm3_jax.builders.running.plan import make_build
from vlm3_jax.data.sources import make_source
from vlm3_jax.errors import UserError

COUNT = 5


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return streets.write(tmp_path_factory.mktemp("streets"), COUNT)


def of(raw, out, **options):
    return make_build("street_scenes", raw, out, **{"shard_items": 2} | options)


def contents(folder) -> dict:
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_a_bucket_gets_the_same_files_and_they_are_a_source(raw, place, tmp_path):
    build(of(raw, tmp_path / "here"), workers=1)
    summary = build(of(raw, str(place / "there")), workers=2)
    assert contents(place / "there") == contents(tmp_path / "here")
    assert str(summary).startswith(f"{place}/there: 5 records of 5 items in 3 shards")
    source = make_source("streets", {"path": str(place / "there")})
    assert [source[n].id for n in range(len(source))] == sorted(source[n].id for n in range(COUNT))


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
