"""Matterport3D: .conf files with several intrinsics, cameras that look along -z, an origin at the bottom left."""

import numpy as np
import pytest

from tests.builders import files, truth, world
from vlm3_jax.builders import common
from vlm3_jax.builders.matterport3d import SCALE, Matterport3D
from vlm3_jax.errors import BadRecord, UserError

HOUSE, PANO = "17DRP5sb8fy", "00ebbf3782c64d74aaf7dd39cd561175"
WIDTH, HEIGHT = 80, 64
# fx, cx, fy, cy from the bottom, for each tilt of the rig.
INTRINSICS = {0: (60.5, 41.2, 60.25, 30.3), 1: (61.0, 39.5, 61.5, 33.4)}
POSES = {
    (0, 0): world.pose(0.2, 0.1, -0.3, 12, 20, 3),
    (0, 1): world.pose(0.25, 0.1, -0.2, 72, 20, 3),
    (1, 0): world.pose(0.2, 0.2, -0.3, 10, -10, -4),
}
HOUSE_T_WORLD = np.linalg.inv(world.pose(3, 1, -2, 40, 90, 0))
CV_T_GL = np.diag([1.0, -1, -1, 1])


def _frame(tilt: int, yaw: int) -> truth.Frame:
    fx, cx, fy, cy = INTRINSICS[tilt]
    return truth.Frame(fx, fy, cx, HEIGHT - cy, WIDTH, HEIGHT, POSES[tilt, yaw])


FRAMES = {f"{PANO}_i{tilt}_{yaw}": _frame(tilt, yaw) for tilt, yaw in POSES}


def write(root, kind="z", pose=lambda matrix: matrix @ CV_T_GL, nested=True):
    """Three images of one panorama, with two tilts."""
    folder = root / HOUSE / HOUSE if nested else root / HOUSE
    lines = ["dataset matterport", f"n_images {len(POSES)}", "depth_directory undistorted_depth_images", ""]
    for tilt, (fx, cx, fy, cy) in INTRINSICS.items():
        lines.append(f"intrinsics_matrix {fx} 0 {cx}  0 {fy} {cy}  0 0 1")
        for one, yaw in POSES:
            if one == tilt:
                color, depth = f"{PANO}_i{tilt}_{yaw}", f"{PANO}_d{tilt}_{yaw}"
                numbers = " ".join(f"{v:.9g}" for v in pose(HOUSE_T_WORLD @ POSES[tilt, yaw]).ravel())
                lines.append(f"scan {depth}.png {color}.jpg {numbers}")
                seen = FRAMES[color].seen()
                files.jpeg(folder / "undistorted_color_images" / f"{color}.jpg", seen.rgb)
                steps = files.steps(getattr(seen, kind), 4000)
                files.png(folder / "undistorted_depth_images" / f"{depth}.png", steps)
    files.text(folder / "undistorted_camera_parameters" / f"{HOUSE}.conf", "\n".join(lines) + "\n")
    files.text(root / "scenes_val.txt", f"{HOUSE}\n")
    return root


def _built(root, **options) -> dict:
    builder = Matterport3D(common.Options(**options))
    return {item.key.split("/")[1]: builder.record(root, item) for item in builder.frames(root, "val")}


@pytest.mark.parametrize("nested", [True, False])
def test_gives_back_the_world(tmp_path, nested):
    records = _built(write(tmp_path, nested=nested))
    assert list(records) == sorted(FRAMES)
    world_T_house = np.linalg.inv(HOUSE_T_WORLD)
    for name, frame in FRAMES.items():

        def check(record, frame=frame):
            truth.check_depth(record, frame, SCALE)

        def check_pose(record, frame=frame):
            truth.check_pose(record, [frame], world_T_own=world_T_house)

        check(records[name])
        check_pose(records[name])
        truth.check_image(records[name], frame)
        truth.all_fail(
            check,
            truth.wrong_depths(records[name]) | {"the neighbour's": records[next(n for n in FRAMES if n != name)]},
        )
        truth.all_fail(check_pose, truth.wrong_poses(records[name]))
        assert records[name].scene == HOUSE


@pytest.mark.parametrize("wrong", [np.linalg.inv, lambda matrix: matrix], ids=["inverted", "axes of OpenCV"])
def test_other_poses_would_fail(tmp_path, wrong):
    records = _built(write(tmp_path, pose=wrong))
    frame = FRAMES[f"{PANO}_i0_1"]
    with pytest.raises(AssertionError):
        truth.check_pose(records[f"{PANO}_i0_1"], [frame], world_T_own=np.linalg.inv(HOUSE_T_WORLD))


def test_distances_in_the_files_would_fail(tmp_path):
    name, frame = next(iter(FRAMES.items()))
    with pytest.raises(AssertionError):
        truth.check_depth(_built(write(tmp_path, "distance"))[name], frame, SCALE)


def test_depthlm_takes_distance_and_cy_from_the_wrong_side(tmp_path):
    name, frame = next(iter(FRAMES.items()))
    record = _built(write(tmp_path), depthlm=True)[name]
    camera, label = record.views[0].camera, record.depth_maps[0]
    assert label.kind == "distance"
    assert camera.cy == INTRINSICS[0][3]
    z, pixels = frame.seen().z, world.pixels(WIDTH, HEIGHT)
    rays = np.hypot(np.hypot((pixels[..., 0] - camera.cx) / camera.fx, (pixels[..., 1] - camera.cy) / camera.fy), 1)
    there = np.isfinite(z)
    np.testing.assert_allclose(label.load()[there], (z * rays)[there], atol=1e-3)


def test_what_is_missing_is_named(tmp_path):
    write(tmp_path)
    conf = tmp_path / HOUSE / HOUSE / "undistorted_camera_parameters" / f"{HOUSE}.conf"
    with pytest.raises(UserError, match="scenes_train"):
        Matterport3D().frames(tmp_path, "train")
    text = conf.read_text()
    other = tmp_path / "other"
    files.text(other / "scenes_val.txt", HOUSE)
    files.text(other / HOUSE / "undistorted_camera_parameters" / f"{HOUSE}.conf", text.split("\n", 5)[-1])
    with pytest.raises(BadRecord, match=r"conf:1: .*no intrinsics_matrix"):
        Matterport3D().frames(other, "val")
