"""Lens distortion as a map between rays and pixels of the stored image, for the models of OpenCV, COLMAP and Aria.

A model has two parts. Its chart takes a ray (x, y, z) to a plane: (x, y) / z of a pinhole, or theta (x, y) / r of an
equidistant fisheye, theta the angle to the axis and r = |(x, y)|. A polynomial then moves the point of the plane:
radially by a ratio T(s) / B(s) of s = a² + b², and by tangential (p1, p2) and thin-prism (sx, sy) terms. Pixels follow
from K. Pixels are those of `Camera`: (0, 0) is the centre of the first pixel, as in OpenCV; COLMAP's (0, 0) is its
corner.
"""

import dataclasses
import functools

import numpy as np
from numpy.polynomial import Polynomial

from vlm3_jax.camera import Camera
from vlm3_jax.errors import BadRecord
from vlm3_jax.shapes import Float

# How many parameters each model may have, in the order of the program that it is named after.
MODELS = {
    "pinhole": (0,),
    "opencv": (4, 5, 8, 12),  # k1 k2 p1 p2 [k3 [k4 k5 k6 [s1 s2 s3 s4]]]
    "fisheye": (4,),  # k1 k2 k3 k4
    "thin_prism_fisheye": (8,),  # k1 k2 p1 p2 k3 k4 sx1 sy1 (COLMAP)
    "fisheye624": (12,),  # k0 .. k5 p0 p1 s0 .. s3 (Project Aria)
}
# COLMAP's name: numbers of K (f cx cy, or fx fy cx cy), our model, and where its parameters stand among ours.
COLMAP = {
    "SIMPLE_PINHOLE": (3, "pinhole", ()),
    "PINHOLE": (4, "pinhole", ()),
    "SIMPLE_RADIAL": (3, "opencv", (0,)),
    "RADIAL": (3, "opencv", (0, 1)),
    "OPENCV": (4, "opencv", (0, 1, 2, 3)),
    "FULL_OPENCV": (4, "opencv", tuple(range(8))),
    "SIMPLE_RADIAL_FISHEYE": (3, "fisheye", (0,)),
    "RADIAL_FISHEYE": (3, "fisheye", (0, 1)),
    "OPENCV_FISHEYE": (4, "fisheye", (0, 1, 2, 3)),
    "THIN_PRISM_FISHEYE": (4, "thin_prism_fisheye", tuple(range(8))),
    "RAD_TAN_THIN_PRISM_FISHEYE": (4, "fisheye624", tuple(range(12))),
}
# Pinhole planes are looked at up to 89.9 degrees off the axis.
_WIDEST = np.tan(np.radians(89.9))
_STEPS = 30
_TOLERANCE = 1e-11


@dataclasses.dataclass(frozen=True)
class _Terms:
    """A model in common terms: coefficients of T and B by rising powers of s, p1 and p2, and (s, s²) of the prism.

    `late`: tangential and prism terms are of the point that the radial part has moved, not of the one before it.
    """

    fisheye: bool
    top: tuple[float, ...]
    bottom: tuple[float, ...] = (1.0,)
    p1: float = 0.0
    p2: float = 0.0
    prism_x: tuple[float, float] = (0.0, 0.0)
    prism_y: tuple[float, float] = (0.0, 0.0)
    late: bool = False


@dataclasses.dataclass(frozen=True)
class Lens:
    """A model of `MODELS` with its parameters. BadRecord for another model, or another number of parameters."""

    model: str = "pinhole"
    params: tuple[float, ...] = ()

    def __post_init__(self):
        if self.model not in MODELS:
            raise BadRecord(f"distortion model {self.model!r} is none of {', '.join(MODELS)}")
        params = tuple(float(p) for p in self.params)
        if len(params) not in MODELS[self.model] or not np.isfinite(params).all():
            counts = " or ".join(map(str, MODELS[self.model]))
            raise BadRecord(f"distortion model {self.model}: expected {counts} finite numbers, got {list(params)}")
        object.__setattr__(self, "params", params)

    @classmethod
    def from_colmap(cls, model: str, params, width: int, height: int) -> tuple[Camera, "Lens"]:
        """Camera and lens of a line of COLMAP's cameras, its half pixel taken off. BadRecord for other models."""
        if model not in COLMAP:
            raise BadRecord(f"camera model {model!r} of COLMAP is none of {', '.join(COLMAP)}")
        count, name, places = COLMAP[model]
        values = [float(v) for v in params]
        if len(values) != count + len(places):
            raise BadRecord(f"camera model {model}: expected {count + len(places)} numbers, got {len(values)}")
        fx, fy, cx, cy = values[:4] if count == 4 else (values[0], *values[:3])
        stored = np.zeros(next(n for n in MODELS[name] if n >= len(places)))
        stored[list(places)] = values[count:]
        return Camera(fx, fy, cx - 0.5, cy - 0.5, int(width), int(height)), cls(name, tuple(stored))

    @property
    def is_none(self) -> bool:
        """Whether it is a plain pinhole: nothing is distorted."""
        return self.model == "pinhole" or (self.model == "opencv" and not any(self.params))

    def project(self, points_m, camera: Camera) -> Float[np.ndarray, "N 2"]:
        """Points or rays in the camera frame [N, 3] -> pixels of the stored image, float64 [N, 2].

        NaN for what the model does not show: behind a pinhole, or so far out that the image would fold back on itself.
        """
        x, y, z = np.asarray(points_m, np.float64).reshape(-1, 3).T
        terms, radius = _terms(self), np.hypot(x, y)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            if terms.fisheye:
                scale = np.where(radius > 0, np.arctan2(radius, z) / radius, np.where(z > 0, 1 / z, np.nan))
            else:
                scale = np.where(z > 0, 1 / z, np.nan)
            a, b = x * scale, y * scale
            seen = np.hypot(a, b) <= _limit(self)
            u, v = _moved(terms, np.where(seen, a, np.nan), np.where(seen, b, np.nan))
        return np.stack([u * camera.fx + camera.cx, v * camera.fy + camera.cy], -1)

    def unproject(self, points_px, camera: Camera) -> Float[np.ndarray, "N 3"]:
        """Pixels of the stored image [N, 2] -> rays of length 1 in the camera frame, float64 [N, 3].

        Newton's method, to the precision of floats; NaN where no ray leads to the pixel.
        """
        points = np.asarray(points_px, np.float64).reshape(-1, 2)
        a, b = _moved_back(self, (points - [camera.cx, camera.cy]) / [camera.fx, camera.fy])
        radius = np.hypot(a, b)
        if _terms(self).fisheye:
            # sin(theta) / theta.
            scale = np.sinc(radius / np.pi)
            return np.stack([a * scale, b * scale, np.cos(radius)], -1)
        return np.stack([a, b, np.ones_like(a)], -1) / np.hypot(radius, 1)[:, None]


@functools.lru_cache(maxsize=256)
def _terms(lens: Lens) -> _Terms:
    p = lens.params
    match lens.model:
        case "pinhole":
            return _Terms(False, (1.0,))
        case "opencv":
            k1, k2, p1, p2, k3, k4, k5, k6, s1, s2, s3, s4 = p + (0.0,) * (12 - len(p))
            return _Terms(False, (1.0, k1, k2, k3), (1.0, k4, k5, k6), p1, p2, (s1, s2), (s3, s4))
        case "fisheye":
            return _Terms(True, (1.0, *p))
        case "thin_prism_fisheye":
            k1, k2, p1, p2, k3, k4, sx1, sy1 = p
            return _Terms(True, (1.0, k1, k2, k3, k4), p1=p1, p2=p2, prism_x=(sx1, 0.0), prism_y=(sy1, 0.0))
        case _:
            # Aria's p0 does what p2 does elsewhere.
            return _Terms(True, (1.0, *p[:6]), p1=p[7], p2=p[6], prism_x=p[8:10], prism_y=p[10:12], late=True)


@functools.lru_cache(maxsize=256)
def _limit(lens: Lens) -> float:
    """The radius in the plane of the chart up to which the radial part rises: beyond it the image folds back."""
    terms = _terms(lens)
    top, bottom, s = Polynomial(terms.top), Polynomial(terms.bottom), Polynomial([0, 1])
    # The sign of d(r T / B) / dr; where B is 0 the ratio has no value.
    slope = (top + 2 * s * top.deriv()) * bottom - 2 * s * top * bottom.deriv()
    roots = np.concatenate([slope.trim().roots(), bottom.trim().roots()])
    real = roots.real[(np.abs(roots.imag) <= 1e-9 * np.abs(roots)) & (roots.real > 0)]
    return float(np.sqrt(min([*real, np.pi**2 if terms.fisheye else np.inf])))


def _moved(terms: _Terms, a, b):
    """Where the polynomial takes points of the plane; of complex numbers too."""
    s = a * a + b * b
    radial = _value(terms.top, s) / _value(terms.bottom, s)
    u, v = a * radial, b * radial
    if terms.late:
        a, b = u, v
        s = a * a + b * b
    x1, x2 = terms.prism_x
    y1, y2 = terms.prism_y
    if not (terms.p1 or terms.p2 or x1 or x2 or y1 or y2):
        return u, v
    u = u + 2 * terms.p1 * a * b + terms.p2 * (s + 2 * a * a) + s * (x1 + x2 * s)
    v = v + 2 * terms.p2 * a * b + terms.p1 * (s + 2 * b * b) + s * (y1 + y2 * s)
    return u, v


def _value(coefficients, s):
    total = coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        total = total * s + coefficient
    return total


def _moved_back(lens: Lens, wanted):
    """The points (a, b) of the plane that `_moved` takes to `wanted` [N, 2]; NaN where it takes none."""
    terms, limit = _terms(lens), _limit(lens)
    if lens.is_none:
        return wanted[:, 0], wanted[:, 1]
    radius = np.hypot(*wanted.T)
    # The radial part alone, by a table, is near enough for Newton's steps to find the rest.
    radii = np.linspace(0, min(limit, _reach(terms, limit, np.nanmax(radius, initial=0.0))), 1024)
    with np.errstate(all="ignore"):
        near = np.interp(radius, radii * (_value(terms.top, radii**2) / _value(terms.bottom, radii**2)), radii)
        a, b = (wanted * np.where(radius > 0, near / radius, 1.0)[:, None]).T
        for _ in range(_STEPS):
            u, v = _moved(terms, a, b)
            ru, rv = u - wanted[:, 0], v - wanted[:, 1]
            if not (np.hypot(ru, rv) > 1e-14 * (1 + radius)).any():
                break
            # Derivatives by complex steps are exact to the last digit, and the same for every model.
            ua, va = (part.imag / 1e-30 for part in _moved(terms, a + 1e-30j, b))
            ub, vb = (part.imag / 1e-30 for part in _moved(terms, a, b + 1e-30j))
            det = ua * vb - ub * va
            step = np.stack([ru * vb - rv * ub, rv * ua - ru * va], -1) / det[:, None]
            length = np.hypot(*step.T)
            # Near the fold a full step would jump over it.
            step *= np.minimum(1, 0.5 * (np.hypot(a, b) + 0.1) / np.maximum(length, 1e-300))[:, None]
            a, b = a - step[:, 0], b - step[:, 1]
        u, v = _moved(terms, a, b)
        good = np.hypot(u - wanted[:, 0], v - wanted[:, 1]) <= _TOLERANCE * (1 + radius)
        good &= np.hypot(a, b) <= limit * (1 + 1e-9)
    return np.where(good, a, np.nan), np.where(good, b, np.nan)


def _reach(terms: _Terms, limit: float, radius: float) -> float:
    """A radius in the plane, not beyond the limit, that the radial part takes at least as far as `radius`."""
    reach = 1.0
    while reach < min(limit, _WIDEST) and reach * _value(terms.top, reach**2) / _value(terms.bottom, reach**2) < radius:
        reach *= 1.5
    return reach
