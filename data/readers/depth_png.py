"""16-bit depth images in which some value, or a mask, stands for "no depth"."""

import io

import numpy as np
from PIL import Image

from vlm3_jax.builders.readers import raster
from vlm3_jax.errors import BadRecord
from vlm3_jax.records import DepthMap


def depth_map(data: bytes, scale: float, kind: str, name: str, view: int = 0, none=(), mask=None) -> DepthMap:
    """The map of a PNG as published: metres = value * `scale`; 0, the values of `none` and where not `mask` have none.

    Its bytes are kept where nothing has to be blotted out. BadRecord if it is no such PNG or the mask has another size.
    """
    found = raster.uint16(data, name)
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
