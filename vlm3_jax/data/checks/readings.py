"""A pair as it is told, and as it would be in the ways in which data go wrong; how well each explains the pair."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from vlm3_jax.camera import Camera
from vlm3_jax.data.checks.base import Depths, map_pixels
from vlm3_jax.records import Record

TOLD = "as told"
OPENGL = np.diag([1.0, -1, -1, 1])
# Depth carried over is met within this share.
MET = 0.02
# Rays that differ by less than this angle (radians) cross anywhere.
PARALLAX = 0.01


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
    """Cameras and camera-to-world poses of both views; the kind of depth (None: as told), and what multiplies it."""

    cameras: tuple[Camera, Camera]
    poses: tuple[np.ndarray, np.ndarray]
    kind: str | None = None
    scale: float = 1.0


def readings(record: Record, neighbour: Record | None = None) -> Iterator[tuple[str, Reading]]:
    """The pair as told first, then every other reading that applies; `neighbour`: the record that follows it."""
    cameras = tuple(record.cameras[:2])
    poses = tuple(np.asarray(view.world_T_cam, np.float64) for view in record.views[:2])
    told = Reading(cameras, poses)
    yield TOLD, told

    def changed(**fields):
        return dataclasses.replace(told, **fields)

    yield "poses inverted (world-to-camera)", changed(poses=tuple(map(np.linalg.inv, poses)))
    yield "rotations transposed", changed(poses=tuple(map(_transposed, poses)))
    yield "cameras with y up and z backward (OpenGL)", changed(poses=tuple(pose @ OPENGL for pose in poses))
    yield "the poses of the two views exchanged", changed(poses=poses[::-1])
    if cameras[0] != cameras[1]:
        exchanged = _with_intrinsics(*cameras), _with_intrinsics(*cameras[::-1])
        yield "the intrinsics of the two views exchanged", changed(cameras=exchanged)
    for step in (0.5, -0.5):
        moved = tuple(dataclasses.replace(c, cx=c.cx + step, cy=c.cy + step) for c in cameras)
        yield f"principal points moved by {step:+} px", changed(cameras=moved)
    for kind in sorted({stored.kind for stored in record.depth_maps}):
        other = "z" if kind == "distance" else "distance"
        yield f"depth as {other}", changed(kind=other)
    yield "depth divided by 1,000", changed(scale=1e-3)
    yield "depth times 1,000", changed(scale=1e3)
    if neighbour is not None:
        second = np.asarray(neighbour.views[1].world_T_cam, np.float64)
        yield "the second pose of the next record", changed(poses=(poses[0], second))


def _transposed(pose: np.ndarray) -> np.ndarray:
    turned = pose.copy()
    turned[:3, :3] = pose[:3, :3].T
    return turned


def _with_intrinsics(camera: Camera, other: Camera) -> Camera:
    return dataclasses.replace(camera, fx=other.fx, fy=other.fy, cx=other.cx, cy=other.cy)


def epipolar_px(points0_px, points1_px, reading: Reading) -> np.ndarray | None:
    """How far matches [N, 2] are from each other's epipolar lines, the mean of both views, px [N].

    A match that would lie behind a camera is off by the image's diagonal. None if the cameras stand at one place, where
    there are no such lines.
    """
    moved = np.linalg.inv(reading.poses[1]) @ reading.poses[0]
    R, t = moved[:3, :3], moved[:3, 3]
    length = np.linalg.norm(t)
    if not length > 1e-6 * (1e-3 + np.abs(reading.poses[0][:3, 3]).max()):
        return None
    t = t / length
    first, second = (camera.rays(points) for camera, points in zip(reading.cameras, (points0_px, points1_px)))
    turned = first @ R.T
    # (a, b, c) of the lines in pixels, by the inverse of K.
    lines1 = np.cross(t, turned) @ np.linalg.inv(reading.cameras[1].matrix)
    lines0 = np.cross(second, t) @ R @ np.linalg.inv(reading.cameras[0].matrix)
    value = np.abs((np.cross(t, turned) * second).sum(-1))
    with np.errstate(divide="ignore", invalid="ignore"):
        off = (value / np.hypot(*lines1[:, :2].T) + value / np.hypot(*lines0[:, :2].T)) / 2
        # z1 second = z0 turned + t; with next to no parallax the signs are chance.
        across = np.cross(second, turned)
        clear = np.linalg.norm(across, axis=-1) > PARALLAX
        z0 = -(np.cross(second, t) * across).sum(-1)
        z1 = -(np.cross(turned, t) * across).sum(-1)
    far = np.hypot(reading.cameras[1].width, reading.cameras[1].height)
    return np.where(clear & ((z0 < 0) | (z1 < 0)), far, np.minimum(off, far))


def met(labels: Depths, other_map: np.ndarray, other_kind: str, reading: Reading) -> float:
    """The share of a view's points whose depth, carried into the other view, is what that view's map holds there.

    What lies outside the other image, behind it, or where the map holds nothing is not met.
    """
    view, other = labels.view, 1 - labels.view
    camera, far = reading.cameras[view], reading.cameras[other]
    z = dataclasses.replace(labels, camera=camera).z_m(reading.kind)
    moved = np.linalg.inv(reading.poses[other]) @ reading.poses[view]
    there = camera.rays(labels.points_px) * (reading.scale * z)[:, None] @ moved[:3, :3].T + moved[:3, 3]
    there = there[there[:, 2] > 1e-9]
    cells = np.rint(map_pixels(far.project(there), other_map.shape, far))
    inside = ((cells >= 0) & (cells < other_map.shape[::-1])).all(-1)
    columns, rows = cells[inside].astype(int).T
    expected = there[inside, 2] if (reading.kind or other_kind) == "z" else np.linalg.norm(there[inside], axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float((np.abs(reading.scale * other_map[rows, columns] / expected - 1) < MET).sum() / len(z))
