"""Argoverse 2: lidar moved to the image's time, portrait and landscape cameras; and real calibration and sweeps."""

import dataclasses

import numpy as np
import pytest

from tests.builders import files, truth, vehicle
from vlm3_jax.builders import common
from vlm3_jax.builders.argoverse2 import CAMERAS, POSE, Argoverse2
from vlm3_jax.errors import UserError

LOG = "7fab2350-7eaf-3b7e-a39d-6937a4c1bede"
SWEEP, LATER = 315966265259836000, 315966265360032000
# Nanoseconds after the sweep; 30 ms is too far away.
IMAGE_AFTER = {name: 20_000_000 for name in CAMERAS} | {"ring_side_left": -18_000_000, "ring_rear_right": 30_000_000}
YAW = dict(zip(CAMERAS, (0, -45, 45, -150, 150, -100, 100), strict=True))
TOLERANCE_M, SHARE = 0.01, 0.9


def _frame(name: str, after_ns: int) -> truth.Frame:
    width, height = (48, 64) if name == "ring_front_center" else (64, 48)
    seconds = after_ns * 1e-9
    world_T_cam = vehicle.world_T_vehicle(seconds) @ vehicle.mounted(YAW[name])
    return truth.Frame(52.0, 52.0, width / 2 - 1.3, height / 2 + 0.7, width, height, world_T_cam)


FRAMES = {name: _frame(name, IMAGE_AFTER[name]) for name in CAMERAS}


def _poses(matrices) -> dict:
    rows = [[*vehicle.quaternion(matrix), *matrix[:3, 3]] for matrix in matrices]
    return dict(zip(POSE, np.array(rows).T, strict=True))


def _feather(path, columns) -> None:
    arrow, feather = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.feather")
    path.parent.mkdir(parents=True, exist_ok=True)
    feather.write_feather(arrow.table(columns), path)


def write(root, mount=vehicle.mounted, pose=vehicle.map_T_vehicle):
    """One log of one sweep; `mount` and `pose` may be wrong ones. Lens coefficients are there and mean nothing."""
    log = root / "val" / LOG
    names = [*CAMERAS[::-1], "stereo_front_left"]
    frames = [FRAMES.get(name, FRAMES["ring_front_left"]) for name in names]
    fields = {"fx_px": "fx", "fy_px": "fy", "cx_px": "cx", "cy_px": "cy", "height_px": "height", "width_px": "width"}
    intrinsics = {column: [getattr(frame, field) for frame in frames] for column, field in fields.items()}
    lens = {"k1": [-0.25] * len(names), "k2": [0.11] * len(names), "k3": [-0.02] * len(names)}
    _feather(log / "calibration" / "intrinsics.feather", {"sensor_name": names} | intrinsics | lens)
    mounts = [mount(YAW.get(name, 3)) for name in names]
    _feather(log / "calibration" / "egovehicle_SE3_sensor.feather", {"sensor_name": names} | _poses(mounts))
    times = sorted({0, *IMAGE_AFTER.values(), LATER - SWEEP})
    stamps = {"timestamp_ns": [SWEEP + time for time in times]}
    _feather(log / "city_SE3_egovehicle.feather", stamps | _poses([pose(time * 1e-9) for time in times]))
    points = vehicle.move(vehicle.VEHICLE_T_LIDAR, vehicle.sweep(0)).astype(np.float16)
    rest = {"intensity": np.zeros(len(points), np.uint8), "laser_number": np.zeros(len(points), np.uint8)}
    for sweep in (LATER, SWEEP):
        columns = dict(zip("xyz", points.T, strict=True)) | rest | {"offset_ns": np.zeros(len(points), np.int32)}
        _feather(log / "sensors" / "lidar" / f"{sweep}.feather", columns)
    for name in CAMERAS[::-1]:
        files.jpeg(log / "sensors" / "cameras" / name / f"{SWEEP + IMAGE_AFTER[name]}.jpg", FRAMES[name].seen().rgb)
    return root


def _built(root) -> dict:
    builder, records = Argoverse2(), {}
    for item in builder.frames(root, "val"):
        try:
            records[item.key] = builder.record(root, item)
        except common.Skip as skip:
            records[item.key] = skip
    return records


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Key -> record or why there is none."""
    return _built(write(tmp_path_factory.mktemp("argoverse2")))


def _key(name: str) -> str:
    return f"{LOG}/{SWEEP}/{name}"


@pytest.mark.parametrize("name", [name for name in CAMERAS if name != "ring_rear_right"])
def test_gives_back_the_world(built, name):
    record, frame = built[_key(name)], FRAMES[name]

    def check(record):
        assert truth.check_depth(record, frame, TOLERANCE_M, spread_px=0.5, share=SHARE) > 200

    check(record)
    assert record.depth[0].kind == "distance"
    assert record.scene == LOG
    truth.check_image(record, frame)
    truth.check_pose(record, [frame], world_T_own=vehicle.WORLD_T_MAP)
    truth.all_fail(check, truth.wrong_depths(record))
    truth.all_fail(
        lambda one: truth.check_pose(one, [frame], world_T_own=vehicle.WORLD_T_MAP), truth.wrong_poses(record)
    )
    neighbour = FRAMES["ring_front_left" if name != "ring_front_left" else "ring_front_right"]
    with pytest.raises(AssertionError):
        truth.check_depth(dataclasses.replace(record), neighbour, TOLERANCE_M, spread_px=0.5, share=SHARE)


@pytest.mark.parametrize(
    "wrong",
    [
        {"pose": lambda seconds: vehicle.map_T_vehicle(0)},
        {"pose": lambda seconds: np.linalg.inv(vehicle.map_T_vehicle(seconds))},
        {"mount": lambda yaw: np.linalg.inv(vehicle.mounted(yaw))},
        {"mount": lambda yaw: vehicle.mounted(yaw + 1)},
    ],
    ids=["no motion between sweep and image", "inverted poses", "inverted mounting", "mounting off by a degree"],
)
def test_files_that_mean_something_else_fail_the_check(tmp_path, wrong):
    record = _built(write(tmp_path, **wrong))[_key("ring_side_right")]
    with pytest.raises(AssertionError):
        truth.check_depth(record, FRAMES["ring_side_right"], TOLERANCE_M, spread_px=0.5, share=SHARE)


def test_sweeps_without_an_image_are_counted(built):
    skipped = {key for key, value in built.items() if isinstance(value, common.Skip)}
    assert skipped == {_key("ring_rear_right")} | {f"{LOG}/{LATER}/{name}" for name in CAMERAS}
    assert list(built) == sorted(built)
    assert len(built) == 2 * len(CAMERAS)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="train"):
        Argoverse2().frames(write(tmp_path), "train")


def test_real_calibration_and_sweeps(samples, tmp_path):
    """Blank images of the right names and sizes beside the real files: the real sweep falls into every camera."""
    pytest.importorskip("pyarrow")
    real = samples / "av2_sample" / "val" / LOG
    log = tmp_path / "val" / LOG
    log.parent.mkdir(parents=True)
    log.mkdir()
    for part in ("calibration", "city_SE3_egovehicle.feather"):
        (log / part).symlink_to(real / part)
    (log / "sensors").mkdir()
    (log / "sensors" / "lidar").symlink_to(real / "sensors" / "lidar")
    for name in CAMERAS:
        width, height = (1550, 2048) if name == "ring_front_center" else (2048, 1550)
        blank = np.zeros((height, width, 3), np.uint8)
        for sweep in (SWEEP, LATER):
            files.jpeg(log / "sensors" / "cameras" / name / f"{sweep}.jpg", blank)
    records = _built(tmp_path)
    assert len(records) == 2 * len(CAMERAS)
    for record in records.values():
        label = record.depth[0]
        assert len(label.depth_m) > 2000
        assert 1 < np.median(label.depth_m) < 60
        # The road before the car is the nearest there is, and lies at the bottom of an upright image.
        height = label.points_px[:, 1] / record.views[0].camera.height
        assert np.median(label.depth_m[height > 0.8]) < 10
        assert np.median(label.depth_m[(height > 0.4) & (height < 0.6)]) > 10
