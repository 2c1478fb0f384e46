"""COLMAP's sparse models, text and binary: cameras and images with the points that they see.

Pixels are counted from the corner of the image (first pixel's centre 0.5, 0.5); quaternions are w x y z and
world-to-camera, axes OpenCV's. Points' coordinates are not read: pairs need only who sees which.
"""

import dataclasses
import pathlib
import struct

import numpy as np

from vlm3_jax.builders.readers import rigid
from vlm3_jax.errors import BadRecord, UserError

# Model numbers of binary files: name and number of parameters.
MODELS = (
    ("SIMPLE_PINHOLE", 3),
    ("PINHOLE", 4),
    ("SIMPLE_RADIAL", 4),
    ("RADIAL", 5),
    ("OPENCV", 8),
    ("OPENCV_FISHEYE", 8),
    ("FULL_OPENCV", 12),
    ("FOV", 5),
    ("SIMPLE_RADIAL_FISHEYE", 4),
    ("RADIAL_FISHEYE", 5),
    ("THIN_PRISM_FISHEYE", 12),
    ("RAD_TAN_THIN_PRISM_FISHEYE", 16),
)


@dataclasses.dataclass(frozen=True, eq=False)
class Camera:
    """A line of cameras.txt."""

    model: str
    width: int
    height: int
    params: tuple[float, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Image:
    """Camera, camera-to-world [4, 4], and which 3-D points it sees where.

    `points`: their ids, int64 [M], rising; `points_px` float64 [M, 2], here the first pixel's centre is (0, 0).
    """

    camera: Camera
    world_T_cam: np.ndarray
    points: np.ndarray
    points_px: np.ndarray


def read_images(folder: pathlib.Path) -> dict[str, Image]:
    """The images of a model by name. UserError if there is no model, or if it is damaged."""
    for suffix, cameras_of, images_of in ((".bin", _cameras_bin, _images_bin), (".txt", _cameras_txt, _images_txt)):
        files = folder / f"cameras{suffix}", folder / f"images{suffix}"
        if all(file.exists() for file in files):
            try:
                cameras = cameras_of(files[0].read_bytes())
                return dict(sorted(images_of(files[1].read_bytes(), cameras)))
            except (BadRecord, ValueError, IndexError, KeyError, struct.error) as error:
                raise UserError(f"{folder}: its COLMAP model ({suffix}) is damaged ({error})") from None
    raise UserError(f"{folder}: no COLMAP model (cameras and images, .bin or .txt)")


def share(first: Image, second: Image) -> float:
    """How many of the points that the first image sees the second one sees too, 0 to 1."""
    both = np.intersect1d(first.points, second.points, assume_unique=True)
    return len(both) / len(first.points) if len(first.points) else 0.0


def _image(quaternion, translation, camera: Camera, points_px, ids) -> Image:
    ids, first = np.unique(np.asarray(ids, np.int64), return_index=True)
    seen = ids >= 0
    points_px = np.asarray(points_px, np.float64).reshape(-1, 2)[first[seen]] - 0.5
    return Image(camera, rigid.inverse(rigid.from_quaternion(quaternion, translation)), ids[seen], points_px)


def _lines(data: bytes) -> list[str]:
    return [line for line in data.decode("utf-8", "replace").splitlines() if not line.startswith("#")]


def _cameras_txt(data: bytes) -> dict[int, Camera]:
    rows = (line.split() for line in _lines(data) if line.strip())
    return {int(r[0]): Camera(r[1], int(float(r[2])), int(float(r[3])), tuple(map(float, r[4:]))) for r in rows}


def _images_txt(data: bytes, cameras: dict[int, Camera]):
    # Two lines an image; the second is empty for one that sees no point.
    lines = _lines(data)
    while lines and not lines[-1].strip() and len(lines) % 2:
        lines.pop()
    for head, points in zip(lines[::2], [*lines[1::2], ""][: len(lines[::2])], strict=True):
        words = head.split(maxsplit=9)
        numbers = [float(word) for word in words[1:8]]
        seen = np.array(points.split(), np.float64).reshape(-1, 3)
        yield words[9], _image(numbers[:4], numbers[4:], cameras[int(words[8])], seen[:, :2], seen[:, 2])


def _cameras_bin(data: bytes) -> dict[int, Camera]:
    (count,), at, found = struct.unpack_from("<Q", data), 8, {}
    for _ in range(count):
        key, model, width, height = struct.unpack_from("<iiQQ", data, at)
        name, size = MODELS[model]
        params = struct.unpack_from(f"<{size}d", data, at + 24)
        found[key] = Camera(name, width, height, params)
        at += 24 + 8 * size
    return found


def _images_bin(data: bytes, cameras: dict[int, Camera]):
    (count,), at = struct.unpack_from("<Q", data), 8
    for _ in range(count):
        _, *numbers, camera = struct.unpack_from("<i7di", data, at)
        end = data.index(b"\0", at + 64)
        name = data[at + 64 : end].decode("utf-8", "replace")
        (points,) = struct.unpack_from("<Q", data, end + 1)
        at = end + 9
        seen = np.frombuffer(data, np.dtype([("xy", "<f8", 2), ("id", "<i8")]), points, at)
        at += 24 * points
        yield name, _image(numbers[:4], numbers[4:], cameras[camera], seen["xy"], seen["id"])
