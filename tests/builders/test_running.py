"""Building: the same bytes whoever writes them and however often it is killed, every item accounted for."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader

from tests.builders import files, streets, truth
from tests.support import files_of_at_most
from vlm3_jax import records
from vlm3_jax.builders.common import Item, Options, Skip, encode
from vlm3_jax.builders.running import plan, shards
from vlm3_jax.builders.running.build import LOCK, build
from vlm3_jax.builders.running.envelope import wrap
from vlm3_jax.builders.running.plan import make_build
from vlm3_jax.camera import Camera
from vlm3_jax.data.sources.array_record import ArrayRecordSource
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.records import DepthPoints, Record, View
from vlm3_jax.storage import lock

COUNT, PER_SHARD = 10, 3


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return streets.write(tmp_path_factory.mktemp("streets"), COUNT)


def of(raw, out, **options):
    return make_build("street_scenes", raw, out, **{"shard_items": PER_SHARD} | options)


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def stored(folder) -> list[bytes]:
    """The records of all shards, in order, without their envelopes."""
    found = []
    for path in sorted(folder.glob("*.array_record-*")):
        reader = ArrayRecordReader(str(path))
        found += reader.read_all() if reader.num_records() else []
        reader.close()
    return [unwrap(data) for data in found]


def unwrap(data: bytes) -> bytes:
    """By trying where the record begins: its envelope is what is left in front of it."""
    return next(data[at:] for at in range(60) if wrap(data[at:]) == data)


def test_files_do_not_depend_on_workers(raw, tmp_path):
    one = build(of(raw, tmp_path / "one"), workers=1)
    two = build(of(raw, tmp_path / "two"), workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert one.counts == two.counts
    assert (one.counts["items"], one.counts["written"], one.shards) == (COUNT, COUNT, 4)
    names = [f"street_scenes-train.array_record-{k:05d}-of-00004" for k in range(4)]
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == sorted(
        ["build.json", "built", "dataset_info.json", "features.json", "rejected.jsonl", *names]
    )
    found = [records.from_bytes(data) for data in stored(tmp_path / "one")]
    assert [record.id for record in found] == sorted(record.id for record in found)
    for record in found:
        truth.check_depth(record, streets.frame(streets.number(record.id)), 0.5 / 256 + 1e-4)
    about = json.loads((tmp_path / "one" / "build.json").read_text())
    for entry in about["shards"]:
        assert shards.sha256(tmp_path / "one" / entry["name"]) == entry["sha256"]


def test_what_is_built_is_a_source(raw, tmp_path):
    build(of(raw, tmp_path / "out"), workers=1)
    source = ArrayRecordSource("streets", tmp_path / "out")
    assert [source[n].id for n in range(len(source))] == [
        records.from_bytes(data).id for data in stored(tmp_path / "out")
    ]
    source.close()


def test_a_shard_may_be_empty(tmp_path):
    raw = streets.write(tmp_path / "raw", 2)
    (raw / "train" / "depth" / "scene0" / "000.png").unlink()
    build(of(raw, tmp_path / "out", shard_items=1), workers=1)
    source = ArrayRecordSource("streets", tmp_path / "out")
    assert [source[n].id for n in range(len(source))] == ["scene1/001"]
    source.close()


def test_images_are_stored_byte_for_byte(raw, tmp_path):
    build(of(raw, tmp_path / "out"), workers=1)
    for data in stored(tmp_path / "out"):
        record = records.from_bytes(data)
        scene, name = record.id.split("/")
        assert record.scene == scene
        assert record.views[0].image.data == (raw / "train" / "rgb" / scene / f"{name}.jpg").read_bytes()
        assert record.depth_maps[0].data == (raw / "train" / "depth" / scene / f"{name}.png").read_bytes()


def test_the_same_command_goes_on_where_it_was(raw, tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    build(of(raw, whole), workers=1)
    cut = tmp_path / "cut"
    build(of(raw, cut), workers=1)
    # What a kill leaves: a shard without its record of completion, one that was never begun, half a file.
    (cut / "built" / "00001-of-00004.json").unlink()
    (cut / "built" / "00002-of-00004.json").unlink()
    (cut / "street_scenes-train.array_record-00002-of-00004").unlink()
    (cut / "street_scenes-train.array_record-00003-of-00004").write_bytes(b"half")
    (cut / "build.json").unlink()
    written, write = [], shards._write
    monkeypatch.setattr(shards, "_write", lambda job, *rest: written.append(job.number) or write(job, *rest))
    build(of(raw, cut), workers=1)
    assert written == [1, 2, 3]
    assert contents(cut) == contents(whole)


def test_a_killed_build_goes_on_and_leaves_no_process(raw, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    build(of(raw, whole, shard_items=1), workers=1)
    command = [sys.executable, "-m", "vlm3_jax.cli", "data", "build", "street_scenes", f"--raw={raw}", f"--out={out}"]
    command += ["--shard-items=1", "--workers=2"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(out.glob("built/*-of-*.json")):
        time.sleep(0.01)
    children = _children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    end = time.monotonic() + 60
    while (alive := [pid for pid in children if os.path.exists(f"/proc/{pid}")]) and time.monotonic() < end:
        time.sleep(0.1)
    assert not alive
    assert build(of(raw, out, shard_items=1), workers=1).counts["written"] == COUNT
    assert contents(out) == contents(whole)


def _children(pid: int) -> list[int]:
    """The processes that it has started (Linux)."""
    try:
        tasks = pathlib.Path(f"/proc/{pid}/task").iterdir()
        text = "".join((task / "children").read_text() for task in tasks)
    except FileNotFoundError:
        return []
    return [int(one) for one in text.split()]


def test_every_item_is_written_skipped_or_failed(tmp_path):
    raw = streets.write(tmp_path / "raw", COUNT)
    (raw / "train" / "depth" / "scene0" / "002.png").unlink()
    (raw / "train" / "rgb" / "scene1" / "003.jpg").write_bytes(b"\xff\xd8 cut off")
    files.dump(raw / "train" / "intrinsics" / "scene1" / "005.json", [50, 52, 31, 24.5, 63, 48])
    summary = build(of(raw, tmp_path / "out"), workers=1, max_bad=0.5)
    assert {n: summary.counts[n] for n in ("items", "written", "skipped", "failed")} == {
        "items": 10, "written": 7, "skipped": 1, "failed": 2,
    }  # fmt: skip
    assert str(summary).endswith("1 skipped and 2 failed, see rejected.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [(row["key"], row["scene"], row["kind"]) for row in rows] == [
        ("scene0/002", "scene0", "skipped"),
        ("scene1/003", "scene1", "failed"),
        ("scene1/005", "scene1", "failed"),
    ]
    assert rows[0]["reason"] == "there is no depth of it"
    assert "no JPEG, PNG, WEBP file" in rows[1]["reason"]
    assert rows[2]["reason"] == "views[0]: the image is 64 x 48, its camera's 63 x 48"


def test_too_many_failures_end_it_and_mended_files_are_read_again(tmp_path):
    raw = streets.write(tmp_path / "raw", COUNT)
    path = raw / "train" / "rgb" / "scene0" / "004.jpg"
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    out = tmp_path / "out"
    with pytest.raises(
        UserError, match=r"1 of 10 items failed, more than --max-bad=0.01 allows; the first, scene0/004: "
    ):
        build(of(raw, out), workers=1)
    assert json.loads((out / "rejected.jsonl").read_text())["key"] == "scene0/004"
    assert not (out / "build.json").exists()
    path.write_bytes(good)
    build(of(raw, out), workers=1)
    build(of(raw, tmp_path / "clean"), workers=1)
    assert contents(out) == contents(tmp_path / "clean")


def test_a_damaged_shard_is_built_again_and_said(raw, tmp_path, caplog):
    out = tmp_path / "out"
    build(of(raw, out), workers=1)
    before = contents(out)
    names = [f"street_scenes-train.array_record-{number:05d}-of-00004" for number in range(4)]
    damaged = bytearray((out / names[2]).read_bytes())
    damaged[-100] ^= 1
    (out / names[2]).write_bytes(damaged)
    (out / names[3]).write_bytes(b"cut")
    others = {name: (out / name).stat().st_mtime_ns for name in names[:2]}
    caplog.clear()
    build(of(raw, out), workers=1)
    assert contents(out) == before
    assert {name: (out / name).stat().st_mtime_ns for name in names[:2]} == others
    assert [text for text in caplog.messages] == [
        f"{out / names[2]}: its bytes are not those that were written (sha256); it is built again"
    ]


def test_labels_that_are_left_out_are_told(raw, tmp_path, monkeypatch):
    """By item, label and reason; of many items of a shard the first, and how many more."""
    monkeypatch.setattr(plan.Build, "builder", lambda self: _Builder())
    monkeypatch.setattr(shards, "MOST_LABELS", 2)
    image = encode(np.zeros((48, 64, 3), np.uint8), "a")
    view = View(image, Camera(50.0, 50.0, 31.5, 23.5, 64, 48))

    def item(key, depths):
        points = DepthPoints(np.array([[1, 2], [3, 4]]), np.array(depths, float), "z")
        return Item(key, "s", Record(key, (view,), (points,)))

    items = [item("a", [1, 2]), *(item(key, [1, -2]) for key in "bcde")]
    done = shards.write_shard(plan.Job(of(raw, tmp_path), 0, 1, "x", tuple(items)))
    assert (done["written"], done["failed"], done["labels_removed"]) == (5, 0, 4)
    rows = [
        *((key, "s", f"not {DepthPoints.RULE}", "depth[0][1] (3, 4) -2 m") for key in "bc"),
        ("", "", "unusable", "labels of 2 more items of this shard"),
    ]
    names = ("key", "scene", "reason", "label")
    assert done["rejected"] == [{"kind": "label", **dict(zip(names, row, strict=True))} for row in rows]


def test_another_build_and_other_files_are_refused(raw, tmp_path):
    out = tmp_path / "out"
    build(of(raw, out, limit=4), workers=1)
    before = contents(out)
    with pytest.raises(UserError, match=r"holds another build, items = 4 \(wanted 10\); items_sha256"):
        build(of(raw, out))
    with pytest.raises(UserError, match=r"holds another build, shard_items = 3 \(wanted 2\)"):
        build(of(raw, out, limit=4, shard_items=2))
    assert contents(out) == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(UserError, match="it holds other files"):
        build(of(raw, tmp_path / "other"))


def test_one_folder_is_built_by_one_command_at_a_time(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "LET_GO_S", 0.2)
    out = tmp_path / "out"
    (out / "built").mkdir(parents=True)
    with (
        lock.held(out / "built" / LOCK, out),
        pytest.raises(UserError, match=rf"^{out}: another build is writing it \(process {os.getpid()} on .*--out$"),
    ):
        build(of(raw, out), workers=1)
    assert [path.name for path in (out / "built").iterdir()] == [LOCK]
    build(of(raw, out), workers=1)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_full_disk_costs_one_line_and_the_same_command_goes_on(raw, tmp_path, workers):
    out = tmp_path / "out"
    with files_of_at_most(5000), pytest.raises(UserError, match=r"out/built/\d+-of-00004\..*part: cannot be written"):
        build(of(raw, out), workers=workers)
    assert not list(out.glob("*.array_record*"))
    assert build(of(raw, out), workers=workers).counts["written"] == COUNT
    assert contents(out) == contents(build(of(raw, tmp_path / "one"), workers=1).out)


def test_where_nothing_can_be_written_nothing_is_left(raw, tmp_path):
    (tmp_path / "file").write_text("here already")
    with pytest.raises(UserError, match=f"^--out={tmp_path}/file/below: a part of this path is a file"):
        build(of(raw, tmp_path / "file" / "below"))
    # No rights hold root back, but nobody makes a folder there.
    with pytest.raises(UserError, match=r"^/proc/below: cannot be written \("):
        build(of(raw, "/proc/below"))


def test_without_beam_nothing_is_begun(raw, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match=r'the module apache_beam is missing: pip install "vlm3-jax\[beam\]"'):
        build(of(raw, tmp_path / "out"), beam=())
    assert not list(tmp_path.iterdir())


def test_where_the_folders_are_does_not_matter(raw, tmp_path):
    moved = tmp_path / "elsewhere"
    os.symlink(raw, moved)
    build(of(raw, tmp_path / "one"), workers=1)
    build(of(moved, tmp_path / "two"), workers=1)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "tain"}, "--split=tain: street_scenes has train, val, test"),
        ({"depthlm": True}, "--depthlm: street_scenes has no other labels"),
        ({"shard_items": 0}, "--shard-items=0"),
        ({"images": plan.Images("focal:1000"), "split": "val"}, "mixtures hold it out"),
        ({"raw": "gs://lab/x"}, "--raw: gs://lab/x"),
        ({"raw": "nowhere"}, "--raw=nowhere: no such folder"),
    ],
)
def test_options_that_are_wrong_cost_one_line(raw, tmp_path, options, message):
    options = {"raw": raw} | options
    with pytest.raises(UserError) as error:
        make_build("street_scenes", options.pop("raw"), tmp_path / "out", **options)
    assert str(error.value).startswith(message) or message in str(error.value)


def test_images_are_told_right():
    with pytest.raises(UserError, match="--quality=0"):
        plan.Images(quality=0)
    with pytest.raises(UserError, match="--focal: resize is 'focal:-3'"):
        plan.Images("focal:-3")
    assert plan.Images("focal:750:per_axis", quality=None).lossy is False


def test_items_must_be_sorted_and_unique():
    good = [Item("a", "s", {}), Item("b", "s", {})]
    plan.check_items(good)
    for bad in (good[::-1], [good[0], good[0]], [Item("", "s", {})]):
        with pytest.raises(ValueError):
            plan.check_items(bad)
    with pytest.raises(TypeError, match="an item holds a set"):
        plan.canonical({"data": {1}})


class _Builder:
    """Does what its item says."""

    options = Options()

    def record(self, raw, item):
        if isinstance(item.data, Exception):
            raise item.data
        return item.data


@pytest.mark.parametrize(
    ("what", "kind", "reason"),
    [
        (Skip("moving"), "skipped", "moving"),
        (BadRecord("a: cut off"), "failed", "a: cut off"),
        (KeyError("pose"), "failed", "KeyError: 'pose'"),
        (OSError("\n stale \n handle"), "failed", "k: failed 2 times, the last with OSError: stale handle"),
        (Record("k", ()), "failed", "no label in it"),
    ],
)
def test_why_an_item_gives_no_record(raw, tmp_path, monkeypatch, what, kind, reason):
    monkeypatch.setattr("vlm3_jax.storage.PAUSE_S", 0)
    job = plan.Job(of(raw, tmp_path), 0, 1, "", ())
    found = shards.read(_Builder(), job, Item("k", "s", what))
    assert (found.kind, found.reason) == (kind, reason)


def test_what_is_not_the_data_s_fault_ends_the_build(raw, tmp_path):
    job = plan.Job(of(raw, tmp_path), 0, 1, "", ())
    for error in (UserError("the module h5py is missing"), MemoryError()):
        with pytest.raises(type(error)):
            shards.read(_Builder(), job, Item("k", "s", error))
