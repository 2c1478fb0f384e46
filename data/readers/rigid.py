"""Axes of cameras as data sets have them, and points moved from one frame to another."""

import numpy as np

CV_T_GL = np.diag([1.0, -1.0, -1.0, 1.0])
"""Between cameras that look along -z with y up (OpenGL, Blender) and ours: world_T_cv = world_T_gl @ CV_T_GL."""


def move(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points [N, 3] moved by a rigid motion, float64."""
    return np.asarray(points, np.float64) @ matrix[:3, :3].T + matrix[:3, 3]
