"""From lidar points in a camera's frame to labelled pixels."""

import numpy as np

from vlm3_jax.camera import Camera
from vlm3_jax.records import DepthPoints

# Nearer ones are the car itself, or hits on dirt; some sets put (0, 0, 0) where nothing came back.
NEAREST_M = 0.05


def depth_points(points_cam, camera: Camera, kind: str, floor: bool = False, last: bool = False) -> DepthPoints:
    """Points [N, 3] (m, camera axes) -> the pixels that they fall on, with their depth, row by row.

    Pixels are rounded to the nearest centre, and of several points in one the nearest stays. As some of DepthLM's
    curators do it, `floor`: pixels are truncated; `last`: the last point stays.
    """
    points = np.asarray(points_cam, np.float64)
    points = points[(points[:, 2] > NEAREST_M) & np.isfinite(points).all(-1)]
    places = camera.project(points)
    return at_pixels(np.floor(places) if floor else np.floor(places + 0.5), points, camera, kind, last)


def at_pixels(pixels, points_cam, camera: Camera, kind: str, last: bool = False) -> DepthPoints:
    """Points [N, 3] (m, camera axes) with their whole pixels [N, 2] -> the label; those outside the image go."""
    points, pixels = np.asarray(points_cam, np.float64), np.asarray(pixels, np.float64)
    there = camera.inside(pixels) & (points[:, 2] > NEAREST_M)
    pixels, points = pixels[there].astype(np.int32), points[there]
    place = pixels[:, 1].astype(np.int64) * camera.width + pixels[:, 0]
    order = np.lexsort((-np.arange(len(place)) if last else points[:, 2], place))
    first = order[np.unique(place[order], return_index=True)[1]]
    points = points[first]
    depth = points[:, 2] if kind == "z" else np.linalg.norm(points, axis=-1)
    return DepthPoints(pixels[first], depth.astype(np.float32), kind)
