"""Middlebury 2014: disparities with holes, principal points that differ, a scene without its second disparity."""

import numpy as np
import pytest

from tests.builders import files, pairs, truth, world
from tests.builders.truth import Frame
from vlm3_jax.builders.middlebury import Middlebury
from vlm3_jax.errors import BadRecord, UserError

F, CX, CY, DOFFS, BASELINE = 55.0, 30.5, 23.25, 3.5, 0.2
LEFT = Frame(F, F, CX, CY, 64, 48, np.eye(4))
RIGHT = Frame(F, F, CX + DOFFS, CY, 64, 48, world.pose(BASELINE, 0, 0))
FRAMES = {"im0": LEFT, "im1": RIGHT}


def pfm(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = values.shape
    path.write_bytes(f"Pf\n{width} {height}\n-0.003922\n".encode() + values[::-1].astype("<f4").tobytes())


def write(root, second=True):
    folder = root / "Chess-perfect"
    for number, frame in enumerate(FRAMES.values()):
        seen = frame.seen()
        files.png(folder / f"im{number}.png", seen.rgb)
        if second or not number:
            z = np.where(np.isfinite(seen.z), seen.z, 1)
            pfm(folder / f"disp{number}.pfm", np.where(np.isfinite(seen.z), BASELINE * F / z - DOFFS, np.inf))
    cameras = [f"cam{n}=[{F} 0 {CX + n * DOFFS}; 0 {F} {CY}; 0 0 1]" for n in (0, 1)]
    rest = [f"doffs={DOFFS}", f"baseline={1000 * BASELINE}", "width=64", "height=48", "ndisp=20", "dyavg=0"]
    files.text(folder / "calib.txt", "\n".join([*cameras, *rest]) + "\n")
    return root


def test_gives_back_the_world(tmp_path):
    records, skipped = pairs.build(Middlebury(), write(tmp_path), "test")
    assert list(records) == ["Chess-perfect/im0-im1"]
    assert not skipped
    (record,) = records.values()
    views = list(FRAMES.values())
    truth.check_pose(record, views)
    # The views are rectified: the rotation is its own transpose.
    wrong = {name: one for name, one in truth.wrong_poses(record).items() if name != "rotation transposed"}
    truth.all_fail(lambda one: truth.check_pose(one, views), wrong)
    for view, frame in enumerate(views):
        truth.check_camera(record, frame, view)
        truth.check_image(record, frame, view, tolerance=0)
    pairs.check_maps(record, views, 1e-3, 1.0, 1.0)
    pairs.check_matches(record, views)

    def depth(one):
        truth.check_depth(one, LEFT, 0.01, valid=np.isfinite(one.depth_maps[0].load()))

    truth.all_fail(depth, truth.wrong_depths(record))


def test_the_second_view_gets_the_nearest_of_the_first_ones_depth(tmp_path):
    (record,) = pairs.build(Middlebury(), write(tmp_path, second=False), "test")[0].values()
    depth, seen = record.depth_maps[1].load(), RIGHT.seen().z
    there = np.isfinite(depth)
    # Moved by whole pixels: off by one at edges, where the first view sees past them.
    assert there[np.isfinite(seen)].mean() > 0.8
    assert (np.abs(depth[there] - seen[there]) < 0.05).mean() > 0.85


def test_what_is_damaged_is_named(tmp_path):
    write(tmp_path)
    path = tmp_path / "Chess-perfect" / "calib.txt"
    path.write_text(path.read_text().replace("baseline", "base"))
    (item,) = Middlebury().frames(tmp_path, "test")
    with pytest.raises(BadRecord, match=r"Chess-perfect/calib\.txt: expected 1 numbers after baseline="):
        Middlebury().record(tmp_path, item)
    path.unlink()
    with pytest.raises(UserError, match=r"none of its folders has a calib\.txt"):
        Middlebury().frames(tmp_path, "test")
