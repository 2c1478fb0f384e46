"""A tiny analytic world, ray-cast in numpy: what fixtures of data sets show. Independent of the package it checks.

World axes: x right, y down, z forward, metres; someone at the origin looks along z, 1.5 m above the ground. There are a
floor, four walls (open above: sky), and boxes around. Pixel (0, 0) is the centre of the first pixel everywhere here.
"""

import typing

import numpy as np


class Seen(typing.NamedTuple):
    """What rays hit: `rgb` uint8 [..., 3], `z` and `distance` float64 [...], metres, inf where nothing is."""

    rgb: np.ndarray
    z: np.ndarray
    distance: np.ndarray


def _box(centre, size, yaw_deg: float):
    """The six faces of a box, as (corner, edge, edge)."""
    turn = rotation(yaw_deg)
    axes = turn * (np.array(size) / 2)
    for k in range(3):
        a, b, c = axes[:, k], axes[:, (k + 1) % 3], axes[:, (k + 2) % 3]
        for sign in (1, -1):
            yield np.array(centre) + sign * a - b - c, 2 * b, 2 * c


def rotation(yaw_deg: float = 0, pitch_deg: float = 0, roll_deg: float = 0) -> np.ndarray:
    """Ry(yaw) Rx(pitch) Rz(roll), [3, 3]."""
    (sy, sp, sr), (cy, cp, cr) = (f(np.radians([yaw_deg, pitch_deg, roll_deg])) for f in (np.sin, np.cos))
    yaw = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    pitch = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    return yaw @ pitch @ np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])


def pose(x: float = 0, y: float = 0, z: float = 0, yaw: float = 0, pitch: float = 0, roll: float = 0) -> np.ndarray:
    """A camera-to-world matrix [4, 4]; degrees, yaw > 0 turns right, pitch > 0 looks up."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation(yaw, pitch, roll), (x, y, z)
    return matrix


_GROUND, _TOP = 1.5, -0.9
_CORNERS = np.array([[-4.0, 6.5], [5.0, 7.5], [5.5, -5.0], [-3.5, -6.0]])


def _faces():
    yield np.array([-20, _GROUND, -20.0]), np.array([40.0, 0, 0]), np.array([0, 0, 40.0])
    for (x0, z0), (x1, z1) in zip(_CORNERS, np.roll(_CORNERS, -1, 0), strict=True):
        yield np.array([x0, _TOP, z0]), np.array([x1 - x0, 0, z1 - z0]), np.array([0, _GROUND - _TOP, 0])
    yield from _box((0.7, 0.9, 3.2), (1.0, 1.2, 0.8), 25)
    yield from _box((-1.6, 0.3, 4.5), (0.9, 2.4, 0.9), -15)
    yield from _box((3.0, 0.7, 0.8), (1.1, 1.6, 1.4), 40)
    yield from _box((-2.2, 0.8, -0.6), (0.8, 1.4, 1.2), 10)
    yield from _box((0.6, 0.6, -3.4), (1.3, 1.8, 0.9), -30)


_CORNER, _EDGE_A, _EDGE_B = (np.array(parts) for parts in zip(*_faces(), strict=True))
_NORMAL = np.cross(_EDGE_A, _EDGE_B)
_WAVES = np.random.default_rng(7).uniform(-1, 1, (2, 3, 3)) * np.array([4.0, 11.0])[:, None, None]
# Rays worked on at once.
_BLOCK = 8192
_SHADES = np.random.default_rng(8).uniform(-40, 40, (len(_CORNER), 3))


def render(rays_cam, world_T_cam=None) -> Seen:
    """What a camera sees along each of its rays [..., 3] (any length, in camera axes; NaN hits nothing)."""
    matrix = np.eye(4) if world_T_cam is None else np.asarray(world_T_cam, np.float64)
    rays = np.asarray(rays_cam, np.float64)
    shape, flat = rays.shape[:-1], np.nan_to_num(rays.reshape(-1, 3))
    parts = [_render(flat[at : at + _BLOCK], matrix) for at in range(0, max(len(flat), 1), _BLOCK)]
    rgb, z, distance = (np.concatenate(values) for values in zip(*parts, strict=True))
    return Seen(rgb.reshape(*shape, 3), z.reshape(shape), distance.reshape(shape))


def _render(flat, matrix) -> Seen:
    origin, directions = matrix[:3, 3], flat @ matrix[:3, :3].T
    with np.errstate(divide="ignore", invalid="ignore"):
        t = ((_CORNER - origin) * _NORMAL).sum(-1) / (directions @ _NORMAL.T)
        hits = origin + t[..., None] * directions[:, None] - _CORNER
        a = (hits * _EDGE_A).sum(-1) / (_EDGE_A**2).sum(-1)
        b = (hits * _EDGE_B).sum(-1) / (_EDGE_B**2).sum(-1)
        right = (t > 1e-9) & (a >= 0) & (a <= 1) & (b >= 0) & (b <= 1)
    t = np.where(right, t, np.inf)
    face, t = t.argmin(-1), t.min(-1)
    hit = np.isfinite(t)
    points = origin + np.where(hit, t, 0)[:, None] * directions
    z = np.where(hit, np.where(hit, t, 0) * flat[:, 2], np.inf)
    distance = np.where(hit, np.where(hit, t, 0) * np.linalg.norm(flat, axis=-1), np.inf)
    rgb = np.where(hit[:, None], _colours(points, face), [120, 160, 220])
    return Seen(rgb.astype(np.uint8), z, distance)


def _colours(points, face) -> np.ndarray:
    """Smooth waves through space, so that the same point has one colour from everywhere; [N, 3] of 0..255."""
    coarse, fine = (np.sin(points @ waves.T) for waves in _WAVES)
    return np.clip(125 + 55 * coarse + 25 * fine + _SHADES[face], 0, 255)


def pixels(width: int, height: int) -> np.ndarray:
    """(x, y) of every pixel's centre, float64 [H, W, 2]."""
    return np.stack(np.meshgrid(np.arange(width, dtype=float), np.arange(height, dtype=float)), -1)


def pinhole(fx, fy, cx, cy, width: int, height: int, distort=None) -> np.ndarray:
    """The rays of all pixels [H, W, 3], z = 1. `distort`: of normalised points [N, 2] to where the lens puts them."""
    xy = (pixels(width, height) - [cx, cy]) / [fx, fy]
    if distort is not None:
        xy = invert(distort, xy.reshape(-1, 2)).reshape(xy.shape)
    return np.concatenate([xy, np.ones_like(xy[..., :1])], -1)


def invert(distort, wanted) -> np.ndarray:
    """The points [N, 2] that `distort` takes to `wanted`, by Newton's method with differences."""
    points, step = np.array(wanted), 1e-6
    for _ in range(30):
        value = distort(points)
        dx = (distort(points + np.array([step, 0])) - value) / step
        dy = (distort(points + np.array([0, step])) - value) / step
        jacobian = np.stack([dx, dy], -1)
        points = points - np.linalg.solve(jacobian, (value - wanted)[..., None])[..., 0]
    assert np.abs(distort(points) - wanted).max() < 1e-9, "the distortion has no inverse here"
    return points


def opencv(k1=0.0, k2=0.0, p1=0.0, p2=0.0, k3=0.0):
    """OpenCV's radial and tangential distortion of normalised points [N, 2]."""

    def distort(points):
        x, y = points[..., 0], points[..., 1]
        r2 = x * x + y * y
        radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
        return np.stack(
            [
                x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
                y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
            ],
            -1,
        )

    return distort


def fisheye(k1=0.0, k2=0.0, k3=0.0, k4=0.0):
    """OpenCV's fisheye distortion of normalised points [N, 2]: the image radius is theta (1 + k1 theta^2 + ...)."""

    def distort(points):
        r = np.maximum(np.linalg.norm(points, axis=-1), 1e-12)
        theta = np.arctan(r)
        bent = theta * (1 + k1 * theta**2 + k2 * theta**4 + k3 * theta**6 + k4 * theta**8)
        return points * (bent / r)[..., None]

    return distort


def fisheye_angles(distort):
    """A fisheye's `distort` of points x / z, y / z as one of angles to the axis [N, 2], which reach any direction."""

    def bend(angles):
        theta = np.maximum(np.linalg.norm(angles, axis=-1, keepdims=True), 1e-12)
        return distort(angles / theta * np.tan(theta))

    return bend


def thin_prism_fisheye(k1=0.0, k2=0.0, p1=0.0, p2=0.0, k3=0.0, k4=0.0, sx1=0.0, sy1=0.0):
    """COLMAP's THIN_PRISM_FISHEYE, its order of parameters, of normalised points [N, 2].

    Points are first moved to the radius theta; radial, tangential and thin-prism terms are of those.
    """

    def distort(points):
        r = np.maximum(np.linalg.norm(points, axis=-1), 1e-12)
        u, v = np.moveaxis(points * (np.arctan(r) / r)[..., None], -1, 0)
        r2 = u * u + v * v
        radial = k1 * r2 + k2 * r2**2 + k3 * r2**3 + k4 * r2**4
        return np.stack(
            [
                u + u * radial + 2 * p1 * u * v + p2 * (r2 + 2 * u * u) + sx1 * r2,
                v + v * radial + 2 * p2 * u * v + p1 * (r2 + 2 * v * v) + sy1 * r2,
            ],
            -1,
        )

    return distort


def sweep(columns: int = 180, rows: int = 24, low_deg: float = -25.0, high_deg: float = 12.0) -> np.ndarray:
    """Unit directions of a turning lidar [rows * columns, 3] in axes x forward, y left, z up."""
    azimuth = np.radians(np.arange(columns) * 360 / columns + 0.3)
    up = np.radians(np.linspace(low_deg, high_deg, rows))[:, None]
    flat = np.stack(np.broadcast_arrays(np.cos(up) * np.cos(azimuth), np.cos(up) * np.sin(azimuth), np.sin(up)), -1)
    return flat.reshape(-1, 3)


FORWARD_LEFT_UP = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
"""camera_T_vehicle of axes alone: coordinates (forward, left, up) as (right, down, forward)."""


def lidar_points(world_T_lidar, directions) -> np.ndarray:
    """Hits [N, 3] in the lidar's own axes of its unit `directions` [M, 3]; `world_T_lidar` takes these to the world."""
    distance = render(directions, world_T_lidar).distance
    hit = np.isfinite(distance)
    return directions[hit] * distance[hit, None]
