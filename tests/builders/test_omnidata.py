"""Taskonomy and HM3D by Omnidata: Blender's cameras, steps of 1/512 m with 65535 for none, masks, building lists."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tests.builders import files, truth, world
from vlm3_jax.builders import common
from vlm3_jax.builders.omnidata import HM3D, Taskonomy, read_point_info
from vlm3_jax.errors import BadRecord, UserError

SIDE = 64
# Blender's world is z up: (x, y, z) of theirs is (x, z, -y) of ours.
BLENDER_T_WORLD = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]])
FRAMES = {
    "point_3_view_10": (1.2, world.pose(0.2, 0.1, -0.4, yaw=20, pitch=-8, roll=4)),
    "point_12_view_0": (0.9, world.pose(-0.5, -0.3, 0.2, yaw=-130, pitch=12)),
}


def frame(name: str) -> truth.Frame:
    fov, pose = FRAMES[name]
    focal = SIDE / 2 / np.tan(fov / 2)
    return truth.Frame(focal, focal, (SIDE - 1) / 2, (SIDE - 1) / 2, SIDE, SIDE, pose)


def write(root, component: str, building: str, task: str = "depth_zbuffer"):
    for name, (fov, pose) in FRAMES.items():
        seen = frame(name).seen()

        def path(kind, suffix, name=name):
            return root / kind / component / building / f"{name}_domain_{kind}.{suffix}"

        files.png(path("rgb", "png"), seen.rgb)
        depth = seen.z if task == "depth_zbuffer" else seen.distance
        files.png(path(task, "png"), files.steps(depth, 512, open_sky=65535))
        turn = BLENDER_T_WORLD[:3, :3] @ pose[:3, :3] @ np.diag([1.0, -1, -1])
        rotation = Rotation.from_matrix(turn)
        x, y, z, w = rotation.as_quat()
        files.dump(
            path("point_info", "json"),
            {
                "camera_location": (BLENDER_T_WORLD @ pose)[:3, 3].tolist(),
                "camera_rotation_final": rotation.as_euler("xyz").tolist(),
                "camera_rotation_final_quaternion": [w, x, y, z],
                "field_of_view_rads": fov,
                "resolution": SIDE,
            },
        )
    return root


@pytest.fixture
def raw(tmp_path):
    write(tmp_path, "taskonomy", "zion")
    write(tmp_path, "taskonomy", "allen")
    files.text(tmp_path / "lists" / "train_val_test_tiny.csv", "id,train,val,test\nallen,0,1,0\nzion,1,0,0\n")
    return tmp_path


def test_records_are_what_the_world_shows(raw):
    items = Taskonomy().frames(raw, "train")
    assert [item.key for item in items] == ["zion/point_12_view_0", "zion/point_3_view_10"]
    for item in items:
        record, shot = Taskonomy().record(raw, item), frame(item.data["frame"])
        assert record.scene == "zion"

        def depth(one, shot=shot):
            truth.check_depth(one, shot, 0.5 / 512 + 1e-4)

        def pose(one, shot=shot):
            truth.check_pose(one, [shot], world_T_own=np.linalg.inv(BLENDER_T_WORLD))

        depth(record)
        pose(record)
        truth.check_image(record, shot, tolerance=0)
        truth.all_fail(depth, truth.wrong_depths(record))
        truth.all_fail(pose, truth.wrong_poses(record))


def test_distance_where_there_is_no_z(tmp_path):
    write(tmp_path, "hm3d", "00010-house", "depth_euclidean")
    files.text(tmp_path / "metadata.csv", "scene,split\n00010-house,val\n")
    assert not HM3D().frames(tmp_path, "train")
    for item in HM3D().frames(tmp_path, "val"):
        record = HM3D().record(tmp_path, item)
        assert record.depth_maps[0].kind == "distance"
        truth.check_depth(record, frame(item.data["frame"]), 0.5 / 512 + 1e-4)


def test_the_mask_takes_pixels_out(raw):
    name = "point_3_view_10"
    mask = np.full((SIDE, SIDE), 255, np.uint8)
    mask[10:20, 30:40] = 0
    files.png(raw / "mask_valid" / "taskonomy" / "zion" / f"{name}_domain_mask_valid.png", mask)
    item = Taskonomy().frames(raw, "train")[1]
    valid = np.isfinite(frame(name).seen().z)
    assert valid[10:20, 30:40].any()
    truth.check_depth(Taskonomy().record(raw, item), frame(name), 0.5 / 512 + 1e-4, valid=valid & (mask > 0))
    files.png(raw / "mask_valid" / "taskonomy" / "zion" / f"{name}_domain_mask_valid.png", mask[:-1])
    with pytest.raises(BadRecord, match="the mask is 64 x 63, the depth 64 x 64"):
        Taskonomy().record(raw, item)


def test_frames_without_image_or_camera_are_skipped(raw):
    building = "taskonomy/zion"
    (raw / "rgb" / building / "point_3_view_10_domain_rgb.png").unlink()
    (raw / "point_info" / building / "point_12_view_0_domain_point_info.json").unlink()
    items = Taskonomy().frames(raw, "train")
    assert len(items) == 2
    for item, what in zip(items, ("no point_info", "no image"), strict=True):
        with pytest.raises(common.Skip, match=what):
            Taskonomy().record(raw, item)


def test_a_pose_that_contradicts_itself_is_left_out(raw):
    path = raw / "point_info" / "taskonomy" / "zion" / "point_3_view_10_domain_point_info.json"
    text = path.read_text()
    assert read_point_info(path, SIDE, SIDE)[1] is not None
    path.write_text(text.replace('"camera_rotation_final": [', '"camera_rotation_final": [0.1, 0.2, 0.3], "old": ['))
    assert read_point_info(path, SIDE, SIDE)[1] is None
    path.write_text(text.replace("field_of_view_rads", "fov"))
    with pytest.raises(BadRecord, match="field_of_view_rads must be a number"):
        read_point_info(path, SIDE, SIDE)


def test_the_list_of_buildings_must_be_there(raw):
    (raw / "lists" / "train_val_test_tiny.csv").unlink()
    with pytest.raises(UserError, match=r"no train_val_test_fullplus.csv"):
        Taskonomy().frames(raw, "train")
    files.text(raw / "train_val_test_full.csv", "name,train\nzion,1\n")
    with pytest.raises(UserError, match="it has no column 'id'"):
        Taskonomy().frames(raw, "train")
