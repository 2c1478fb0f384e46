"""Depth and masks as data sets store them in PNG images: whole numbers, or floats whose bytes are put into them."""

import pathlib

import numpy as np

from vlm3_jax.errors import BadRecord
from vlm3_jax.records import map_files

# Of masks and ids: of colours the first channel counts.
GREY = ("L", "P", "1", "RGB", "RGBA", "LA")


def uint16(data: bytes, name: str) -> np.ndarray:
    """A PNG of one channel of 16 bits, uint16 [H, W]; BadRecord, calling it `name`, if it is none."""
    return map_files.png(data, name).astype(np.uint16)


def grey(data: bytes, name: str) -> np.ndarray:
    """A PNG of 8 bits, grey or of a palette of ids, uint8 [H, W]; of colours the first channel."""
    values = map_files.png(data, name, GREY, "8 bits").astype(np.uint8)
    return values[..., 0] if values.ndim == 3 else values


def half(data: bytes, name: str) -> np.ndarray:
    """DynamicReplica: 16 bits that are those of a half float; float32 [H, W]."""
    return uint16(data, name).view(np.float16).astype(np.float32)


def float_bgra(data: bytes, name: str) -> np.ndarray:
    """TartanAir V2: four bytes that are a little-endian float32, in OpenCV's order; float32 [H, W].

    OpenCV writes and reads its arrays as blue, green, red, alpha, so the float's first byte is the PNG's blue.
    """
    rgba = map_files.png(data, name, ("RGBA",), "four channels")
    return np.ascontiguousarray(rgba[..., [2, 1, 0, 3]]).view("<f4")[..., 0]


def read_steps(path: pathlib.Path, name: str) -> np.ndarray:
    """`uint16` of a file; BadRecord if it is missing."""
    return uint16(map_files.read(path, name), name)


def read_mask(path: pathlib.Path, name: str) -> np.ndarray:
    """Where a mask image (PNG) is above 0, bool [H, W]; of several channels the first counts."""
    values = map_files.png(map_files.read(path, name), name, (*GREY, *map_files.STEPS), "a mask")
    return (values if values.ndim == 2 else values[..., 0]) > 0


def same_size(values: np.ndarray, width: int, height: int, name: str) -> np.ndarray:
    """The values [H, W]; BadRecord if they are of another size than the image."""
    if values.shape[:2] != (height, width):
        found = f"{values.shape[1]} x {values.shape[0]}"
        raise BadRecord(f"{name}: it is {found}, its image {width} x {height}")
    return values
