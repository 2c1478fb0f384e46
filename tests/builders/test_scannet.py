"""ScanNet: frames numbered without zeros, lost tracking, depth that may be missing."""

import numpy as np
import pytest

from tests.builders import files, pairs
from vlm3_jax.builders.scannet import ScanNet
from vlm3_jax.errors import UserError
from vlm3_jax.pose import relative_pose

FRAMES = {f"{number:06d}": frame for number, frame in zip((3, 20, 100), pairs.walk(own_cameras=False), strict=True)}


def write(root, depth=True):
    """A scene of three frames and one whose tracking was lost; another scene of the list is not there."""
    folder = root / "scans" / "scene0707_00"
    for name, frame in (*FRAMES.items(), ("000007", None)):
        number = int(name)
        seen = (frame or FRAMES["000003"]).seen()
        files.jpeg(folder / "color" / f"{number}.jpg", seen.rgb)
        if depth:
            files.png(folder / "depth" / f"{number}.png", files.steps(seen.z, 1000))
        matrix = np.full((4, 4), -np.inf) if frame is None else frame.world_T_cam
        files.text(folder / "pose" / f"{number}.txt", "\n".join(" ".join(map(str, row)) for row in matrix))
    one = FRAMES["000003"]
    K = f"{one.fx} 0 {one.cx} 0\n0 {one.fy} {one.cy} 0\n0 0 1 0\n0 0 0 1\n"
    files.text(folder / "intrinsic" / "intrinsic_color.txt", K)
    files.text(root / "scannetv2_test.txt", "scene0708_00\nscene0707_00\n")
    files.text(root / "scannetv2_val.txt", "scene0011_00\n")
    return root


def test_gives_back_the_world(tmp_path):
    records, skipped = pairs.build(ScanNet(), write(tmp_path), "test")
    assert len(records) == 3
    assert set(skipped.values()) == {"the tracking of a frame was lost"}
    pairs.check(records, FRAMES, covered=1.0)


def test_without_depth_pairs_have_their_poses(tmp_path):
    records, _ = pairs.build(ScanNet(), write(tmp_path, depth=False), "test")
    assert len(records) == 3
    for key, record in records.items():
        first, second = (FRAMES[name].world_T_cam for name in pairs.names(key, FRAMES))
        assert not record.depth_maps
        found = relative_pose(*(view.world_T_cam for view in record.views))
        np.testing.assert_allclose(found, np.linalg.inv(first) @ second, atol=1e-9)


def test_what_is_missing_is_named(tmp_path):
    write(tmp_path)
    with pytest.raises(UserError, match=r"none of the scenes of scannetv2_val\.txt has a folder color"):
        list(ScanNet().scenes(tmp_path, "val"))
    with pytest.raises(UserError, match=r"scannetv2_train\.txt"):
        list(ScanNet().scenes(tmp_path, "train"))
