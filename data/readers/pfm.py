"""PFM: float images of one channel ("Pf") or three ("PF"), rows stored from the bottom up."""

import numpy as np

from vlm3_jax.errors import BadRecord

MAX_PIXELS = 200_000_000


def read_pfm(data: bytes, name: str) -> np.ndarray:
    """float32 [H, W] or [H, W, 3], top row first. The sign of the scale is the byte order; its size is not applied."""
    parts = data.split(b"\n", 3)
    try:
        kind, size, scale, body = parts
        channels = {b"Pf": 1, b"PF": 3}[kind.strip()]
        width, height = (int(n) for n in size.split())
        order = "<" if float(scale) < 0 else ">"
    except (ValueError, KeyError):
        raise BadRecord(f"{name}: no PFM file (its three lines of header are missing or wrong)") from None
    if not (0 < width * height <= MAX_PIXELS) or len(body) < 4 * width * height * channels:
        raise BadRecord(f"{name}: a PFM of {width} x {height} needs {4 * width * height * channels} bytes, {len(body)}")
    values = np.frombuffer(body, f"{order}f4", width * height * channels).reshape(height, width, channels)
    return np.ascontiguousarray(values[::-1, :, 0] if channels == 1 else values[::-1], np.float32)
