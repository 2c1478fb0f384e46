import gzip
import json

import numpy as np
import pytest

from tests.builders import files, pairs
from vlm3_jax.builders.dynamic_replica import DynamicReplica
from vlm3_jax.errors import BadRecord

SCENE = "009850-3_obj"
# Left and right of two moments.
POSES = (*pairs.WALK, pairs.world.pose(0.1, 0.05, 0.3, yaw=1, roll=2))
NAMES = ("0000_left", "0000_right", "0001_left", "0001_right")
FRAMES = dict(zip(NAMES, pairs.walk(poses=POSES), strict=True))
MOVED = np.zeros((pairs.HEIGHT, pairs.WIDTH), bool)
MOVED[20:30, 10:25] = True


def viewpoint(frame) -> dict:
    """PyTorch3D: rows are points, x left, y up; half the shorter side is 1."""
    world_T_p3d = frame.world_T_cam[:3, :3] @ np.diag([-1.0, -1, 1])
    unit = min(frame.width, frame.height) / 2
    return {
        "R": world_T_p3d.tolist(),
        "T": (-world_T_p3d.T @ frame.world_T_cam[:3, 3]).tolist(),
        "focal_length": [frame.fx / unit, frame.fy / unit],
        "principal_point": [
            (frame.width / 2 - frame.cx - 0.5) / unit,
            (frame.height / 2 - frame.cy - 0.5) / unit,
        ],
        "intrinsics_format": "ndc_isotropic",
    }


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder, rows = tmp_path_factory.mktemp("dynamic_replica"), []
    for name, frame in FRAMES.items():
        number, side = name.split("_")
        part = f"{SCENE}_source_{side}"
        seen = frame.seen()
        paths = {
            "image": f"{part}/images/{part}-{number}.png",
            "depth": f"{part}/depths/{part}_{number}.geometric.png",
            "mask": f"{part}/masks/{part}_{number}.png",
        }
        files.png(folder / paths["image"], seen.rgb)
        half = np.where(np.isfinite(seen.z), seen.z, 0).astype(np.float16)
        files.png(folder / paths["depth"], half.view(np.uint16))
        files.png(folder / paths["mask"], np.where(MOVED, 255, 0).astype(np.uint8))
        row = {"sequence_name": SCENE, "camera_name": side, "frame_number": int(number), "viewpoint": viewpoint(frame)}
        row |= {key: {"path": path} for key, path in paths.items()}
        row["image"]["size"] = [frame.height, frame.width]
        rows.append(row)
    (folder / "frame_annotations_train.jgz").write_bytes(gzip.compress(json.dumps(rows[::-1]).encode()))
    return folder


def test_gives_back_depth_cameras_and_poses(raw):
    records, skipped = pairs.build(DynamicReplica(), raw)
    assert not skipped
    assert len(records) == 6
    # Half floats have 11 bits: at 8 m their step is 4 mm, beside the map's own millimetre.
    pairs.check(records, FRAMES, tolerance_m=0.0045, covered=0.9)
    assert all(record.metric and record.scene == SCENE for record in records.values())


def test_what_moves_has_no_depth_between_moments(raw):
    records, _ = pairs.build(DynamicReplica(), raw)
    for key, record in records.items():
        one_moment = key.split("/")[1][:4] == key.split("-")[-1][:4]
        for label in record.depth_maps:
            assert np.isfinite(label.load())[MOVED].any() == one_moment


def test_paths_do_not_lead_out_of_the_raw_folder(raw):
    builder = DynamicReplica()
    item = builder.frames(raw, "train")[0]
    item.data["frames"][0] = item.data["frames"][0] | {"image": "../secret.png"}
    with pytest.raises(BadRecord, match="leads out of the raw folder"):
        builder.record(raw, item)
