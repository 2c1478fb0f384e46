"""Waymo v2: range images by beams and azimuths, per-pixel poses of the top lidar, distorted images."""

import functools
import io

import numpy as np
import pytest
from PIL import Image

from tests.builders import truth, vehicle, world
from vlm3_jax.builders import common
from vlm3_jax.builders.waymo import Waymo
from vlm3_jax.errors import UserError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

SEGMENT, TIME = "10203656353524179475_7625_000_7645_000", 1522688014970187
NAMES = {1: "FRONT", 2: "FRONT_LEFT", 3: "FRONT_RIGHT", 4: "SIDE_LEFT", 5: "SIDE_RIGHT"}
YAW = {1: 0, 2: -45, 3: 45, 4: -90, 5: 90}
IMAGE_AFTER_S = 0.015
WIDTH, HEIGHT, F, CX, CY = 96, 64, 70.0, 46.2, 33.1
LENS = {"k1": 0.06, "k2": -0.09, "p1": 0.001, "p2": -0.002, "k3": 0.01}
TOP, FRONT = 1, 2
ROWS, COLUMNS = 32, 300
BEAMS = np.radians(np.linspace(-32, 8, ROWS) + 0.4 * np.sin(np.arange(ROWS)))
RANGE_DEG = (-25.0, 5.0)
TOLERANCE_M, SHARE = 0.01, 0.9

LIDARS = {
    TOP: vehicle.VEHICLE_T_AXES @ world.pose(0.02, -1.6, 0.05, -20, 1, 1) @ world.FORWARD_LEFT_UP,
    FRONT: vehicle.VEHICLE_T_AXES @ world.pose(0.0, -0.6, 0.6, 4, -1, 2) @ world.FORWARD_LEFT_UP,
}


def _rays(laser: int) -> np.ndarray:
    """Unit directions [H, W, 3] in the laser's axes: rows from the top, columns from behind by the left."""
    height = ROWS if laser == TOP else 12
    low, high = np.radians(RANGE_DEG)
    beams = BEAMS if laser == TOP else low + (np.arange(height) + 0.5) / height * (high - low)
    up = beams[::-1][:, None]
    turn = np.arctan2(LIDARS[laser][1, 0], LIDARS[laser][0, 0])
    around = np.pi - (np.arange(COLUMNS) + 0.5) / COLUMNS * 2 * np.pi - turn
    return np.stack(np.broadcast_arrays(np.cos(up) * np.cos(around), np.cos(up) * np.sin(around), np.sin(up)), -1)


def _column_times() -> np.ndarray:
    """Seconds at which the columns of the top lidar are measured: it turns in 100 ms around the frame's time."""
    return np.linspace(-0.03, 0.03, COLUMNS)


def _camera_pose(camera: int) -> np.ndarray:
    return vehicle.world_T_vehicle(IMAGE_AFTER_S) @ vehicle.mounted(YAW[camera])


@functools.cache
def _image(camera: int):
    rays = world.pinhole(F, F, CX, CY, WIDTH, HEIGHT, world.opencv(**LENS))
    return world.render(rays, _camera_pose(camera)).rgb


@functools.cache
def _sweep(laser: int):
    """Ranges [H, W], points in the world [H, W, 3], poses [H, W, 6] as roll, pitch, yaw, x, y, z in the map."""
    from scipy.spatial.transform import Rotation

    rays, times = _rays(laser), _column_times() if laser == TOP else np.zeros(COLUMNS)
    ranges, points = np.zeros(rays.shape[:2]), np.zeros(rays.shape)
    poses = np.zeros((*rays.shape[:2], 6))
    for column, time in enumerate(times):
        world_T_lidar = vehicle.world_T_vehicle(time) @ LIDARS[laser]
        seen = world.render(rays[:, column], world_T_lidar).distance
        ranges[:, column] = np.where(np.isfinite(seen), seen, -1)
        hits = rays[:, column] * np.where(np.isfinite(seen), seen, 0)[:, None]
        points[:, column] = vehicle.move(world_T_lidar, hits)
        pose = vehicle.map_T_vehicle(time)
        yaw, pitch, roll = Rotation.from_matrix(pose[:3, :3]).as_euler("ZYX")
        poses[:, column] = [roll, pitch, yaw, *pose[:3, 3]]
    return ranges, points, poses


@functools.cache
def _projections(laser: int) -> np.ndarray:
    """int [H, W, 6]: up to two cameras with the pixel of their distorted image that a return falls on."""
    ranges, points, _ = _sweep(laser)
    found = np.zeros((*ranges.shape, 6), np.int32)
    for camera in NAMES:
        local = vehicle.move(np.linalg.inv(_camera_pose(camera)), points.reshape(-1, 3))
        xy = local[:, :2] / np.where(local[:, 2:] > 0.1, local[:, 2:], np.nan)
        xy[~(np.abs(xy).max(-1) < 1)] = np.nan
        with np.errstate(invalid="ignore"):
            at = np.rint(world.opencv(**LENS)(xy) * F + [CX, CY])
            inside = (at >= 0).all(-1) & (at < [WIDTH, HEIGHT]).all(-1) & (ranges.ravel() > 0)
        flat = found.reshape(-1, 6)
        free = np.where(flat[:, 0] == 0, 0, 3)
        for k in np.flatnonzero(inside & (flat[:, 3] == 0)):
            flat[k, free[k] : free[k] + 3] = (camera, *at[k])
    return found


def _write(root, part: str, columns: dict) -> None:
    path = root / "training" / part / f"{SEGMENT}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = len(next(iter(columns.values())))
    pq.write_table(pa.table({"key.segment_context_name": [SEGMENT] * rows} | columns), path, row_group_size=2)


def _shaped(component: str, arrays) -> dict:
    name = f"[{component}].range_image_return1"
    return {
        f"{name}.values": [array.ravel().tolist() for array in arrays],
        f"{name}.shape": [list(array.shape) for array in arrays],
    }


def write(root, mount=vehicle.mounted, pose=vehicle.map_T_vehicle, poses_per_pixel=True, keep_lidar=True):
    """One segment with one frame; cameras and lasers in no order."""
    cameras, lasers = [4, 1, 5, 2, 3], [FRONT, TOP]
    encoded = []
    for camera in cameras:
        buffer = io.BytesIO()
        Image.fromarray(_image(camera)).save(buffer, "JPEG", quality=98, subsampling=0)
        encoded.append(buffer.getvalue())
    axes = np.linalg.inv(world.FORWARD_LEFT_UP)
    frame = {"key.frame_timestamp_micros": [TIME] * 5, "key.camera_name": cameras}
    image_pose = [pose(IMAGE_AFTER_S).ravel().tolist()] * 5
    _write(
        root,
        "camera_image",
        frame | {"[CameraImageComponent].image": encoded, "[CameraImageComponent].pose.transform": image_pose},
    )
    prefix = "[CameraCalibrationComponent]"
    numbers = {"f_u": F, "f_v": F, "c_u": CX, "c_v": CY} | LENS
    calibration = {f"{prefix}.intrinsic.{name}": [value] * 5 for name, value in numbers.items()}
    extrinsics = [(mount(YAW[camera]) @ np.linalg.inv(axes)).ravel().tolist() for camera in cameras]
    calibration |= {f"{prefix}.extrinsic.transform": extrinsics, f"{prefix}.width": [WIDTH] * 5}
    _write(root, "camera_calibration", {"key.camera_name": cameras} | calibration)
    sweeps = {laser: _sweep(laser) for laser in lasers}
    # Range, intensity, elongation, in no-label zone.
    images = [np.stack([sweeps[laser][0]] * 4, -1).astype(np.float32) for laser in lasers]
    keys = {"key.frame_timestamp_micros": [TIME if keep_lidar else 1] * 2, "key.laser_name": lasers}
    _write(root, "lidar", keys | _shaped("LiDARComponent", images))
    projected = [_projections(laser) for laser in lasers]
    _write(root, "lidar_camera_projection", keys | _shaped("LiDARCameraProjectionComponent", projected))
    moved = (
        sweeps[TOP][2]
        if poses_per_pixel
        else np.broadcast_to(sweeps[TOP][2][:, COLUMNS // 2, None], sweeps[TOP][2].shape)
    )
    top = {"key.frame_timestamp_micros": [TIME], "key.laser_name": [TOP]}
    _write(root, "lidar_pose", top | _shaped("LiDARPoseComponent", [moved.astype(np.float32)]))
    prefix = "[LiDARCalibrationComponent]"
    beams = {
        "min": np.radians(RANGE_DEG[:1] * 2),
        "max": np.radians(RANGE_DEG[1:] * 2),
        "values": [None, BEAMS.tolist()],
    }
    calibration = {f"{prefix}.beam_inclination.{name}": list(value) for name, value in beams.items()}
    calibration[f"{prefix}.extrinsic.transform"] = [LIDARS[laser].ravel().tolist() for laser in lasers]
    _write(root, "lidar_calibration", {"key.laser_name": lasers} | calibration)
    vehicle_pose = {"[VehiclePoseComponent].world_from_vehicle.transform": [pose(0).ravel().tolist()]}
    _write(root, "vehicle_pose", {"key.frame_timestamp_micros": [TIME]} | vehicle_pose)
    return root


def _built(root) -> dict:
    builder = Waymo()
    return {item.key.split("/")[-1]: builder.record(root, item) for item in builder.frames(root, "train")}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Camera -> record."""
    return _built(write(tmp_path_factory.mktemp("waymo")))


def _frame(record, camera: int) -> truth.Frame:
    """The truth behind the undistorted image: the stored one's focal lengths, cut somewhere."""
    found = record.views[0].camera
    shift = np.array([CX - found.cx, CY - found.cy])
    np.testing.assert_allclose(shift, np.rint(shift), atol=1e-6)
    assert found.width > 0.7 * WIDTH
    return truth.Frame(F, F, found.cx, found.cy, found.width, found.height, _camera_pose(camera))


@pytest.mark.parametrize("camera", list(NAMES))
def test_gives_back_the_world(built, camera):
    record = built[NAMES[camera]]
    frame = _frame(record, camera)

    def check(record):
        assert truth.check_depth(record, frame, TOLERANCE_M, spread_px=1.0, share=SHARE) > 150

    check(record)
    assert (record.depth[0].kind, record.scene) == ("distance", SEGMENT)
    truth.check_image(record, frame, tolerance=4)
    truth.check_pose(record, [frame], world_T_own=vehicle.WORLD_T_MAP)
    truth.all_fail(check, truth.wrong_depths(record))


@pytest.mark.parametrize(
    "wrong",
    [
        {"pose": lambda seconds: vehicle.map_T_vehicle(0)},
        {"pose": lambda seconds: np.linalg.inv(vehicle.map_T_vehicle(seconds))},
        {"mount": lambda yaw: np.linalg.inv(vehicle.mounted(yaw))},
        {"poses_per_pixel": False},
    ],
    ids=["no motion until the image", "inverted poses", "inverted mounting", "one pose for all pixels"],
)
def test_files_that_mean_something_else_fail_the_check(tmp_path, wrong):
    record = _built(write(tmp_path, **wrong))["SIDE_LEFT"]
    with pytest.raises(AssertionError):
        truth.check_depth(record, _frame(record, 4), TOLERANCE_M, spread_px=1.0, share=SHARE)


def test_a_frame_without_lidar_is_skipped(tmp_path):
    builder, root = Waymo(), write(tmp_path, keep_lidar=False)
    items = builder.frames(root, "train")
    assert len(items) == 5
    with pytest.raises(common.Skip, match="lidar"):
        builder.record(root, items[0])


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match="validation"):
        Waymo().frames(write(tmp_path), "val")
    (tmp_path / "training" / "lidar" / f"{SEGMENT}.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match="lidar"):
        Waymo().frames(tmp_path, "train")
