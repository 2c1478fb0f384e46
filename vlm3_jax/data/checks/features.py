"""Matches between two photos, found by their corners: for pairs that come with poses and nothing else.

Harris corners (1988), told apart by small patches of equal brightness and contrast, mutual nearest neighbours with
Lowe's ratio test (2004). No match for a real matcher, but enough to tell a right pose from a wrong one.
"""

import numpy as np
from PIL import Image

# Images are looked at with so many pixels on the longer side.
SIDE = 480
CORNERS, APART = 700, 4
# A patch: so many points a side, so many pixels apart.
PATCH, STEP = 9, 2
LEAST_ALIKE, RATIO = 0.8, 0.8


def match(pixels0: np.ndarray, pixels1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two images uint8 [H, W, 3] -> matching pixels of both, float64 [N, 2] each; some of them are wrong."""
    (points0, patches0), (points1, patches1) = (_described(pixels) for pixels in (pixels0, pixels1))
    if min(len(points0), len(points1)) < 3:
        return np.zeros((0, 2)), np.zeros((0, 2))
    alike = patches0 @ patches1.T
    best = alike.argmax(1)
    top = np.take_along_axis(alike, best[:, None], 1)[:, 0]
    second = np.partition(alike, -2, axis=1)[:, -2]
    mutual = alike.argmax(0)[best] == np.arange(len(best))
    good = mutual & (top > LEAST_ALIKE) & (1 - top < RATIO**2 * (1 - second))
    return points0[good], points1[best[good]]


def _described(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners as pixels of the image [N, 2], and their patches [N, PATCH * PATCH], of length 1."""
    scale = min(1.0, SIDE / max(pixels.shape[:2]))
    size = tuple(max(1, round(n * scale)) for n in pixels.shape[1::-1])
    grey = np.asarray(Image.fromarray(pixels).convert("L").resize(size, Image.Resampling.BOX), np.float32)
    grey = _blurred(grey)
    y, x = _corners(grey)
    offsets = STEP * (np.arange(PATCH) - PATCH // 2)
    patches = grey[(y[:, None] + offsets)[:, :, None], (x[:, None] + offsets)[:, None, :]].reshape(len(x), -1)
    patches = patches - patches.mean(1, keepdims=True)
    length = np.linalg.norm(patches, axis=1)
    flat = length < 1e-3
    patches = patches / np.where(flat, 1, length)[:, None]
    stretch = np.array(pixels.shape[1::-1]) / np.array(size)
    points = (np.stack([x, y], -1) + 0.5) * stretch - 0.5
    return points[~flat], patches[~flat]


def _corners(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the strongest corners, none near another or near the border."""
    gy, gx = np.gradient(grey)
    xx, yy, xy = (_blurred(_blurred(product)) for product in (gx * gx, gy * gy, gx * gy))
    strength = xx * yy - xy * xy - 0.05 * (xx + yy) ** 2
    margin = STEP * (PATCH // 2) + 1
    if min(grey.shape) <= 2 * margin:
        return np.zeros(0, int), np.zeros(0, int)
    largest = strength
    for axis in (0, 1):
        shifted = [np.roll(largest, step, axis) for step in range(-APART, APART + 1)]
        largest = np.maximum.reduce(shifted)
    peak = (strength == largest) & (strength > 0)
    peak[:margin] = peak[-margin:] = peak[:, :margin] = peak[:, -margin:] = False
    y, x = np.nonzero(peak)
    order = np.argsort(-strength[y, x], kind="stable")[:CORNERS]
    return y[order], x[order]


def _blurred(values: np.ndarray) -> np.ndarray:
    """Binomial weights 1 4 6 4 1 along both axes."""
    for axis in (0, 1):
        padded = np.pad(values, [(2, 2) if k == axis else (0, 0) for k in (0, 1)], mode="edge")
        parts = [padded.take(range(k, k + values.shape[axis]), axis) for k in range(5)]
        values = (parts[0] + parts[4] + 4 * (parts[1] + parts[3]) + 6 * parts[2]) / 16
    return values
