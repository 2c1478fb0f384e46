"""Machine code for what the loader spends its time on; needs numba and simplejpeg (pip install 'vlm3-jax[fast]').

Bicubic resizing bit for bit as Pillow does it, and cutting into patches. Pillow resizes along the rows, then along the
columns, with weights of 22 bits and sums of 32. So do these loops, but they work on many values next to each other at
once: rows are resized as columns, in bands that are turned. Images have four bytes a pixel, as in Pillow, of which the
last is not looked at. The loops run without the interpreter lock. They are compiled at the first call, in seconds, and
kept on disk (beside this file, or where NUMBA_CACHE_DIR says).
"""

import functools
from collections.abc import Callable
from typing import no_type_check

import numpy as np
import simplejpeg
from numba import njit
from PIL import Image

from vlm3_jax.processor.bicubic import float_taps, whole_weights

BITS = 22
_HALF = 1 << (BITS - 1)
# Rows of a band: turned, those of a photograph stay in the second level of the cache.
BAND = 32


def decode_jpeg(data: bytes) -> np.ndarray | None:
    """uint8 [H, W, 4] of a JPEG of three colours, with Pillow's values; None if Pillow has to look at it."""
    try:
        return simplejpeg.decode_jpeg(data, colorspace="RGBA")
    # Damaged, or nearly so: Pillow says what is wrong, or reads it all the same.
    except ValueError:
        return None


def pixels_of(image: Image.Image) -> np.ndarray:
    """An RGB image of Pillow as uint8 [H, W, 4]."""
    return np.frombuffer(image.tobytes("raw", "RGBX"), np.uint8).reshape(image.height, image.width, 4)


def resize(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """uint8 [H, W, 4] -> uint8 [height, width, 4], the first three as `Image.resize` with BICUBIC gives them."""
    rows, columns, _ = pixels.shape
    passes = _rows_to_width, _columns_to_height
    if _columns_first()(columns, rows, width, height):
        passes = passes[::-1]
    for one in passes:
        pixels = one(pixels, width, height)
    return pixels


def _rows_to_width(pixels: np.ndarray, width: int, _) -> np.ndarray:
    if width == pixels.shape[1]:
        return pixels
    out = np.empty((len(pixels), width, 4), np.uint8)
    _along_rows(_whole(pixels), *_taps(pixels.shape[1], width), _whole(out))
    return out


def _columns_to_height(pixels: np.ndarray, _, height: int) -> np.ndarray:
    rows = len(pixels)
    if height == rows:
        return pixels
    out = np.empty((height, *pixels.shape[1:]), np.uint8)
    lines = np.ascontiguousarray(pixels).reshape(rows, -1)
    _along_columns(lines, *_taps(rows, height), out.reshape(height, -1))
    return out


# Whether Pillow resizes along the columns first, by (width, height) before and after. The second rule came in 2026.
ORDERS = (
    lambda *_: False,
    lambda w, h, new_w, new_h: new_h < h and h - new_h > 2 * (w - new_w),
)
# Sizes that tell them apart, on both sides of the border.
_PROBES = ((24, 40, 30, 20), (40, 24, 30, 30), (40, 60, 36, 50), (40, 60, 30, 39), (40, 60, 30, 40), (60, 40, 40, 30))


@functools.cache
def _columns_first() -> Callable[[int, int, int, int], bool]:
    """The rule of ORDERS that this Pillow goes by. ImportError if it is none of them: it then has to resize itself."""
    pixels = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (60, 60, 3))
    for rule in ORDERS:
        if all(_as_pillow(rule, pixels, *probe) for probe in _PROBES):
            return rule
    raise ImportError("Pillow resizes in an order that is not known here")


def _as_pillow(rule, pixels: np.ndarray, w: int, h: int, width: int, height: int) -> bool:
    image = Image.fromarray(pixels[:h, :w])
    found = pixels_of(image)
    passes = _rows_to_width, _columns_to_height
    for one in passes[::-1] if rule(w, h, width, height) else passes:
        found = one(found, width, height)
    return np.array_equal(found[..., :3], image.resize((width, height), Image.Resampling.BICUBIC))


def check() -> None:
    """Compiles, and sees whether Pillow does as is done here; ImportError if it does not."""
    _columns_first()


def patchify(pixels: np.ndarray, side: int, merge: int) -> np.ndarray:
    """uint8 [H, W, 4] -> uint8 [n_patches, 3 * side**2], as `image.patchify`."""
    rows, columns = pixels.shape[0] // (side * merge), pixels.shape[1] // (side * merge)
    planes = np.empty((3, *pixels.shape[:2]), np.uint8)
    _apart(_whole(pixels), planes)
    # A line of a patch is moved as one value.
    lines = planes.view(f"V{side}").reshape(3, rows, merge, side, columns, merge)
    blocks = np.ascontiguousarray(lines.transpose(1, 4, 2, 5, 0, 3))
    return blocks.view(np.uint8).reshape(rows * columns * merge**2, 3 * side**2)


def _whole(pixels: np.ndarray) -> np.ndarray:
    """The four bytes of a pixel as one number, uint32 [H, W]."""
    return np.ascontiguousarray(pixels).view(np.uint32)[..., 0]


@functools.lru_cache(maxsize=256)
def _taps(n: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First source index, number of taps (int32 [size]) and weights int32 [size, K]."""
    first, count, weights = float_taps(n, size)
    return first.astype(np.int32), count.astype(np.int32), whole_weights(weights, BITS)


@njit(nogil=True, cache=True)
@no_type_check
def _along_columns(rows, first, count, weights, out):
    sums = np.empty(rows.shape[1], np.int32)
    for y in range(out.shape[0]):
        sums[:] = _HALF
        for k in range(count[y]):
            w, row = weights[y, k], rows[first[y] + k]
            for x in range(sums.shape[0]):
                sums[x] += np.int32(row[x]) * w
        new = out[y]
        for x in range(sums.shape[0]):
            new[x] = min(max(sums[x] >> BITS, 0), 255)


@njit(nogil=True, cache=True)
@no_type_check
def _along_rows(pixels, first, count, weights, out):
    wide = np.zeros((pixels.shape[1], BAND), np.uint32)
    narrow = np.empty((out.shape[1], BAND), np.uint32)
    for top in range(0, pixels.shape[0], BAND):
        rows = min(BAND, pixels.shape[0] - top)
        _turn(pixels[top : top + rows], wide)
        _along_columns(wide.view(np.uint8), first, count, weights, narrow.view(np.uint8))
        _turn(narrow[:, :rows], out[top : top + rows])


@njit(nogil=True, cache=True)
@no_type_check
def _turn(pixels, out):
    """out[x, y] = pixels[y, x], in squares that the cache holds."""
    for top in range(0, pixels.shape[0], 16):
        for left in range(0, pixels.shape[1], 16):
            for x in range(left, min(left + 16, pixels.shape[1])):
                for y in range(top, min(top + 16, pixels.shape[0])):
                    out[x, y] = pixels[y, x]


@njit(nogil=True, cache=True)
@no_type_check
def _apart(pixels, planes):
    """Red, green and blue of each pixel."""
    for y in range(pixels.shape[0]):
        row = pixels[y]
        for channel in range(3):
            plane, shift = planes[channel, y], np.uint32(8 * channel)
            for x in range(row.shape[0]):
                plane[x] = row[x] >> shift
