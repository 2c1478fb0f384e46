"""Reconstructions of OpenSfM: reconstruction.json, and its pixels."""

import numpy as np

from vlm3_jax.errors import BadRecord


def rotation(axis_angle) -> np.ndarray:
    """An axis times its angle (radians) [3] -> rotation [3, 3] (Rodrigues)."""
    vector = np.asarray(axis_angle, np.float64)
    angle = np.linalg.norm(vector)
    x, y, z = vector
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    # sin(a) / a and (1 - cos(a)) / a^2, also of angles near 0.
    return np.eye(3) + np.sinc(angle / np.pi) * cross + np.sinc(angle / 2 / np.pi) ** 2 / 2 * (cross @ cross)


def read_shots(tree, name: str) -> dict[str, np.ndarray]:
    """Image -> world-to-camera [4, 4] (OpenCV axes) of the first, largest reconstruction. BadRecord if it is none."""
    found = {}
    try:
        for image, shot in tree[0]["shots"].items():
            matrix = np.eye(4)
            matrix[:3, :3] = rotation(np.array(shot["rotation"], np.float64).reshape(3))
            matrix[:3, 3] = np.array(shot["translation"], np.float64).reshape(3)
            found[str(image)] = matrix
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise BadRecord(f"{name}: no reconstruction of OpenSfM ({error})") from None
    return found


def intrinsics(focal: float, width: int, height: int) -> tuple[float, float, float, float]:
    """fx, fy, cx, cy in pixels: the longer side has length 1, and the first pixel's centre is (0, 0)."""
    return focal * max(width, height), focal * max(width, height), (width - 1) / 2, (height - 1) / 2
