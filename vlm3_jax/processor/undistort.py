"""Undistortion: images, depth maps and points of a distorted camera as those of a pinhole camera.

The pinhole keeps the focal lengths of the stored image, and its principal point where it is, off-centre or not: what
is lost is an edge, never sharpness. Depth keeps its values (z and distance alike: the centre and the axes stay).
"""

import dataclasses
import functools

import numpy as np

from vlm3_jax.camera import Camera
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.processor.lens import Lens
from vlm3_jax.shapes import Bool, Float

# A pinhole image stretches towards its corners, so rays farther off the axis are cut away: 120 degrees to see.
MAX_ANGLE_DEG = 60.0
# Pixels whose places are computed at a time.
BLOCK_PIXELS = 1 << 18


@dataclasses.dataclass(frozen=True)
class Distortion(Lens):
    """A lens whose distortion is removed.

    `camera`: that of the stored image. `new`: the pinhole camera to remove it for, `cropped(camera)` if None.
    """

    def remove(
        self, image: np.ndarray, camera: Camera, new: Camera | None = None, sampling: str = "bicubic"
    ) -> tuple[np.ndarray, Camera]:
        """An image uint8 [H, W] or [H, W, 3] as the pinhole camera sees it, and that camera.

        `sampling`: "bicubic" or "bilinear", by OpenCV; "nearest" for depth, masks and ids [H, W, ...] of any type. 0
        where the stored image shows nothing. What `new` shows much smaller aliases: resize afterwards instead.
        BadRecord if the image has not the camera's size, or no part of it can be freed of distortion; UserError without
        OpenCV.
        """
        if image.shape[:2] != (camera.height, camera.width):
            size = f"{image.shape[1]} x {image.shape[0]}"
            raise BadRecord(f"an image of {size} px, its camera is for {camera.width} x {camera.height}")
        new = new or self.cropped(camera)
        if self.is_none and new == camera:
            return image, new
        if sampling == "nearest":
            moved = image.reshape(-1, *image.shape[2:])[_nearest(self, camera, new)]
        else:
            moved = _sampled(image, *_map(self, camera, new)[:2], sampling)
        moved[~self.seen(camera, new)] = 0
        return moved, new

    def undistort_points(self, points_px, camera: Camera, new: Camera | None = None) -> Float[np.ndarray, "N 2"]:
        """Pixels of the stored image [N, 2] -> pixels of the pinhole's, float64 [N, 2]; NaN where there is none."""
        new, rays = new or self.cropped(camera), self.unproject(points_px, camera)
        rays[~(rays[:, 2] > 1e-9)] = np.nan
        return rays[:, :2] / rays[:, 2:] * [new.fx, new.fy] + [new.cx, new.cy]

    def distort_points(self, points_px, camera: Camera, new: Camera | None = None) -> Float[np.ndarray, "N 2"]:
        """Pixels of the pinhole's image [N, 2] -> pixels of the stored one, float64 [N, 2]: the inverse."""
        return self.project((new or self.cropped(camera)).rays(points_px), camera)

    def seen(self, camera: Camera, new: Camera) -> Bool[np.ndarray, "height width"]:
        """Which pixels of `new` the stored image shows."""
        return _map(self, camera, new)[2]

    def cropped(self, camera: Camera, centred: bool = False) -> Camera:
        """The pinhole of the same focal lengths that sees a box, as large as it can be, without an empty pixel.

        The principal point stays where it is in the scene; `centred` cuts more, so that it is the image's middle.
        BadRecord if no such box is left.
        """
        return _cropped(self, camera, centred)

    def fitted(self, camera: Camera, width: int, height: int, alpha: float = 0.0, centred: bool = False) -> Camera:
        """The pinhole of `width` x `height` px that OpenCV's getOptimalNewCameraMatrix gives: other focal lengths.

        `alpha` 0: stretched so that no pixel is empty; 1: so that none is lost. `centred`: one factor for both focal
        lengths, and the principal point in the middle. It tells the camera of images that others have undistorted so.
        """
        across, down = (np.linspace(0, size - 1, 9) for size in (camera.width, camera.height))
        rays = self.unproject(np.stack(np.meshgrid(across, down), -1), camera)
        x, y = (rays[:, axis].reshape(9, 9) / rays[:, 2].reshape(9, 9) for axis in (0, 1))
        inner = np.array([x[:, 0].max(), y[0].max(), x[:, -1].min(), y[-1].min()])
        outer = np.array([x.min(), y.min(), x.max(), y.max()])
        middle = np.array([width - 1, height - 1]) / 2
        if centred:
            focal = np.array([camera.fx, camera.fy])
            fill, keep = (np.tile(middle / focal, 2) / np.abs(box) for box in (inner, outer))
            focal, centre = focal * (fill.max() * (1 - alpha) + keep.min() * alpha), middle
        else:
            fill, keep = (2 * middle / (box[2:] - box[:2]) for box in (inner, outer))
            focal = fill * (1 - alpha) + keep * alpha
            centre = -fill * inner[:2] * (1 - alpha) - keep * outer[:2] * alpha
        return Camera(*focal.tolist(), *centre.tolist(), width, height)


def _sampled(image: np.ndarray, x: np.ndarray, y: np.ndarray, sampling: str) -> np.ndarray:
    try:
        import cv2
    except ImportError:
        raise UserError('undistorting images needs OpenCV; install it with: pip install "vlm3-jax[builders]"') from None
    ways = {"bicubic": cv2.INTER_CUBIC, "bilinear": cv2.INTER_LINEAR}
    # Beyond the border the image goes on as it ends: what it does not show is blackened afterwards.
    return cv2.remap(image, x, y, ways[sampling], borderMode=cv2.BORDER_REPLICATE)


@functools.lru_cache(maxsize=64)
def _cropped(lens: Distortion, camera: Camera, centred: bool) -> Camera:
    if lens.is_none and not centred:
        return camera
    centre, focal = np.array([camera.cx, camera.cy]), np.array([camera.fx, camera.fy])
    box = _inner_box(lens, camera)
    if centred:
        half = np.minimum(-box[:2], box[2:])
        box = np.concatenate([-half, half])
    # Nothing farther out than the widest ray; all sides shrink alike.
    reach = np.hypot(*np.maximum(-box[:2], box[2:]))
    box *= min(1.0, np.tan(np.radians(MAX_ANGLE_DEG)) / reach)
    for inset in range(64):
        low, high = np.ceil(box[:2] * focal + centre) + inset, np.floor(box[2:] * focal + centre) - inset
        width, height = (int(n) + 1 for n in high - low)
        if min(width, height) < 2:
            break
        # Centred, the grid of pixels moves by less than one.
        cx, cy = ((width - 1) / 2, (height - 1) / 2) if centred else (camera.cx - low[0], camera.cy - low[1])
        new = Camera(camera.fx, camera.fy, float(cx), float(cy), width, height)
        # Between the edges that were looked at, the lens may bend inwards once more.
        if _between(lens.distort_points(_border(new), camera, new), camera).all():
            return new
    raise BadRecord(f"distortion {lens.model} {list(lens.params)}: no part of the image can be freed of it")


def _inner_box(lens: Distortion, camera: Camera) -> np.ndarray:
    """Left, top, right, bottom of the largest box between the undistorted edges, as x / z and y / z, float64 [4].

    An edge without a ray to the front does not cut.
    """
    x, y = np.arange(camera.width), np.arange(camera.height)
    right, bottom = np.full_like(y, camera.width - 1), np.full_like(x, camera.height - 1)
    edges = ((0 * y, y), (x, 0 * x), (right, y), (x, bottom))
    box = []
    for number, edge in enumerate(edges):
        axis, pick, sign = number % 2, (np.max, np.min)[number // 2], (-1, 1)[number // 2]
        rays = lens.unproject(np.stack(edge, -1), camera)
        rays = rays[rays[:, 2] > np.cos(np.radians(89))]
        box.append(pick(rays[:, axis] / rays[:, 2]) if len(rays) else sign * np.tan(np.radians(MAX_ANGLE_DEG)))
    return np.array(box, np.float64)


def _border(camera: Camera) -> np.ndarray:
    """All pixels on the border of an image, int64 [M, 2]."""
    x, y = np.arange(camera.width), np.arange(camera.height)
    right, bottom = np.full_like(y, camera.width - 1), np.full_like(x, camera.height - 1)
    return np.concatenate([np.stack(edge, -1) for edge in ((x, 0 * x), (x, bottom), (0 * y, y), (right, y))])


def _between(points_px, camera: Camera) -> np.ndarray:
    """Which points [N, 2] lie between the centres of the outermost pixels, to a millionth of a pixel; NaN do not."""
    with np.errstate(invalid="ignore"):
        return ((points_px >= -1e-6) & (points_px <= np.array([camera.width, camera.height]) - 1 + 1e-6)).all(-1)


@functools.lru_cache(maxsize=8)
def _map(lens: Distortion, camera: Camera, new: Camera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each pixel of `new` where the stored image shows it, x and y float32 [H, W], and whether it does, bool."""
    x, y = (np.zeros((new.height, new.width), np.float32) for _ in range(2))
    found = np.zeros((new.height, new.width), bool)
    size = np.array([camera.width, camera.height])
    # Large images have gigabytes of coordinates in float64.
    rows = max(1, BLOCK_PIXELS // new.width)
    for top in range(0, new.height, rows):
        block = slice(top, min(top + rows, new.height))
        grid = np.stack(np.meshgrid(np.arange(new.width), np.arange(block.start, block.stop)), -1)
        points = lens.distort_points(grid, camera, new).reshape(grid.shape)
        with np.errstate(invalid="ignore"):
            found[block] = ((points >= -0.5) & (points < size - 0.5)).all(-1)
        x[block], y[block] = np.where(found[block], np.moveaxis(points, -1, 0), 0)
    return x, y, found


@functools.lru_cache(maxsize=4)
def _nearest(lens: Distortion, camera: Camera, new: Camera) -> np.ndarray:
    """For each pixel of `new` the flat index of the nearest stored pixel, int32 [H, W]."""
    x, y, _ = _map(lens, camera, new)
    # A half is rounded down by some and up by others: into the image.
    columns, rows = (np.clip(np.rint(part), 0, n - 1) for part, n in ((x, camera.width), (y, camera.height)))
    return rows.astype(np.int32) * camera.width + columns.astype(np.int32)
