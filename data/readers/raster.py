"""Depth and masks as data sets store them in images: whole numbers, not colours."""

import io
import pathlib

import numpy as np
from PIL import Image

from vlm3_jax.builders.readers import depth_png
from vlm3_jax.errors import BadRecord
from vlm3_jax.records import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS


def read_steps(path: pathlib.Path, name: str) -> np.ndarray:
    """uint16 [H, W] of a PNG of one channel; BadRecord, calling it `name`, if it is missing or none."""
    return depth_png.values(_bytes(path, name), name)


def read_mask(path: pathlib.Path, name: str) -> np.ndarray:
    """Where a mask image (PNG) is above 0, bool [H, W]; of several channels the first counts."""
    data = _bytes(path, name)
    try:
        image = Image.open(io.BytesIO(data), formats=["PNG"])
        if image.width * image.height > MAX_IMAGE_PIXELS:
            raise BadRecord(f"{name}: {image.width} x {image.height} pixels is above {MAX_IMAGE_PIXELS}")
        values = np.asarray(image)
    except (BadRecord, MemoryError):
        raise
    # Damaged bytes make Pillow raise all kinds of errors.
    except Exception as error:
        raise BadRecord(f"{name}: cannot decode the mask ({error})") from None
    return (values if values.ndim == 2 else values[..., 0]) > 0


def _bytes(path: pathlib.Path, name: str) -> bytes:
    try:
        if (size := path.stat().st_size) > MAX_IMAGE_BYTES:
            raise BadRecord(f"{name}: {size} bytes is above the limit of {MAX_IMAGE_BYTES}")
        return path.read_bytes()
    except FileNotFoundError:
        raise BadRecord(f"{name}: no such file") from None


def same_size(values: np.ndarray, width: int, height: int, name: str) -> np.ndarray:
    """The values [H, W]; BadRecord if they are of another size than the image."""
    if values.shape[:2] != (height, width):
        found = f"{values.shape[1]} x {values.shape[0]}"
        raise BadRecord(f"{name}: it is {found}, its image {width} x {height}")
    return values
