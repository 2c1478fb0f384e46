"""A dense depth map as a PNG of 16 bits: value x scale = metres, 0 where nothing is known."""

import io
import json

import numpy as np
from PIL import Image, PngImagePlugin

from vlm3_jax.answers.values import Depth, depth_facts

# Metres of a unit, the finest first that reaches far enough.
SCALES_M = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
MOST = 2**16 - 1
# The PNG's text of this name holds the scale, the kind and the camera, as JSON.
TEXT = "vlm3"


def scale_m(depth_m: np.ndarray) -> float:
    """Metres of a unit for these depths: 1 mm up to 65.5 m."""
    farthest = np.nanmax(depth_m, initial=0.0)
    return next((scale for scale in SCALES_M if farthest / scale <= MOST), SCALES_M[-1])


def encode_depth(depth: Depth, photo) -> bytes:
    """The map of `depth.kind`; scale, kind and camera stand in the PNG's text "vlm3" as JSON."""
    values = depth.map_m()
    scale = scale_m(values)
    units = np.clip(np.rint(np.nan_to_num(values) / scale), 0, MOST).astype(np.uint16)
    text = PngImagePlugin.PngInfo()
    text.add_text(TEXT, json.dumps({"scale_m": scale, "kind": depth.kind} | depth_facts(depth)))
    buffer = io.BytesIO()
    Image.fromarray(units).save(buffer, "PNG", pnginfo=text, compress_level=3)
    return buffer.getvalue()
