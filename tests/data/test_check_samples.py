"""Real data, nobody's here: good sets give no false alarm, and the same sets with a fault in them do."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from check_world import with_poses
from PIL import Image

from vlm3_jax import records
from vlm3_jax.camera import Camera
from vlm3_jax.data.check import CHECKS


def all_facts(items):
    """What every check says of records."""
    found = {}
    for name, make in CHECKS.items():
        check = make()
        for index, item in enumerate(items):
            check.add(index, item)
        found[name] = check.facts()
    return found


def faults(items):
    return [text for facts in all_facts(items).values() for text in facts.faults]


def view_of(path, camera: Camera, pose=None) -> records.View:
    return records.View(records.ImageRef(camera.width, camera.height, path.name, path=path), camera, pose)


def depthlm(folder, name, kind):
    items = []
    for line in (folder / name).read_text().splitlines():
        row = json.loads(line)
        camera = Camera.from_intrinsics(row["intrinsics"])
        label = records.DepthPoints(np.array(row["pixel_coords"]), np.array(row["depth"]), kind)
        items.append(records.Record(row["image"], (view_of(folder / row["image"].lstrip("/"), camera),), (label,)))
    return items


@pytest.fixture
def scannet(samples):
    folder = samples / "scannet_pose_sample"
    K = np.loadtxt(folder / "intrinsic.txt")
    views = []
    for path in sorted((folder / "color").glob("*.png")):
        with Image.open(path) as image:
            width, height = image.size
        camera = Camera(K[0, 0], K[1, 1], K[0, 2], K[1, 2], width, height)
        views.append(view_of(path, camera, np.loadtxt(folder / "pose" / f"{path.stem}.txt")))
    return [records.Record(f"{a.image.name}-{b.image.name}", (a, b)) for a, b in itertools.combinations(views, 2)]


@pytest.fixture
def motorcycle(samples):
    folder = samples / "motorcycle_stereo"
    with np.load(folder / "motorcycle_disp.npz") as archive:
        disparity = archive[archive.files[0]].astype(np.float64)
    there = np.isfinite(disparity) & (disparity > 0)
    left = Camera(994.978, 994.978, 311.193, 254.877, 741, 500)
    right = dataclasses.replace(left, cx=left.cx + 31.086)
    pose = np.eye(4)
    pose[0, 3] = 0.193001
    z = np.where(there, 994.978 * 0.193001 / (np.where(there, disparity, 1) + 31.086), np.nan)
    rows, columns = np.nonzero(there)
    chosen = np.random.default_rng(0).choice(len(rows), 400, replace=False)
    first = np.stack([columns, rows], -1)[chosen]
    second = first - np.stack([disparity[there][chosen], np.zeros(400)], -1)
    inside = second[:, 0] >= 0
    views = (
        view_of(folder / "motorcycle_left.png", left, np.eye(4)),
        view_of(folder / "motorcycle_right.png", right, pose),
    )
    return records.Record(
        "motorcycle",
        views,
        matches=records.Matches(first[inside], second[inside]),
        depth_maps=(records.encode_depth(z, "z"),),
    )


def test_ibims_is_z_and_fits_metres(samples):
    items = depthlm(samples / "ibims1", "ibims1.jsonl", "z")
    found = all_facts(items)
    assert [text for facts in found.values() for text in (*facts.faults, *facts.warnings)] == []
    assert found["depth_kind"].values["found"] == "z"
    assert len(faults(depthlm(samples / "ibims1", "ibims1.jsonl", "distance"))) == 1
    millimetres = [
        dataclasses.replace(r, depth=(dataclasses.replace(r.depth[0], depth_m=r.depth[0].depth_m * 1000),))
        for r in items
    ]
    assert "millimetres" in faults(millimetres)[0]


def test_nuscenes_is_right_as_told(samples):
    items = depthlm(samples / "nuscenes_sample", "depth.jsonl", "z")
    found = all_facts(items)
    assert [text for facts in found.values() for text in facts.faults] == []
    # Six views are few.
    assert found["depth_kind"].values["found"] in ("z", None)
    assert found["depth_kind"].values["votes"]["distance"] == 0


def test_nyu_is_right_as_told(samples):
    folder = samples / "nyu_sample"
    k = json.loads((folder / "camera.json").read_text())
    items = []
    for path in sorted(folder.glob("rgb_*.jpg")):
        camera = Camera(k["fx"], k["fy"], k["cx"], k["cy"], 640, 480)
        stored = folder / path.name.replace("rgb", "depth").replace("jpg", "png")
        depth = records.DepthMap(640, 480, 1e-3, "z", name=stored.name, path=stored)
        items.append(records.Record(path.name, (view_of(path, camera),), depth_maps=(depth,)))
    assert len(items) == 2
    assert faults(items) == []


def test_scannets_poses_fit_its_photos_and_inverted_ones_do_not(scannet):
    found = all_facts(scannet)
    assert [text for facts in found.values() for text in facts.faults] == []
    assert found["poses"].values["up"] == "+z"
    assert found["pairs"].values["photos"]["pairs"] >= 4
    assert found["pairs"].values["photos"]["fit"]["median"] > 0.4
    (fault,) = faults([with_poses(r, np.linalg.inv) for r in scannet])
    assert "with poses inverted" in fault


def test_motorcycles_matches_fit_its_rig(motorcycle):
    assert faults([motorcycle] * 5) == []
    (fault, *_) = faults([with_poses(motorcycle, np.linalg.inv)] * 5)
    assert "poses inverted" in fault or "exchanged" in fault
