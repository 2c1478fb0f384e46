"""Pinhole cameras, resize rules (among them focal-length unification) and normalised image coordinates.

Pixels are (x right, y down) with the origin at the top-left; a camera frame is x right, y down, z forward (OpenCV).
Source: VLM3 release and DepthLM (unification, normalised coordinates); conventions are in docs/conventions.md.
"""

import dataclasses

import numpy as np

from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.shapes import Bool, Float, Int

POLICIES = ("uniform", "per_axis")
# Degrees, across and down. Focal lengths in other units than pixels of the image (normalised ones, millimetres) come
# out close to 180 or to 0, and images resized by them would not fit any memory.
FOV_DEG = (1.0, 170.0)


@dataclasses.dataclass(frozen=True)
class Camera:
    """Intrinsics in pixels of an image of `width` x `height` pixels.

    The image size belongs to the camera because every change of the image (resize, crop) changes both.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int

    def __post_init__(self):
        if not (self.fx > 0 and self.fy > 0 and np.isfinite([self.fx, self.fy, self.cx, self.cy]).all()):
            raise BadRecord(f"camera: focal lengths must be positive and finite, got {self}")
        if self.width < 1 or self.height < 1:
            raise BadRecord(f"camera: image size must be at least 1 x 1, got {self.width} x {self.height}")

    @classmethod
    def from_intrinsics(cls, intrinsics) -> "Camera":
        """From DepthLM's `[fx, fy, cx, cy, W, H]`; a focal length of 0 means "the same as the other one"."""
        values = [float(v) for v in intrinsics]
        if len(values) != 6:
            raise BadRecord(f"intrinsics: expected [fx, fy, cx, cy, W, H], got {len(values)} numbers")
        if not np.isfinite(values).all():
            raise BadRecord("intrinsics: not finite")
        fx, fy, cx, cy, width, height = values
        return cls(fx or fy, fy or fx, cx, cy, int(width), int(height)).plausible("intrinsics")

    @classmethod
    def from_fields(cls, tree) -> "Camera | None":
        """From what a file holds, the numbers of its fields by name; None if `tree` is not that."""
        names = [field.name for field in dataclasses.fields(cls)]
        good = isinstance(tree, dict) and all(type(tree.get(name)) in (int, float) for name in names)
        return cls(*(tree[name] for name in names)) if good else None

    @classmethod
    def from_fov(cls, width: int, height: int, horizontal_fov_deg: float) -> "Camera":
        """Square pixels, centred principal point; for photos whose camera is only roughly known."""
        focal = float(width / 2 / np.tan(np.radians(horizontal_fov_deg) / 2))
        return cls(focal, focal, width / 2, height / 2, width, height)

    @property
    def matrix(self) -> Float[np.ndarray, "3 3"]:
        """K, float64 [3, 3]."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]], np.float64)

    def unify(self, focal: float, policy: str = "uniform") -> "Camera":
        """The camera of the image resized to focal length `focal` (px).

        `uniform` scales both axes by focal / fx and truncates the size, as the VLM3 release does (fx != fy survives);
        `per_axis` scales each axis by its own focal length and rounds, as the multi-view data do (fx = fy there).
        """
        if policy == "uniform":
            sx = sy = focal / self.fx
            size = int(self.width * sx), int(self.height * sy)
        elif policy == "per_axis":
            sx, sy = focal / self.fx, focal / self.fy
            size = round(self.width * sx), round(self.height * sy)
        else:
            raise ValueError(f"unknown unification policy {policy!r}; choose one of {POLICIES}")
        return Camera(self.fx * sx, self.fy * sy, self.cx * sx, self.cy * sy, *size)

    def crop(self, left: int, top: int, width: int, height: int) -> "Camera":
        """The camera of the image cut to the given box (px)."""
        return Camera(self.fx, self.fy, self.cx - left, self.cy - top, width, height)

    def map_points(self, points_px, to: "Camera") -> Int[np.ndarray, "N 2"]:
        """Integer pixels of this image [N, 2] -> integer pixels of camera `to`'s image (truncated, as released)."""
        points = np.asarray(points_px, np.float64).reshape(-1, 2)
        x = (points[:, 0] - self.cx) * to.fx / self.fx + to.cx
        y = (points[:, 1] - self.cy) * to.fy / self.fy + to.cy
        # A whole number may come out as 6.999999...: snap before truncating. floor keeps points left of a crop outside.
        return np.floor(np.stack([x, y], -1) + 1e-9).astype(np.int64)

    def plausible(self, name: str = "camera") -> "Camera":
        """The camera; BadRecord, calling it `name`, if its numbers cannot be pixels. For what comes from outside.

        No photo has a field of view beyond `FOV_DEG`, taken as if the principal point were in the middle, so that one
        in other units hides nothing; and none has its principal point in its first pixel.
        """
        fov = [2 * np.degrees(np.arctan2(n / 2, f)) for n, f in ((self.width, self.fx), (self.height, self.fy))]
        if not all(FOV_DEG[0] <= angle <= FOV_DEG[1] for angle in fov):
            raise BadRecord(
                f"{name}: implausible field of view, {fov[0]:.1f} x {fov[1]:.1f} degrees (focal lengths {self.fx:g}, "
                f"{self.fy:g} of an image of {self.width} x {self.height}); give focal lengths in pixels of that image"
            )
        if 0 < self.cx <= 1 and 0 < self.cy <= 1:
            raise BadRecord(
                f"{name}: its principal point ({self.cx:g}, {self.cy:g}) is in the corner of an image of "
                f"{self.width} x {self.height}; give it in pixels"
            )
        return self

    def inside(self, points_px) -> Bool[np.ndarray, " N"]:
        """Which points [N, 2] (px) lie in the image, bool [N]: 0 <= x <= width - 1, likewise y."""
        points = np.asarray(points_px).reshape(-1, 2)
        return ((points >= 0) & (points <= [self.width - 1, self.height - 1])).all(-1)

    def rays(self, points_px) -> Float[np.ndarray, "N 3"]:
        """K^-1 (u, v, 1) of each point, float64 [N, 3]: z = 1, so depth along z times the ray is the 3-D point."""
        points = np.asarray(points_px, np.float64).reshape(-1, 2)
        return np.stack(
            [(points[:, 0] - self.cx) / self.fx, (points[:, 1] - self.cy) / self.fy, np.ones(len(points))], -1
        )

    def distance_from_z(self, points_px, z_m) -> np.ndarray:
        """z-depth (m) -> Euclidean distance to the camera centre (m)."""
        return np.asarray(z_m, np.float64) * np.linalg.norm(self.rays(points_px), axis=-1)

    def z_from_distance(self, points_px, distance_m) -> np.ndarray:
        """Euclidean distance to the camera centre (m) -> z-depth (m)."""
        return np.asarray(distance_m, np.float64) / np.linalg.norm(self.rays(points_px), axis=-1)

    def project(self, points_m) -> Float[np.ndarray, "N 2"]:
        """Points in the camera frame (m) [N, 3] -> pixels, float64 [N, 2]; points must lie in front (z > 0)."""
        points = np.asarray(points_m, np.float64).reshape(-1, 3)
        return np.stack(
            [points[:, 0] / points[:, 2] * self.fx + self.cx, points[:, 1] / points[:, 2] * self.fy + self.cy], -1
        )


def as_camera(value, width: int, height: int, name: str = "camera") -> Camera:
    """A `Camera`, or the 3 x 3 matrix K in pixels, of an image of `width` x `height` px. UserError names what is wrong.

    For what users hand over: of another image's size, or with an implausible field of view, it is refused.
    """
    if not isinstance(value, Camera):
        try:
            K = np.asarray(value, np.float64)
        except (TypeError, ValueError):
            K = np.zeros(0)
        if K.shape != (3, 3):
            what = f"an array of shape {list(K.shape)}" if K.size else type(value).__name__
            raise UserError(f"{name}: expected a vlm3_jax.camera.Camera or a 3 x 3 matrix K in pixels, got {what}")
        straight = K[2].tolist() == [0, 0, 1] and not K[1, 0] and abs(K[0, 1]) <= 1e-3 * K[0, 0]
        if not (np.isfinite(K).all() and straight and min(K[0, 0], K[1, 1]) > 0):
            raise UserError(
                f"{name}: K must be [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] with fx and fy above 0, got {K.tolist()}"
            )
        value = Camera(float(K[0, 0]), float(K[1, 1]), float(K[0, 2]), float(K[1, 2]), width, height)
    if (value.width, value.height) != (width, height):
        raise UserError(f"{name}: it is for {value.width} x {value.height} px, the image has {width} x {height}")
    return value.plausible(name)


def as_points(values, width: int, height: int, name: str = "points", edge: int = 0) -> Int[np.ndarray, "N 2"]:
    """Pixels as users hand them over, [N, 2] or one (x, y), truncated to int64 [N, 2].

    UserError if they are not inside (`edge`: so many pixels beyond the last ones count as inside), or fractions of the
    image: all of those would be its first pixel.
    """
    try:
        points = np.asarray(values)
    except ValueError:
        points = np.zeros(0)
    points = points[None] if points.shape == (2,) else points
    if points.ndim != 2 or points.shape[1] != 2 or not len(points) or points.dtype.kind not in "iuf":
        got = f"an array of {points.dtype}, shape {list(points.shape)}" if points.size else "none"
        raise UserError(f"{name}: expected pixels (x, y), an array of numbers of shape [N, 2], got {got}")
    outside = np.flatnonzero(~((points >= 0) & (points < [width + edge, height + edge])).all(1))
    if len(outside):
        raise UserError(
            f"{name}[{outside[0]}]: ({', '.join(f'{v:g}' for v in points[outside[0]])}) is not in the image of "
            f"{width} x {height} px ({len(outside)} of {len(points)} points are not)"
        )
    if (points <= 1).all() and (points % 1).any():
        raise UserError(f"{name}: all lie between 0 and 1; give pixels, not fractions of the image")
    return points.astype(np.int64)


def as_boxes(values, width: int, height: int, name: str = "boxes") -> Int[np.ndarray, "N 4"]:
    """Boxes x1, y1, x2, y2 (px) as users hand them over, truncated to int64 [N, 4].

    The second corner may lie on the image's edge, behind its last pixel. UserError if a box is empty or not inside.
    """
    corners = np.reshape(values, (-1, 2)) if np.size(values) and np.size(values) % 4 == 0 else values
    boxes = as_points(corners, width, height, name, edge=1).reshape(-1, 4)
    empty = np.flatnonzero((boxes[:, :2] >= boxes[:, 2:]).any(1))
    if len(empty):
        raise UserError(
            f"{name}[{empty[0]}]: {boxes[empty[0]].tolist()} is no box; write x1, y1 (left, top), then x2, y2 (right, "
            "bottom), in pixels"
        )
    return boxes


def grid_points(grid, width: int, height: int) -> Int[np.ndarray, "N 2"]:
    """The middles of a grid of (columns, rows) on an image, px, int64 [N, 2] row by row. UserError if it is none."""
    size = width, height
    if (
        not isinstance(grid, tuple | list)
        or len(grid) != 2
        or not all(isinstance(n, int | np.integer) and 1 <= n <= side for n, side in zip(grid, size))
    ):
        raise UserError(f"grid: expected columns and rows, at most one a pixel of the image, got {grid!r}")
    columns, rows = ((np.arange(n) + 0.5) * side / n for n, side in zip(grid, size))
    return np.stack(np.meshgrid(columns, rows), -1).reshape(-1, 2).astype(np.int64)


@dataclasses.dataclass(frozen=True)
class Focal:
    """Resize to one focal length of `px` pixels by `Camera.unify`; text form "focal:1000" or "focal:750:per_axis"."""

    px: float = 1000.0
    policy: str = "uniform"

    def __post_init__(self):
        if not 0 < self.px < np.inf or self.policy not in POLICIES:
            raise ValueError(f"{self} needs a focal length above 0 px and a policy of {POLICIES}")

    def camera(self, camera: Camera) -> Camera:
        """The camera of the resized image."""
        return camera.unify(self.px, self.policy)

    def __str__(self):
        return f"focal:{self.px:g}" + ("" if self.policy == "uniform" else f":{self.policy}")


@dataclasses.dataclass(frozen=True)
class Longest:
    """Resize so that the longer side has `px` pixels and round the other (VLM3 release); text form "longest:1024"."""

    px: int = 1024

    def __post_init__(self):
        if type(self.px) is not int or self.px < 1:
            raise ValueError(f"{self} needs a whole number of at least 1 px")

    def camera(self, camera: Camera) -> Camera:
        """The camera of the resized image."""
        scale = self.px / max(camera.width, camera.height)
        size = (max(1, round(side * scale)) for side in (camera.width, camera.height))
        return Camera(camera.fx * scale, camera.fy * scale, camera.cx * scale, camera.cy * scale, *size)

    def __str__(self):
        return f"longest:{self.px}"


@dataclasses.dataclass(frozen=True)
class AtMost(Longest):
    """As `Longest`, but an image that is no larger stays as it is; text form "at_most:1024"."""

    def camera(self, camera: Camera) -> Camera:
        """The camera of the resized image."""
        return super().camera(camera) if max(camera.width, camera.height) > self.px else camera

    def __str__(self):
        return f"at_most:{self.px}"


@dataclasses.dataclass(frozen=True)
class AsIs:
    """No resize; text form "as_is"."""

    def camera(self, camera: Camera) -> Camera:
        """The camera itself."""
        return camera

    def __str__(self):
        return "as_is"


Resize = Focal | Longest | AsIs


def resize_rule(text: str) -> Resize:
    """The rule that a text form stands for. ValueError if it is none."""
    kind, *values = text.split(":")
    try:
        if kind == "focal" and len(values) in (1, 2):
            return Focal(float(values[0]), *values[1:])
        if kind == "longest" and len(values) == 1:
            return Longest(int(values[0]))
        if kind == "at_most" and len(values) == 1:
            return AtMost(int(values[0]))
        if kind == "as_is" and not values:
            return AsIs()
    except ValueError:
        pass
    raise ValueError(
        f"resize is {text!r}; write focal:PX, focal:PX:per_axis, longest:PX, at_most:PX or as_is (such as "
        "focal:1000, longest:1024)"
    )


def normalize_points(points_px, size, coord_range: int) -> Int[np.ndarray, "N 2"]:
    """Pixels [N, 2] of an image of `size` (width, height) -> integers in [0, coord_range - 1].

    `round(x * R / W)` with halves to even, no half-pixel and no W - 1: to the character what the release writes.
    """
    points = np.asarray(points_px, np.float64).reshape(-1, 2)
    scaled = np.rint(points * coord_range / np.asarray(size, np.float64))
    return np.clip(scaled, 0, coord_range - 1).astype(np.int64)


def denormalize_points(points, size, coord_range: int) -> Float[np.ndarray, "N 2"]:
    """Normalised coordinates [N, 2] -> pixels, float64 [N, 2], of an image of `size` (width, height)."""
    points = np.asarray(points, np.float64).reshape(-1, 2)
    return points * np.asarray(size, np.float64) / coord_range
