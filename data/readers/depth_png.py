"""16-bit depth images in which some value, or a mask, stands for "no depth"."""

import io

import numpy as np
from PIL import Image

from vlm3_jax.errors import BadRecord
from vlm3_jax.records import MAX_IMAGE_PIXELS, DepthMap


def values(data: bytes, name: str) -> np.ndarray:
    """uint16 [H, W] of a PNG of one channel; BadRecord, calling it `name`, if it is none."""
    try:
        image = Image.open(io.BytesIO(data), formats=["PNG"])
        if image.width * image.height > MAX_IMAGE_PIXELS:
            raise BadRecord(f"{name}: {image.width} x {image.height} pixels is above {MAX_IMAGE_PIXELS}")
        if image.mode[0] != "I":
            raise BadRecord(f"{name}: expected a PNG of one channel of 16 bits, got {image.mode}")
        return np.asarray(image).astype(np.uint16)
    except (BadRecord, MemoryError):
        raise
    # Damaged bytes make Pillow raise all kinds of errors.
    except Exception as error:
        raise BadRecord(f"{name}: cannot decode the depth image ({error})") from None


def depth_map(data: bytes, scale: float, kind: str, name: str, view: int = 0, none=(), mask=None) -> DepthMap:
    """The map of a PNG as published: metres = value * `scale`; 0, the values of `none` and where not `mask` have none.

    Its bytes are kept where nothing has to be blotted out. BadRecord if it is no such PNG or the mask has another size.
    """
    found = values(data, name)
    height, width = found.shape
    if mask is not None and mask.shape != found.shape:
        raise BadRecord(f"{name}: the mask is {mask.shape[1]} x {mask.shape[0]}, the depth {width} x {height}")
    out = np.isin(found, none) if len(none) else np.zeros(found.shape, bool)
    out |= False if mask is None else ~mask
    if out.any():
        buffer = io.BytesIO()
        Image.fromarray(np.where(out, 0, found).astype(np.uint16)).save(buffer, "PNG", compress_level=1)
        data = buffer.getvalue()
    return DepthMap(width, height, scale, kind, view, name, data=data)
