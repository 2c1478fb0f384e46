"""Machine code for what the loader spends its time on; needs numba (pip install 'vlm3-jax[fast]').

Bicubic resizing bit for bit as Pillow does it, and cutting into patches. Pillow resizes along the rows, then along the
columns, with weights of 22 bits and sums of 32. So do these loops, but in an order in which neighbouring values are
worked on together. Images have four bytes a pixel, as Pillow holds them, of which the last is not looked at.
They run without the interpreter lock. Compiled at the first call, in seconds, and kept on disk.
"""

import functools

import numpy as np
from numba import njit
from PIL import Image

from vlm3_jax.processor.bicubic import float_taps, whole_weights

BITS = 22
_HALF = 1 << (BITS - 1)


def pixels_of(image: Image.Image) -> np.ndarray:
    """An RGB image of Pillow as uint8 [H, W, 4]."""
    return np.frombuffer(image.tobytes("raw", "RGBX"), np.uint8).reshape(image.height, image.width, 4)


def resize(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """uint8 [H, W, 4] -> uint8 [height, width, 4], the first three as `Image.resize` with BICUBIC gives them."""
    rows, columns, _ = pixels.shape
    if width != columns:
        narrow = np.empty((rows, width, 4), np.uint8)
        _along_rows(pixels, *_taps(columns, width), narrow)
        pixels = narrow
    if height != rows:
        short = np.empty((height, width, 4), np.uint8)
        _along_columns(pixels.reshape(rows, -1), *_taps(rows, height), short.reshape(height, -1))
        pixels = short
    return pixels


def patchify(pixels: np.ndarray, side: int, merge: int) -> np.ndarray:
    """uint8 [H, W, 4] -> uint8 [n_patches, 3 * side**2], as `image.patchify`."""
    patches = np.empty((pixels.shape[0] // side * (pixels.shape[1] // side), 3 * side**2), np.uint8)
    _cut(pixels, side, merge, patches)
    return patches


@functools.lru_cache(maxsize=256)
def _taps(n: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First source index, number of taps (int32 [size]) and weights int32 [size, K]."""
    first, count, weights = float_taps(n, size)
    return first.astype(np.int32), count.astype(np.int32), whole_weights(weights, BITS)


@njit(nogil=True, cache=True)
def _along_rows(pixels, first, count, weights, out):
    for y in range(pixels.shape[0]):
        row, new = pixels[y], out[y]
        for x in range(new.shape[0]):
            # Written out, so that the four become one vector.
            a = b = c = d = np.int32(_HALF)
            for k in range(count[x]):
                w, at = weights[x, k], first[x] + k
                a = np.int32(a + np.int32(row[at, 0]) * w)
                b = np.int32(b + np.int32(row[at, 1]) * w)
                c = np.int32(c + np.int32(row[at, 2]) * w)
                d = np.int32(d + np.int32(row[at, 3]) * w)
            new[x, 0] = min(max(a >> BITS, 0), 255)
            new[x, 1] = min(max(b >> BITS, 0), 255)
            new[x, 2] = min(max(c >> BITS, 0), 255)
            new[x, 3] = min(max(d >> BITS, 0), 255)


@njit(nogil=True, cache=True)
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
def _cut(pixels, side, merge, patches):
    number = 0
    for top in range(0, pixels.shape[0], side * merge):
        for left in range(0, pixels.shape[1], side * merge):
            for y0 in range(top, top + side * merge, side):
                for x0 in range(left, left + side * merge, side):
                    patch = patches[number]
                    for channel in range(3):
                        for y in range(side):
                            for x in range(side):
                                patch[(channel * side + y) * side + x] = pixels[y0 + y, x0 + x, channel]
                    number += 1
