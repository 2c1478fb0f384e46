"""Rigid motions as data sets write them down, to 4x4 matrices."""

import numpy as np

from vlm3_jax.errors import BadRecord

# Rounded to four or five digits, rotations of good files are this far from orthogonal.
TOLERANCE = 1e-3
CV_T_GL = np.diag([1.0, -1.0, -1.0, 1.0])
"""Between cameras that look along -z with y up (OpenGL, Blender) and ours: world_T_cv = world_T_gl @ CV_T_GL."""


def from_quaternion(wxyz, translation) -> np.ndarray:
    """a_T_b float64 [4, 4] from a quaternion w x y z (of any length above 0) and b's origin in a."""
    q = np.asarray(wxyz, np.float64)
    length = np.linalg.norm(q)
    if q.shape != (4,) or not (0 < length < np.inf):
        raise BadRecord(f"expected a quaternion w x y z, got {np.asarray(wxyz).tolist()}")
    w, x, y, z = q / length
    rotation = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, np.asarray(translation, np.float64)
    return matrix


def checked(values, name: str) -> np.ndarray:
    """16 or 12 numbers row by row -> [4, 4]; BadRecord, calling it `name`, unless they rotate and shift."""
    numbers = np.asarray(values, np.float64).reshape(-1)
    if numbers.size not in (12, 16):
        raise BadRecord(f"{name}: expected 12 or 16 numbers, got {numbers.size}")
    matrix = np.vstack([numbers.reshape(-1, 4)[:3], [0, 0, 0, 1]])
    if numbers.size == 16 and not np.allclose(numbers[12:], [0, 0, 0, 1], atol=1e-6):
        raise BadRecord(f"{name}: its last row is {numbers[12:].tolist()}, expected 0 0 0 1")
    R = matrix[:3, :3]
    if not np.isfinite(matrix).all() or np.abs(R @ R.T - np.eye(3)).max() > TOLERANCE:
        raise BadRecord(f"{name}: its 3 x 3 part is no rotation")
    if np.linalg.det(R) < 0:
        raise BadRecord(f"{name}: a reflection (determinant -1)")
    return matrix


def inverse(matrix: np.ndarray) -> np.ndarray:
    """The inverse of a rigid motion [4, 4]."""
    found = np.eye(4)
    found[:3, :3] = matrix[:3, :3].T
    found[:3, 3] = -matrix[:3, :3].T @ matrix[:3, 3]
    return found


def move(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points [N, 3] moved by a rigid motion, float64."""
    return np.asarray(points, np.float64) @ matrix[:3, :3].T + matrix[:3, 3]
