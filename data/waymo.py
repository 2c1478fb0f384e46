"""Waymo Open Dataset, perception, version 2 (Parquet): lidar points in the images of five cameras."""

import functools
import pathlib

import numpy as np

from vlm3_jax.builders import common
from vlm3_jax.builders.readers import lidar, rigid
from vlm3_jax.builders.readers.arrow import parquet_keys, parquet_row
from vlm3_jax.camera import Camera
from vlm3_jax.errors import BadRecord
from vlm3_jax.formats.numbers import pose_of
from vlm3_jax.pose import inverse
from vlm3_jax.processor.undistort import Distortion
from vlm3_jax.records import DepthPoints, ImageRef, Record, View

CAMERAS = {1: "FRONT", 2: "FRONT_LEFT", 3: "FRONT_RIGHT", 4: "SIDE_LEFT", 5: "SIDE_RIGHT"}
FOLDERS = {"train": "training", "val": "validation"}
FRAME, CAMERA, LASER = "key.frame_timestamp_micros", "key.camera_name", "key.laser_name"
# Camera axes are x forward, y left, z up there.
CV_T_CAM = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
# Which camera and pixel a lidar return falls on, for up to two cameras.
PROJECTIONS = ((0, 1, 2), (3, 4, 5))


class Waymo(common.Builder):
    """Each image, undistorted, with the first returns of all lidars that the set itself projects into it.

    Range images become points as in the toolkit: rows by beam inclination from the top, columns by azimuth; returns of
    the top lidar by the vehicle's pose at each pixel, then to the vehicle at the image's time and into the camera.
    Which pixel of the stored (distorted) image a return falls on is taken from lidar_camera_projection, which knows
    the rolling shutter. Distances are to the camera's place at the image's time.
    """

    name = "waymo"
    title = "Waymo Open Dataset v2 (perception)"
    folder = "depth"
    splits = ("train", "val")
    held_out = "val"
    layout = (
        "{training,validation}/{camera_image,camera_calibration,lidar,lidar_calibration,lidar_pose,lidar_camera_projection,vehicle_pose}"
        "/SEGMENT.parquet"
    )
    labels = "lidar points, distance in metres; camera poses in the segment's world"
    licence = "Waymo Dataset License Agreement for Non-Commercial Use, waymo.com/open"
    checked = "fixture"
    doubts = (
        "whether projected pixels are rounded or truncated",
        "the pixel centre of (0, 0)",
        "size of row groups: large ones make random reads slow",
    )
    test = "tests/builders/test_waymo.py"
    needs = ("pyarrow",)

    def frames(self, raw: pathlib.Path, split: str) -> list[common.Item]:
        """The images of every segment with the rows of their frame in the other files."""
        folder = raw / FOLDERS[split]
        common.need_files([folder / "camera_image"])
        items = []
        for path in sorted((folder / "camera_image").glob("*.parquet")):
            segment, rows = path.stem, {}
            for part in ("lidar", "lidar_pose", "lidar_camera_projection"):
                keys = parquet_keys(folder / part / path.name, (FRAME, LASER))
                for row, (time, laser) in enumerate(keys):
                    rows.setdefault(time, {}).setdefault(part, {})[laser] = row
            for row, (time,) in enumerate(parquet_keys(folder / "vehicle_pose" / path.name, (FRAME,))):
                rows.setdefault(time, {})["vehicle_pose"] = row
            for row, (time, camera) in enumerate(parquet_keys(path, (FRAME, CAMERA))):
                data = {"folder": folder.name, "camera": camera, "row": row, "rows": rows.get(time, {})}
                items.append(common.Item(f"{segment}/{time}/{CAMERAS[camera]}", segment, data))
        return common.by_key(items)

    def record(self, raw: pathlib.Path, item: common.Item) -> Record:
        """One undistorted image with its points."""
        data, rows = item.data, item.data["rows"]
        folder, file = raw / data["folder"], f"{item.scene}.parquet"
        if "lidar" not in rows or "vehicle_pose" not in rows:
            raise common.Skip("the frame has no lidar returns, or no pose")
        names = ("[CameraImageComponent].image", "[CameraImageComponent].pose.transform")
        image = parquet_row(folder / "camera_image" / file, data["row"], names)
        stored = ImageRef.of_bytes(image[names[0]], item.key)
        distorted, lens, vehicle_T_cam = _camera(folder / "camera_calibration" / file, data["camera"], stored)
        pixels, camera = lens.remove(stored.load(), distorted)
        world_T_cam = pose_of(image[names[1]], f"{item.key}: pose") @ vehicle_T_cam
        world, places = _returns(folder, file, tuple(sorted(rows["lidar"].items())), _frozen(rows))
        points, at = _in_camera(world, places, data["camera"])
        at = np.floor(lens.undistort_points(at, distorted, camera) + 0.5)
        there = np.isfinite(at).all(-1)
        points = rigid.move(inverse(world_T_cam), points[there])
        label: DepthPoints = lidar.at_pixels(at[there], points, camera, "distance")
        view = View(common.encode(pixels, f"{item.key}.jpg"), camera, world_T_cam)
        return Record(item.key, (view,), (label,), scene=item.scene)


def _frozen(rows: dict) -> tuple:
    poses, places = (tuple(sorted(rows.get(part, {}).items())) for part in ("lidar_pose", "lidar_camera_projection"))
    return rows["vehicle_pose"], poses, places


@functools.lru_cache(maxsize=4)
def _returns(folder: pathlib.Path, file: str, lidars: tuple, others: tuple) -> tuple[np.ndarray, np.ndarray]:
    """All first returns of a frame: points in the world [N, 3], and what they are projected to, [N, 6]."""
    vehicle_row, poses, projections = others
    pose = "[VehiclePoseComponent].world_from_vehicle.transform"
    world_T_vehicle = pose_of(parquet_row(folder / "vehicle_pose" / file, vehicle_row, (pose,))[pose], pose)
    poses, projections, points, places = dict(poses), dict(projections), [], []
    for laser, row in lidars:
        if laser not in projections:
            continue
        ranges = _range_image(folder / "lidar" / file, row, "[LiDARComponent]")[..., 0]
        vehicle = _vehicle_points(folder / "lidar_calibration" / file, laser, ranges)
        if laser in poses:
            moves = _range_image(folder / "lidar_pose" / file, poses[laser], "[LiDARPoseComponent]")
            world = _moved(vehicle, moves)
        else:
            world = rigid.move(world_T_vehicle, vehicle.reshape(-1, 3)).reshape(vehicle.shape)
        found = _range_image(
            folder / "lidar_camera_projection" / file, projections[laser], "[LiDARCameraProjectionComponent]"
        )
        if found.shape[:2] != ranges.shape or found.shape[2] != 6:
            raise BadRecord(f"{file}: laser {laser}: projections {found.shape} of a range image {ranges.shape}")
        points.append(world[ranges > 0])
        places.append(found[ranges > 0])
    if not points:
        raise common.Skip("the frame has no projection of lidar returns")
    return np.concatenate(points), np.concatenate(places)


def _range_image(path: pathlib.Path, row: int, component: str) -> np.ndarray:
    names = tuple(f"{component}.range_image_return1.{part}" for part in ("values", "shape"))
    values, shape = parquet_row(path, row, names).values()
    try:
        return np.reshape(values, np.asarray(shape, np.int64))
    except (ValueError, TypeError):
        raise BadRecord(f"{path}: row {row}: {names[0]} does not have the shape that it says") from None


def _row_of(path: pathlib.Path, key: str, value: int) -> int:
    keys = [found for (found,) in parquet_keys(path, (key,))]
    if value not in keys:
        raise BadRecord(f"{path}: no row where {key} is {value}")
    return keys.index(value)


def _vehicle_points(path: pathlib.Path, laser: int, ranges: np.ndarray) -> np.ndarray:
    """A range image [H, W] (m) -> points in the vehicle's frame [H, W, 3]."""
    prefix = "[LiDARCalibrationComponent]"
    names = [
        f"{prefix}.extrinsic.transform",
        *(f"{prefix}.beam_inclination.{part}" for part in ("min", "max", "values")),
    ]
    extrinsic, low, high, beams = parquet_row(path, _row_of(path, LASER, laser), tuple(names)).values()
    height, width = ranges.shape
    if beams is None or not len(beams):
        beams = low + (np.arange(height) + 0.5) / height * (high - low)
    if len(beams) != height:
        raise BadRecord(f"{path}: laser {laser} has {len(beams)} beams, its range image {height} rows")
    vehicle_T_lidar = pose_of(extrinsic, f"{path.name}: extrinsic of laser {laser}")
    up = np.asarray(beams, np.float64)[::-1, None]
    turn = np.arctan2(vehicle_T_lidar[1, 0], vehicle_T_lidar[0, 0])
    around = ((width - np.arange(width) - 0.5) / width * 2 - 1) * np.pi - turn
    flat = np.cos(up)
    rays = np.stack(np.broadcast_arrays(flat * np.cos(around), flat * np.sin(around), np.sin(up)), -1)
    return rigid.move(vehicle_T_lidar, (rays * ranges[..., None]).reshape(-1, 3)).reshape(height, width, 3)


def _moved(points: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """Points [H, W, 3] by each pixel's pose [H, W, 6]: roll, pitch, yaw (Rz Ry Rx) and x, y, z of world_T_vehicle."""
    if poses.shape != (*points.shape[:2], 6):
        raise BadRecord(f"poses {poses.shape} of a range image {points.shape[:2]}")
    (sr, sp, sy), (cr, cp, cy) = (np.moveaxis(f(poses[..., :3].astype(np.float64)), -1, 0) for f in (np.sin, np.cos))
    x, y, z = np.moveaxis(points, -1, 0)
    y, z = cr * y - sr * z, sr * y + cr * z
    x, z = cp * x + sp * z, cp * z - sp * x
    x, y = cy * x - sy * y, sy * x + cy * y
    return np.stack([x, y, z], -1) + poses[..., 3:]


def _in_camera(points, places, camera: int) -> tuple[np.ndarray, np.ndarray]:
    """The points that fall on a camera, and the pixels of its stored image."""
    found = [(points[places[:, c] == camera], places[places[:, c] == camera][:, [x, y]]) for c, x, y in PROJECTIONS]
    return np.concatenate([one for one, _ in found]), np.concatenate([at for _, at in found]).astype(np.float64)


def _camera(path: pathlib.Path, number: int, stored) -> tuple[Camera, Distortion, np.ndarray]:
    """The stored image's camera, its lens, and vehicle_T_cam in our axes."""
    prefix = "[CameraCalibrationComponent]"
    names = [f"{prefix}.intrinsic.{part}" for part in ("f_u", "f_v", "c_u", "c_v", "k1", "k2", "p1", "p2", "k3")]
    row = parquet_row(path, _row_of(path, CAMERA, number), (*names, f"{prefix}.extrinsic.transform"))
    fu, fv, cu, cv, *lens, extrinsic = row.values()
    camera = Camera(fu, fv, cu, cv, stored.width, stored.height).plausible(f"{path.name}: {CAMERAS[number]}")
    vehicle_T_cam = pose_of(extrinsic, f"{path.name}: extrinsic of {CAMERAS[number]}") @ inverse(CV_T_CAM)
    return camera, Distortion("opencv", tuple(lens)), vehicle_T_cam
