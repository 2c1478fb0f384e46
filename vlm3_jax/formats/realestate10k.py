"""RealEstate10K's text files, one a clip: cameras and poses of frames, without depth and without a scale."""

import numpy as np

from vlm3_jax.camera import Camera
from vlm3_jax.errors import BadRecord
from vlm3_jax.formats.numbers import pose_of, text
from vlm3_jax.pose import inverse
from vlm3_jax.storage import AnyPath

FIELDS = 19


def read_clip(path: AnyPath) -> dict[int, np.ndarray]:
    """Time stamp (microseconds) -> the other 18 numbers of its row. BadRecord if the file is not laid out so.

    They are fx, fy, cx, cy in parts of the image's sides, two zeros, and 12 numbers of world-to-camera.
    """
    lines = text(path, path.name).splitlines()[1:]
    try:
        found = {int(words[0]): np.array(words[1:], np.float64) for line in lines if (words := line.split())}
    except ValueError as error:
        raise BadRecord(f"{path.name}: expected rows of numbers after the first line ({error})") from None
    if any(len(row) != FIELDS - 1 for row in found.values()):
        raise BadRecord(f"{path.name}: expected rows of {FIELDS} numbers after the first line")
    return found


def camera_of(row: np.ndarray, width: int, height: int, name: str) -> tuple[Camera, np.ndarray]:
    """The camera of an image of this size, and its camera-to-world pose.

    A principal point of 0.5 is the middle of the image, so (W - 1) / 2 from the centre of the first pixel.
    """
    fx, fy, cx, cy = (row[:4] * [width, height, width, height]).tolist()
    camera = Camera(fx, fy, cx - 0.5, cy - 0.5, width, height).plausible(f"{name}: camera")
    return camera, inverse(pose_of(row[6:], f"{name}: pose"))
