"""Argoverse 2, sensor data set: lidar points in the images of the seven ring cameras."""

import bisect
import functools
import pathlib

import numpy as np

from vlm3_jax.builders import common
from vlm3_jax.builders.readers import lidar, rigid
from vlm3_jax.builders.readers.arrow import feather
from vlm3_jax.camera import Camera
from vlm3_jax.errors import BadRecord
from vlm3_jax.pose import from_quaternion, inverse
from vlm3_jax.records import Record, View

CAMERAS = (
    "ring_front_center",
    "ring_front_left",
    "ring_front_right",
    "ring_rear_left",
    "ring_rear_right",
    "ring_side_left",
    "ring_side_right",
)
# Half the time between two images (20 Hz): the devkit's rule for which image belongs to a sweep.
SYNC_NS = 25_000_000
POSE = ("qw", "qx", "qy", "qz", "tx_m", "ty_m", "tz_m")


class Argoverse2(common.Builder):
    """Each lidar sweep with the nearest image of every ring camera, at most 25 ms away.

    Points are moved ego(t_lidar) -> city -> ego(t_image) -> camera; sweeps are compensated to their own time already.
    The published images are undistorted: k1, k2 and k3 in intrinsics.feather describe the lens and are not applied
    (av2-api reads neither of them and says so in its issues 219 and 226). Poses are those of the ego vehicle in the
    city at the image's time. A sweep without an image near in time is skipped and counted.
    """

    name = "argoverse2"
    title = "Argoverse 2 (sensor)"
    folder = "depth"
    splits = ("train", "val", "test")
    held_out = "val"
    layout = (
        "SPLIT/LOG/{sensors/{cameras/CAM/NS.jpg, lidar/NS.feather}, calibration/*.feather, city_SE3_egovehicle.feather}"
    )
    labels = "lidar points, distance in metres; camera poses in the city frame"
    licence = "CC BY-NC-SA 4.0, argoverse.org"
    checked = "fixture; real lidar, calibration and poses of one val log (blank images)"
    doubts = ("the pixel centre of (0, 0): the devkit rounds projections, which means the pixel's centre",)
    test = "tests/builders/test_argoverse2.py"
    needs = ("pyarrow",)

    def frames(self, raw: pathlib.Path, split: str) -> list[common.Item]:
        """Sweeps times ring cameras, with the image of each or None."""
        items = []
        for log in common.subfolders(raw / split, "a folder for each log"):
            sensors = log / "sensors"
            common.need_files([sensors / "lidar", sensors / "cameras", log / "calibration"])
            sweeps = _times(sensors / "lidar", ".feather")
            for camera in CAMERAS:
                for sweep, image in _pairs(sweeps, _times(sensors / "cameras" / camera, ".jpg")):
                    data = {"log": f"{split}/{log.name}", "camera": camera, "sweep": sweep, "image": image}
                    items.append(common.Item(f"{log.name}/{sweep}/{camera}", log.name, data))
        return common.by_key(items)

    def record(self, raw: pathlib.Path, item: common.Item) -> Record:
        """One image with the points of its sweep."""
        camera_name, sweep, image = item.data["camera"], item.data["sweep"], item.data["image"]
        if image is None:
            raise common.Skip(f"no image within {SYNC_NS / 1e6:g} ms of the sweep")
        log = raw / item.data["log"]
        camera, ego_T_cam = _camera(log, camera_name)
        city_T_cam = _ego_pose(log, image) @ ego_T_cam
        path = log / "sensors" / "lidar" / f"{sweep}.feather"
        columns = feather(path, ("x", "y", "z"))
        points = np.stack([columns[axis].astype(np.float64) for axis in "xyz"], -1)
        cam_T_ego = inverse(city_T_cam) @ _ego_pose(log, sweep)
        stored = common.image(log / "sensors" / "cameras" / camera_name / f"{image}.jpg", item.key)
        if (stored.width, stored.height) != (camera.width, camera.height):
            raise BadRecord(f"{item.key}: the image is {stored.width} x {stored.height}, its calibration {camera}")
        label = lidar.depth_points(rigid.move(cam_T_ego, points), camera, "distance")
        return Record(item.key, (View(stored, camera, city_T_cam),), (label,), scene=item.scene)


def _times(folder: pathlib.Path, suffix: str) -> list[int]:
    """The time stamps (ns) that the files of a folder are named after, sorted; none if there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name[: -len(suffix)]) for path in folder.iterdir() if path.name.endswith(suffix))


def _pairs(sweeps: list[int], images: list[int]):
    """Each sweep with the nearest image; None if that is too far, or nearer to another sweep."""
    nearest = {sweep: _nearest(images, sweep) for sweep in sweeps}
    for sweep, image in nearest.items():
        right = image is not None and abs(image - sweep) <= SYNC_NS and _nearest(sweeps, image) == sweep
        yield sweep, image if right else None


def _nearest(times: list[int], wanted: int) -> int | None:
    place = bisect.bisect(times, wanted)
    return min(times[max(0, place - 1) : place + 1], key=lambda time: abs(time - wanted), default=None)


@functools.lru_cache(maxsize=256)
def _camera(log: pathlib.Path, name: str) -> tuple[Camera, np.ndarray]:
    """The camera and ego_T_cam."""
    path = log / "calibration" / "intrinsics.feather"
    fields = ("fx_px", "fy_px", "cx_px", "cy_px", "width_px", "height_px")
    fx, fy, cx, cy, width, height = _row(path, "sensor_name", name, fields).tolist()
    camera = Camera(fx, fy, cx, cy, int(width), int(height)).plausible(f"{path}: {name}")
    pose = _row(log / "calibration" / "egovehicle_SE3_sensor.feather", "sensor_name", name, POSE)
    return camera, from_quaternion(pose[:4], pose[4:])


def _ego_pose(log: pathlib.Path, time: int) -> np.ndarray:
    """city_T_ego at a time stamp of a sweep or an image."""
    pose = _row(log / "city_SE3_egovehicle.feather", "timestamp_ns", time, POSE)
    return from_quaternion(pose[:4], pose[4:])


@functools.lru_cache(maxsize=64)
def _table(path: pathlib.Path, key: str, fields: tuple[str, ...]) -> tuple[dict, np.ndarray]:
    columns = feather(path, (key, *fields))
    rows = {value: number for number, value in enumerate(columns[key].tolist())}
    return rows, np.stack([columns[field].astype(np.float64) for field in fields], -1)


def _row(path: pathlib.Path, key: str, value, fields) -> np.ndarray:
    rows, values = _table(path, key, tuple(fields))
    if value not in rows:
        raise BadRecord(f"{path}: no row where {key} is {value}")
    return values[rows[value]]
