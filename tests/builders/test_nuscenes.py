"""nuScenes: the chain lidar, ego, global, ego, camera; which samples belong to which split."""

import dataclasses
import json

import numpy as np
import pytest

from tests.builders import files, truth, vehicle
from vlm3_jax.builders import common
from vlm3_jax.builders.nuscenes import CAMERAS, NuScenes
from vlm3_jax.builders.running.plan import describe, jobs, make_build
from vlm3_jax.errors import BadRecord, UserError

YAW = {"CAM_FRONT": 0, "CAM_FRONT_LEFT": -55, "CAM_FRONT_RIGHT": 55, "CAM_BACK": 180, "CAM_BACK_LEFT": -110}
YAW["CAM_BACK_RIGHT"] = 110
AFTER_S = {name: 0.004 * k - 0.008 for k, name in enumerate(CAMERAS)}
TOLERANCE_M, SHARE = 2e-3, 0.9
SAMPLES = 20


def _frame(name: str, seconds: float) -> truth.Frame:
    world_T_cam = vehicle.world_T_vehicle(seconds) @ vehicle.mounted(YAW[name])
    return truth.Frame(50.0, 50.0, 31.2, 24.9, 64, 48, world_T_cam)


FRAMES = {name: _frame(name, AFTER_S[name]) for name in CAMERAS}


def _pose(matrix) -> dict:
    return {"rotation": vehicle.quaternion(matrix).tolist(), "translation": matrix[:3, 3].tolist()}


def write(root, version="v1.0-mini", mount=vehicle.mounted, pose=vehicle.map_T_vehicle, scene="scene-0061"):
    """`SAMPLES` samples, of which the last has files; a sweep between key frames is to be passed over."""
    folder = root / version
    sensors = [{"token": f"s{name}", "channel": name, "modality": "camera"} for name in CAMERAS]
    calibrated = [
        {"token": f"c{name}", "sensor_token": f"s{name}", "camera_intrinsic": [[50, 0, 31.2], [0, 50, 24.9], [0, 0, 1]]}
        | _pose(mount(YAW[name]))
        for name in CAMERAS
    ]
    sensors.append({"token": "slidar", "channel": "LIDAR_TOP", "modality": "lidar"})
    calibrated.append(
        {"token": "clidar", "sensor_token": "slidar", "camera_intrinsic": []} | _pose(vehicle.VEHICLE_T_LIDAR)
    )
    data, egos = [], []
    for number in range(SAMPLES):
        for name, seconds in [*AFTER_S.items(), ("lidar", 0.0)]:
            token = f"{number}-{name}"
            file = f"samples/{name}/{number}.jpg" if name != "lidar" else f"samples/LIDAR_TOP/{number}.pcd.bin"
            row = {"token": token, "sample_token": f"t{number}", "ego_pose_token": f"e{token}", "is_key_frame": True}
            data.append(row | {"calibrated_sensor_token": f"c{name}", "filename": file})
            egos.append({"token": f"e{token}", "timestamp": 1} | _pose(pose(seconds)))
    between = data[-1] | {"token": "between", "is_key_frame": False, "filename": "sweeps/LIDAR_TOP/x.pcd.bin"}
    tables = {
        "scene": [{"token": "scene", "name": scene}],
        "sample": [{"token": f"t{n}", "scene_token": "scene", "timestamp": n} for n in range(SAMPLES)],
        "sample_data": [*data[::-1], between],
        "calibrated_sensor": calibrated,
        "ego_pose": egos[::-1],
        "sensor": sensors,
    }
    for name, rows in tables.items():
        files.text(folder / f"{name}.json", json.dumps(rows, indent=0))
    last = SAMPLES - 1
    points = vehicle.sweep(0)
    cloud = np.concatenate([points, np.zeros((len(points), 2))], -1).astype("<f4")
    files.text(root / "samples" / "LIDAR_TOP" / "about", "")
    (root / "samples" / "LIDAR_TOP" / f"{last}.pcd.bin").write_bytes(cloud.tobytes())
    for name in CAMERAS:
        files.jpeg(root / "samples" / name / f"{last}.jpg", FRAMES[name].seen().rgb)
    return root


def _built(root, **options) -> dict:
    builder = NuScenes(common.Options(**options))
    return {item.key.split("/")[-1]: builder.record(root, item) for item in builder.frames(root, "bench")}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write(tmp_path_factory.mktemp("nuscenes"))


@pytest.fixture(scope="module")
def built(root):
    """Camera -> record of the last sample."""
    return _built(root)


@pytest.mark.parametrize("name", CAMERAS)
def test_gives_back_the_world(built, name):
    record, frame = built[name], FRAMES[name]

    def check(record):
        assert truth.check_depth(record, frame, TOLERANCE_M, spread_px=0.5, share=SHARE) > 200

    check(record)
    assert (record.depth[0].kind, record.scene) == ("z", "scene-0061")
    truth.check_image(record, frame)
    truth.check_pose(record, [frame], world_T_own=vehicle.WORLD_T_MAP)
    truth.all_fail(check, truth.wrong_depths(record))


@pytest.mark.parametrize(
    "wrong",
    [
        {"pose": lambda seconds: vehicle.map_T_vehicle(0)},
        {"pose": lambda seconds: np.linalg.inv(vehicle.map_T_vehicle(seconds))},
        {"mount": lambda yaw: np.linalg.inv(vehicle.mounted(yaw))},
    ],
    ids=["no motion between sweep and image", "inverted poses", "inverted mounting"],
)
def test_files_that_mean_something_else_fail_the_check(tmp_path, wrong):
    record = _built(write(tmp_path, **wrong))["CAM_FRONT_RIGHT"]
    with pytest.raises(AssertionError):
        truth.check_depth(record, FRAMES["CAM_FRONT_RIGHT"], TOLERANCE_M, spread_px=0.5, share=SHARE)


def test_as_depthlm_stored_it_there_is_no_motion(root):
    """Points as the camera would see them from where the vehicle was at the sweep's time, pixels truncated."""
    record = _built(root, depthlm=True)["CAM_FRONT_RIGHT"]
    still = _frame("CAM_FRONT_RIGHT", 0.0)
    label = record.depth[0]
    seen = still.seen(label.points_px[None] + np.random.default_rng(0).uniform(0, 1, (200, 1, 2)))
    good = (seen.z.min(0) - 0.02 < label.depth_m) & (label.depth_m < seen.z.max(0) + 0.02)
    assert good.mean() > SHARE
    with pytest.raises(AssertionError):
        truth.check_depth(record, FRAMES["CAM_FRONT_RIGHT"], TOLERANCE_M, spread_px=0.5, share=SHARE)


def test_splits(tmp_path):
    write(tmp_path)
    write(tmp_path, "v1.0-trainval", scene="scene-0002")
    builder = NuScenes()
    assert len(builder.frames(tmp_path, "mini")) == SAMPLES * 6
    assert {item.scene for item in builder.frames(tmp_path, "train")} == {"scene-0002"}
    write(tmp_path, "v1.0-trainval")
    assert builder.frames(tmp_path, "train") == []


def test_what_is_missing_is_named(root, tmp_path):
    write(tmp_path)
    (tmp_path / "samples" / "LIDAR_TOP" / f"{SAMPLES - 1}.pcd.bin").write_bytes(b"123")
    with pytest.raises(BadRecord, match="no whole points"):
        _built(tmp_path)
    with pytest.raises(UserError, match=r"v1.0-trainval"):
        NuScenes().frames(root, "train")


def test_a_build_of_it_can_be_planned(root, tmp_path):
    """Its items hold the numbers of four poses."""
    about, todo = jobs(make_build("nuscenes", root, tmp_path, "bench"))
    assert about["items"] == 6
    assert len(todo[0].items) == 6
    item = dataclasses.replace(todo[0].items[0], data=todo[0].items[0].data | {"numbers": bytes(8)})
    changed = describe(todo[0].build, NuScenes(), [item, *todo[0].items[1:]])
    assert changed["items_sha256"] != about["items_sha256"]
