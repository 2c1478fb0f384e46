"""Bicubic resizing of video frames, bit for bit as torch does it on the CPU (uint8, antialias=True).

transformers resizes frames with torchvision, which is torch's integer kernel: first along the rows, then along the
columns, with weights of 16 bits. Pillow, which resizes single images, has finer weights and picks the order of the two
passes itself: where one side grows and the other shrinks its result differs from torch's by up to 28 of 255 in photos.
"""

import functools

import numpy as np

_WEIGHT_BITS, _MAX_SHIFT = 15, 22


def resize(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [H, W, C] -> uint8 [height, width, C]."""
    if width != frame.shape[1]:
        frame = _resample(np.ascontiguousarray(frame.swapaxes(0, 1)), width).swapaxes(0, 1)
    return _resample(np.ascontiguousarray(frame), height) if height != frame.shape[0] else frame


def _resample(frame: np.ndarray, size: int) -> np.ndarray:
    """Axis 0 of uint8 [n, m, C] resampled to `size`."""
    first, weights, shift = _taps(len(frame), size)
    total = np.full((size, *frame.shape[1:]), 1 << (shift - 1), np.int32)
    for k in range(weights.shape[1]):
        # Unused taps weigh 0 and may point anywhere.
        source = np.minimum(first + k, len(frame) - 1)
        total += np.multiply(frame[source], weights[:, k, None, None], dtype=np.int32)
    total >>= shift
    return np.clip(total, 0, 255, out=total).astype(np.uint8)


@functools.lru_cache(maxsize=64)
def _taps(n: int, size: int) -> tuple[np.ndarray, np.ndarray, int]:
    """First source index int [size], weights int32 [size, K] and the shift that undoes their scale."""
    first, _, weights = float_taps(n, size)
    shift = 0
    while shift < _MAX_SHIFT and int(0.5 + weights.max() * (1 << (shift + 1))) < 1 << _WEIGHT_BITS:
        shift += 1
    return first, whole_weights(weights, shift), shift


def float_taps(n: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of n values resampled to `size`: first source index int [size], number of taps int [size], weights [size, K].

    Pillow and torch weigh alike up to here.
    """
    scale = n / size
    stretch = max(scale, 1.0)
    center = scale * (np.arange(size) + 0.5)
    first = np.maximum((center - 2 * stretch + 0.5).astype(int), 0)
    most = 2 * int(np.ceil(2 * stretch)) + 1
    count = np.clip(np.minimum((center + 2 * stretch + 0.5).astype(int), n) - first, 0, most)
    taps = np.arange(most)
    weights = _cubic((taps + first[:, None] - center[:, None] + 0.5) * (1 / stretch)) * (taps < count[:, None])
    total = np.zeros(size)
    for column in weights.T:
        total += column  # one after the other, as torch sums them
    weights /= total[:, None]
    return first, count, weights


def whole_weights(weights: np.ndarray, shift: int) -> np.ndarray:
    """Weights times 2^shift, rounded half away from 0, int32."""
    return np.trunc(weights * (1 << shift) + np.copysign(0.5, weights)).astype(np.int32)


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel with a = -0.5, 0 beyond 2."""
    a, x = -0.5, np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
