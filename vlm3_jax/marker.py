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


def drawn(image: Image.Image, point: tuple[int, int]) -> Image.Image:
    """A copy of an RGB image with the arrow at `point` (x, y), as far as it lies in the image."""
    marked, (x, y) = image.copy(), point
    for right, down in OFFSETS:
        if 0 <= x + right < image.width and 0 <= y + down < image.height:
            marked.putpixel((x + right, y + down), RED)
    return marked
