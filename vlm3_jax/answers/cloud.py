"""Depth answers as geometry: points with colours, and a dense map as a surface that is cut where depth jumps."""

import dataclasses

import numpy as np

from vlm3_jax.answers.values import Depth, ray_lengths

# Neighbours whose distances differ by more than this share belong to different things.
JUMP = 0.06
# Vertices of a surface at most: viewers on phones turn this many without stutter.
MOST_VERTICES = 400_000


@dataclasses.dataclass(frozen=True, eq=False)
class Cloud:
    """Points float32 [N, 3] in the camera's frame (x right, y down, z forward), metres; colours uint8 [N, 3].

    `uv` float32 [N, 2]: where they are in the image, 0 to 1 from its top left corner; `triangles` int32 [T, 3], facing
    the camera (counter-clockwise seen from it), none of single points.
    """

    points_m: np.ndarray
    colours: np.ndarray
    uv: np.ndarray
    triangles: np.ndarray


def of_depth(depth: Depth, pixels: np.ndarray) -> Cloud:
    """The dense map as a surface if there is one, else the points that have an answer. `pixels` uint8 [H, W, 3]."""
    return _surface(depth, pixels) if depth.dense is not None else _points(depth, pixels)


def _points(depth: Depth, pixels: np.ndarray) -> Cloud:
    known = np.isfinite(depth.distance_m)
    x, y = depth.points_px[known].T
    size = pixels.shape[1], pixels.shape[0]
    uv = (np.stack([x, y], -1) + 0.5) / size
    return Cloud(depth.points_m()[known].astype(np.float32), pixels[y, x], uv.astype(np.float32), _none())


def _surface(depth: Depth, pixels: np.ndarray) -> Cloud:
    distance = depth.dense.distance_m
    height, width = distance.shape
    step = max(1, int(np.ceil(np.sqrt(distance.size / MOST_VERTICES))))
    rows, columns = _spaced(height, step), _spaced(width, step)
    part = distance[np.ix_(rows, columns)]
    camera = depth.camera
    z = part / ray_lengths(camera)[np.ix_(rows, columns)]
    x = (columns - camera.cx) / camera.fx * z
    y = (rows[:, None] - camera.cy) / camera.fy * z
    known = np.isfinite(part)
    number = np.where(known, np.cumsum(known).reshape(known.shape) - 1, -1).astype(np.int32)
    uv = np.stack(np.broadcast_arrays((columns + 0.5) / width, (rows[:, None] + 0.5) / height), -1)
    return Cloud(
        np.stack([x, y, z], -1)[known].astype(np.float32),
        pixels[np.ix_(rows, columns)][known],
        uv[known].astype(np.float32),
        _triangles(number, part),
    )


def _spaced(count: int, step: int) -> np.ndarray:
    """Every `step`-th of `count`, the last one too, so that the surface reaches the image's edge."""
    chosen = np.arange(0, count, step)
    return chosen if chosen[-1] == count - 1 else np.append(chosen, count - 1)


def _triangles(number: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Two for each cell of the grid [h, w] whose corners have a number (not -1) and lie close together in depth."""
    a, b, c, d = number[:-1, :-1], number[:-1, 1:], number[1:, :-1], number[1:, 1:]
    with np.errstate(invalid="ignore", divide="ignore"):
        logs = np.log(distance)
    corners = logs[:-1, :-1], logs[:-1, 1:], logs[1:, :-1], logs[1:, 1:]
    found = []
    for (p, q, r), (i, j, k) in (((a, c, b), (0, 2, 1)), ((b, c, d), (1, 2, 3))):
        three = np.stack([corners[i], corners[j], corners[k]])
        # NaN compares false.
        near = three.max(0) - three.min(0) < np.log1p(JUMP)
        found.append(np.stack([p[near], q[near], r[near]], -1))
    return np.concatenate(found).astype(np.int32)


def _none() -> np.ndarray:
    return np.zeros((0, 3), np.int32)
