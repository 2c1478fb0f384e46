"""The walk through a mixture's data: what it counts, says, draws, and how it ends."""

import dataclasses
import json

import numpy as np
import pytest
from check_world import pair, points
from PIL import Image
from small_data import Opened, loader_of, small_record, write_shard

from vlm3_jax import records
from vlm3_jax.cli import main
from vlm3_jax.data import check, drawing
from vlm3_jax.data.mixture import build_components
from vlm3_jax.data.quarantine import Quarantine
from vlm3_jax.errors import UserError
from vlm3_jax.records.colours import depth_colours

ENTRY = {"protocol": "short", "resize": "focal:100"}


def components_of(settings, folder, **sets):
    """Components of records by name, each in a shard of its own; a trailing _ is left off the name."""
    table = {}
    for name, items in sets.items():
        (folder / name).mkdir()
        write_shard(folder / name / "a.array_record", items)
        table[name.replace("_", " ")] = {**ENTRY, "path": str(folder / name)}
    return build_components(table, settings, 1.0)


def test_check_lists_every_fault(jsonl, settings, tmp_path):
    with open(tmp_path / "x.jsonl", "a") as file:
        file.write('\n{"image": 1}\n')
    with pytest.raises(UserError, match=r"x\.jsonl:11: field 'intrinsics' is missing \(1 of 11"):
        Opened(jsonl, settings, 2)
    (tmp_path / "5.png").unlink()
    report = check.check(build_components(jsonl, settings, max_bad_fraction=1.0), max_bad_fraction=0.1)
    assert report.counts["x"] == {"records": 11, "looked_at": 11, "passed_over": 0, "bad": 3, "points_removed": 0}
    assert [item.id.rpartition("/")[2] for item in report.bad] == ["x.jsonl:11", "3", "5"]
    assert "5.png: no such image file" in report.text()
    (fault,) = report.faults()
    assert fault.startswith("3 of 11 samples were unusable, above data.max_bad_fraction = 0.1")
    assert report.text().endswith("1 fault found")
    # A run writes the lines into its quarantine, and does not count them again.
    opened = Opened(jsonl, settings, 2, max_bad_fraction=0.1)
    loader_of(opened, settings, quarantine=Quarantine(tmp_path / "q.jsonl"))
    (row,) = map(json.loads, (tmp_path / "q.jsonl").read_text().splitlines())
    assert row["id"].endswith("x.jsonl:11")
    assert (row["component"], row["reason"]) == ("x", "field 'intrinsics' is missing")


def test_check_prints_lengths_and_doubts_millimetres(settings, tmp_path):
    two = dataclasses.replace(small_record(0), views=small_record(0).views + small_record(1).views)
    poses = np.eye(4), np.eye(4)
    poses[1][:3, 3] = [0, 3, 4]
    views = tuple(dataclasses.replace(v, world_T_cam=pose) for v, pose in zip(two.views, poses, strict=True))
    labels = records.DepthPoints(np.array([[1, 2], [3, 4], [5, 6]]), np.array([0.5, 2.0, 2500.0]), "z")
    parts = components_of(settings, tmp_path, a=[dataclasses.replace(two, views=views, depth=(labels,))])
    report = check.check(parts)
    lines = report.text().splitlines()
    assert lines[:3] == [
        "a: 1 records, 0 passed over, 0 bad, 0 labels removed",
        "  depth: 0.5 to 2500 m, median 2 m",
        "  baseline: 5 to 5 m, median 5 m",
    ]
    assert "  warning: depth above 500 m; are these millimetres? Lengths must be in metres" in lines
    assert lines[-1] == "nothing is off"
    assert not report.faults()


def test_good_sets_of_the_world_and_of_our_scenes_raise_no_alarm(settings, tmp_path):
    from vlm3_jax import synth

    options = synth.SynthOptions(width=96, height=72, focal_px=90.0, depth_points=120)
    synth.build(tmp_path / "synth", 12, options, seed=3, workers=1, progress=False)
    parts = components_of(
        settings, tmp_path, pairs=[pair(n) for n in range(6)], points=[points(n) for n in range(20, 28)]
    )
    parts += build_components({"synth": {**ENTRY, "path": str(tmp_path / "synth")}}, settings)
    report = check.check(parts, ["points"])
    assert report.faults() == []
    found = report.to_json()
    assert json.loads(json.dumps(found)) == found
    assert found["components"]["pairs"]["pairs"]["dense_depth"]["better"] is None
    assert found["components"]["points"]["depth_kind"]["found"] == "z"
    assert found["components"]["synth"]["depth_kind"]["found"] in ("distance", None)
    assert found["components"]["synth"]["poses"]["up"] == "-y"
    assert found["leaks"]["near_duplicates"] == 0


def test_a_config_without_data_is_not_called_good(tmp_path, capsys):
    (tmp_path / "none.py").write_text("from vlm3_jax import recipes\n\nget_config = recipes.tiny\n")
    assert main(["data", "check", f"--config={tmp_path / 'none.py'}"]) == 2
    assert "data.components is empty" in capsys.readouterr().err


def test_a_share_of_the_records_is_said_to_be_one(settings, tmp_path):
    parts = components_of(settings, tmp_path, a=[small_record(n) for n in range(20)])
    report = check.check(parts, records=5)
    assert report.counts["a"]["looked_at"] == 5
    assert report.text().splitlines()[0].startswith("a: 20 records (5 looked at), ")
    assert [r.id for r in report.components[0].pictured] == ["r0", "r1", "r8", "r9"]
    assert check.check(parts, records=50).counts["a"]["looked_at"] == 20


def test_leaks_between_components_are_faults(settings, tmp_path):
    parts = components_of(
        settings, tmp_path, a=[small_record(n) for n in range(6)], held_out_a=[small_record(n) for n in (8, 3)]
    )
    report = check.check(parts, ["held out a"])
    (fault,) = report.faults()
    assert fault == (
        "leak: 1 image file is (held out a/1 (image 3) is a/3 (image 3)) in training and held-out data alike"
    )
    assert f"  FAULT: {fault}" in report.text().splitlines()


def test_a_broken_depth_map_is_a_bad_record(settings, tmp_path):
    good = pair(0)
    broken = dataclasses.replace(good.depth_maps[0], data=good.depth_maps[0].data[:60])
    parts = components_of(settings, tmp_path, a=[good, dataclasses.replace(pair(1), depth_maps=(broken,))])
    report = check.check(parts)
    assert [item.id for item in report.bad] == ["a/1"]
    assert "cannot decode the map" in report.bad[0].reason


def test_pictures_of_stored_records_have_maps_and_lines():
    record = pair(0)
    sheet = np.asarray(drawing.draw_record(record, side=320))
    assert sheet.shape == (480, 640, 3)
    # Above, the images; below, colours from red (near) to blue (far).
    assert (np.abs(sheet[:240, :320].astype(int) - np.asarray(
        Image.fromarray(record.views[0].image.load()).resize((320, 240), 3)
    )).max(-1) == 0).mean() > 0.5  # fmt: skip
    depth = record.depth_maps[0].load()
    near, far = (np.argwhere(depth == value)[0] for value in (np.nanmin(depth), np.nanmax(depth)))
    (y0, x0), (y1, x1) = near * 5, far * 5
    assert sheet[240 + y0 + 2, x0 + 2, 0] > sheet[240 + y0 + 2, x0 + 2, 2]
    assert sheet[240 + y1 + 2, x1 + 2, 2] > sheet[240 + y1 + 2, x1 + 2, 0]
    sheet = drawing.contact_sheet({"pairs": [record, pair(1)], "none": []})
    assert sheet.width > 960


def test_epipolar_lines_go_through_the_matches():
    record = pair(0, dense=False)
    first, second = record.cameras
    poses = [view.world_T_cam for view in record.views]
    moved = np.linalg.inv(poses[1]) @ poses[0]
    for start, end in zip(record.matches.points0_px[:20], record.matches.points1_px[:20]):
        (x0, y0), (x1, y1) = drawing._segment(moved, first.rays([start])[0], second)
        normal = np.array([y1 - y0, x0 - x1]) / np.hypot(x1 - x0, y1 - y0)
        assert abs(normal @ (end - [x0, y0])) < 1e-6


def test_depth_colours_leave_what_is_not_there_black():
    depth = np.full((4, 5), 2.0)
    depth[0, 0], depth[1, 1] = np.nan, 0
    colours = depth_colours(depth)
    assert (colours == 0).all(-1).sum() == 2
    assert not depth_colours(np.full((3, 3), np.nan)).any()


def test_lidar_is_drawn_in_colours_without_numbers():
    """What is near is drawn over what is far."""
    (x, y), many = (30, 20), records.labels.MANY + 1
    pixels = np.array([(x, y)] * 2 + [(2, 2)] * (many - 2))
    depth = np.array([3.0, 90.0] + [90.0] * (many - 2))
    record = small_record(0)
    record = dataclasses.replace(record, depth=(records.DepthPoints(pixels, depth, "z"),))
    sheet = np.asarray(drawing.draw_record(record, side=128)).astype(int)
    assert (sheet[y, x] == depth_colours(depth[None])[0, 0]).all()
    assert (sheet[2, 2] == depth_colours(depth[None])[0, 1]).all()
    drawn = np.abs(sheet - record.views[0].image.load()).max(-1) > 0
    assert drawn.sum() <= 18
