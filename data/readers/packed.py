"""Depth as floats whose bytes are put into the integers of a PNG."""

import io

import numpy as np
from PIL import Image

from vlm3_jax.errors import BadRecord

MAX_PIXELS = 200_000_000


def _open(data: bytes, name: str, modes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG",))
        if image.mode not in modes or image.width * image.height > MAX_PIXELS:
            raise BadRecord(f"{name}: a PNG of {image.width} x {image.height} pixels of {image.mode}, not {modes[0]}")
        image.load()
        return image
    except BadRecord:
        raise
    # Damaged bytes make Pillow raise all kinds of errors.
    except Exception as error:
        raise BadRecord(f"{name}: cannot decode the PNG ({error})") from None


def read_uint16(data: bytes, name: str) -> np.ndarray:
    """A PNG of 16 bits, uint16 [H, W]."""
    return np.asarray(_open(data, name, ("I;16", "I;16B", "I"))).astype(np.uint16)


def read_grey(data: bytes, name: str) -> np.ndarray:
    """A PNG of 8 bits, grey or of a palette of ids, uint8 [H, W]; of colours the first channel (masks)."""
    values = np.asarray(_open(data, name, ("L", "P", "1", "RGB", "RGBA", "LA"))).astype(np.uint8)
    return values[..., 0] if values.ndim == 3 else values


def read_half(data: bytes, name: str) -> np.ndarray:
    """DynamicReplica: 16 bits that are those of a half float; float32 [H, W]."""
    return read_uint16(data, name).view(np.float16).astype(np.float32)


def read_float_bgra(data: bytes, name: str) -> np.ndarray:
    """TartanAir V2: four bytes that are a little-endian float32, in OpenCV's order; float32 [H, W].

    OpenCV writes and reads its arrays as blue, green, red, alpha, so the float's first byte is the PNG's blue.
    """
    rgba = np.asarray(_open(data, name, ("RGBA",)))
    return np.ascontiguousarray(rgba[..., [2, 1, 0, 3]]).view("<f4")[..., 0]
