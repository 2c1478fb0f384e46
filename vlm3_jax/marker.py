"""DepthLM's marker: a red arrow drawn into an image that points right, at one pixel (arXiv 2509.25413).

Its shaft is the five pixels left of that pixel, its head the pixels (x - 2, y +- 1) and (x - 3, y +- 2); the pixel
itself stays as it is. It is drawn into the image at its unified focal length, before that is brought to whole visual
tokens.
"""

import numpy as np
from PIL import Image

RED = (255, 0, 0)
# Pixels of the shaft, and how far from the border a point must be.
LENGTH = 5
HEAD = 2
OFFSETS = (
    *((-step, 0) for step in range(1, LENGTH + 1)),
    *((-1 - step, side * step) for step in range(1, HEAD + 1) for side in (1, -1)),
)


def fits(points_px, width: int, height: int) -> np.ndarray:
    """Which of the points [N, 2] DepthLM asks about, bool [N]: those at least `LENGTH` pixels inside the image."""
    points = np.asarray(points_px).reshape(-1, 2)
    return ((points >= LENGTH) & (points < np.array([width, height]) - LENGTH)).all(-1)


def drawn(image: Image.Image | np.ndarray, point: tuple[int, int]) -> Image.Image | np.ndarray:
    """A copy of an RGB image (or of its pixels [H, W, 3 or 4]) with the arrow at `point` (x, y), as far as it lies in
    the image.
    """
    marked, (x, y) = image.copy(), point
    height, width = image.shape[:2] if isinstance(image, np.ndarray) else image.size[::-1]
    for column, row in ((x + right, y + down) for right, down in OFFSETS):
        if 0 <= column < width and 0 <= row < height:
            if isinstance(image, np.ndarray):
                marked[row, column, :3] = RED
            else:
                marked.putpixel((column, row), RED)
    return marked
