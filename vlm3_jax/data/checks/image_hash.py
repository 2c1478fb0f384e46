"""A hash of what an image shows: 63 bits that survive resizing, JPEG and small changes of light, found fast among many.

The signs of the lowest frequencies of a 32 x 32 grey image, against their median (a DCT hash, as Zauner 2010 has it).
"""

import functools

import numpy as np
from PIL import Image

SIDE, LOW, TINY = 32, 8, 16
# Below so much contrast (grey levels, of 32 x 32) an image is blank: all such look alike.
MIN_CONTRAST = 4.0
# Index.near finds all within one bit less than there are bytes.
MAX_RADIUS = 7


def image_hash(pixels: np.ndarray) -> tuple[int, np.ndarray] | None:
    """The hash of uint8 [H, W, 3] and a tiny grey copy, uint8 [16 * 16], to compare by eye; None for a blank image."""
    # Halving first is cheap, and what is lost is not looked at.
    step = max(1, min(pixels.shape[:2]) // 256)
    grey = Image.fromarray(np.ascontiguousarray(pixels[::step, ::step])).convert("L")
    small = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX), np.float64)
    if small.std() < MIN_CONTRAST:
        return None
    low = (_cosines() @ small @ _cosines().T).ravel()[1:]
    bits = low > np.median(low)
    return int.from_bytes(np.packbits(bits).tobytes(), "big"), np.asarray(
        grey.resize((TINY, TINY), Image.Resampling.BOX)
    ).ravel()


@functools.cache
def _cosines() -> np.ndarray:
    """The lowest rows of the DCT-II, [LOW, SIDE]."""
    return np.cos(np.pi * np.arange(LOW)[:, None] * (np.arange(SIDE) + 0.5) / SIDE)


def alike(one: np.ndarray, many: np.ndarray) -> np.ndarray:
    """Correlation of a tiny copy with others [N, 256], -1 to 1 each: the hash asks little, this a little more."""
    one, many = one.astype(np.float64), many.astype(np.float64)
    one, many = one - one.mean(), many - many.mean(1, keepdims=True)
    return many @ one / np.maximum(np.linalg.norm(one) * np.linalg.norm(many, axis=1), 1e-9)


class Index:
    """Hashes uint64 [N], searched by their bytes: those that differ in at most 7 bits share one of 8 bytes."""

    def __init__(self, hashes):
        hashes = np.asarray(hashes, np.uint64)
        parts = hashes[:, None] >> np.arange(0, 64, 8, dtype=np.uint64) & np.uint64(255)
        self._order = [np.argsort(part, kind="stable").astype(np.int32) for part in parts.T]
        # What a look-up reads lies together.
        self._sorted = [hashes[order] for order in self._order]
        self._ends = [np.cumsum(np.bincount(part.astype(int), minlength=256)) for part in parts.T]

    def near(self, hash: int, radius: int) -> np.ndarray:
        """The numbers of all hashes that differ in at most `radius` bits (up to 7), rising."""
        found = []
        for part, (order, hashes, ends) in enumerate(zip(self._order, self._sorted, self._ends, strict=True)):
            byte = hash >> 8 * part & 255
            bucket = slice(ends[byte - 1] if byte else 0, ends[byte])
            found.append(order[bucket][np.bitwise_count(hashes[bucket] ^ np.uint64(hash)) <= radius])
        return np.unique(np.concatenate(found))
