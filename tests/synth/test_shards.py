"""Building a data set: the same files whatever the number of workers, and nothing half-done left behind."""

import dataclasses
import json

import pytest
from array_record.python.array_record_module import ArrayRecordReader

from tests.support import files_of_at_most
from vlm3_jax.errors import UserError
from vlm3_jax.records import to_bytes
from vlm3_jax.synth import SynthOptions, build, record, shards

OPTIONS = SynthOptions(width=48, height=32, focal_px=48.0, depth_points=8, matches=8)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_RECORDS", 2)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_files_do_not_depend_on_workers(tmp_path):
    one = build(tmp_path / "one", 5, OPTIONS, seed=4, first=3, workers=1, progress=False)
    two = build(tmp_path / "two", 5, OPTIONS, seed=4, first=3, workers=2, progress=True)
    assert contents(one) == contents(two)
    assert sorted(contents(one)) == ["dataset.json", *(f"records-{k:05d}-of-00003.array_record" for k in range(3))]
    read = []
    for path in sorted(one.glob("*.array_record")):
        reader = ArrayRecordReader(str(path))
        read += reader.read_all()
        reader.close()
    assert read == [to_bytes(record(4, i, OPTIONS)) for i in range(3, 8)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]


def test_the_same_data_set_is_not_built_again(tmp_path, monkeypatch):
    folder = build(tmp_path / "set", 2, OPTIONS, seed=4, workers=1)
    monkeypatch.setattr(shards, "record", None)
    assert build(folder, 2, OPTIONS, seed=4) == folder


def test_another_data_set_is_refused(tmp_path):
    folder = build(tmp_path / "set", 1, OPTIONS, seed=4, workers=1)
    before = contents(folder)
    with pytest.raises(UserError, match=r"seed=4 \(wanted 5\)"):
        build(folder, 1, OPTIONS, seed=5, workers=1)
    with pytest.raises(UserError, match="count=1"):
        build(folder, 2, OPTIONS, seed=4, workers=1)
    (folder / "dataset.json").write_text("[]")
    with pytest.raises(UserError, match="not a data set description"):
        build(folder, 1, OPTIONS, seed=4, workers=1)
    (folder / "dataset.json").unlink()
    with pytest.raises(UserError, match="not empty"):
        build(folder, 1, OPTIONS, seed=4, workers=1)
    assert contents(folder) == {k: v for k, v in before.items() if k != "dataset.json"}


def test_a_data_set_from_before_an_option_is_kept_while_the_option_is_at_its_default(tmp_path):
    folder = build(tmp_path / "set", 2, OPTIONS, seed=4, workers=1, progress=False)
    sidecar = folder / "dataset.json"
    held = json.loads(sidecar.read_text())
    del held["options"]["motion"]
    sidecar.write_text(json.dumps(held))
    assert build(folder, 2, OPTIONS, seed=4, workers=1, progress=False) == folder
    with pytest.raises(UserError, match=r"set: holds another data set, motion='orbit' \(wanted 'crane'\); choose"):
        build(folder, 2, dataclasses.replace(OPTIONS, motion="crane"), seed=4, workers=1, progress=False)


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def fails(seed, index, options):
        if index == 2:
            raise KeyboardInterrupt
        return record(seed, index, options)

    monkeypatch.setattr(shards, "record", fails)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "set", 3, OPTIONS, seed=4, workers=1)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_costs_one_line_and_leaves_nothing(tmp_path):
    with files_of_at_most(3000), pytest.raises(UserError, match=r"records-00000-of-.*: cannot be written \("):
        build(tmp_path / "set", 3, OPTIONS, seed=4, workers=1, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_failing_worker_is_reported(tmp_path):
    # Spawned workers import the real code; an index that no generator accepts makes one of them fail.
    with pytest.raises(RuntimeError, match="exit code 1"):
        shards._run_workers([(tmp_path / "a", -1, 1, OPTIONS, 4), (tmp_path / "b", 0, 1, OPTIONS, 4)], 2, 2, False)


def test_sidecar_says_what_is_inside(tmp_path):
    folder = build(tmp_path / "new" / "set", 1, OPTIONS, seed=4, workers=1)
    held = json.loads((folder / "dataset.json").read_text())
    assert (held["seed"], held["first"], held["count"]) == (4, 0, 1)
    assert held["options"]["width"] == 48


def test_counts_are_checked(tmp_path):
    with pytest.raises(UserError, match="count=0"):
        build(tmp_path / "set", 0, OPTIONS, seed=4)
