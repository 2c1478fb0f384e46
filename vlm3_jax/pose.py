"""Relative poses, Euler angles and angles between rotations and directions.

Frames are x right, y down, z forward (OpenCV); `world_T_cam` maps camera coordinates to world coordinates, so its last
column holds the camera centre. Angles are in degrees. Euler convention: `R = Ry(yaw) Rx(pitch) Rz(roll)` with plain
right-handed matrices; yaw > 0 turns right, pitch > 0 looks up, roll > 0 banks right (docs/conventions.md).
"""

import numpy as np

from vlm3_jax.errors import BadRecord
from vlm3_jax.shapes import Float

_ORTHONORMAL_TOLERANCE = 1e-3
_GIMBAL_COSINE = 1e-6


def check_pose(pose, name: str) -> Float[np.ndarray, "4 4"]:
    """`pose` as float64 [4, 4]. BadRecord naming `name` unless it is finite, a rotation and a translation."""
    pose = np.asarray(pose, np.float64)
    if pose.shape != (4, 4) or not np.isfinite(pose).all():
        raise BadRecord(f"{name}: a camera pose must be a finite 4 x 4 matrix")
    R = pose[:3, :3]
    if np.abs(pose[3] - [0, 0, 0, 1]).max() > 1e-6:
        raise BadRecord(
            f"{name}: the last row of the camera pose is {pose[3].tolist()}, not 0 0 0 1; is the matrix transposed?"
        )
    det = np.linalg.det(R)
    if np.abs(R @ R.T - np.eye(3)).max() > _ORTHONORMAL_TOLERANCE or det < 0:
        raise BadRecord(
            f"{name}: the camera pose holds no rotation (determinant {det:.4g}; -1 says that an axis is mirrored); "
            "remove scale and reflection"
        )
    return pose


def inverse(a_T_b) -> Float[np.ndarray, "4 4"]:
    """b_T_a of a rigid motion [4, 4], float64."""
    a_T_b = np.asarray(a_T_b, np.float64)
    found = np.eye(4)
    found[:3, :3] = a_T_b[:3, :3].T
    found[:3, 3] = -a_T_b[:3, :3].T @ a_T_b[:3, 3]
    return found


def relative_pose(world_T_cam1, world_T_cam2) -> Float[np.ndarray, "4 4"]:
    """cam1_T_cam2, float64 [4, 4]: the second camera seen from the first.

    R = R1ᵀ R2 and t = R1ᵀ (C2 - C1): t is where the second camera's centre lies in the first camera's frame.
    """
    first, second = np.asarray(world_T_cam1, np.float64), np.asarray(world_T_cam2, np.float64)
    R1 = first[:3, :3]
    relative = np.eye(4)
    relative[:3, :3] = R1.T @ second[:3, :3]
    relative[:3, 3] = R1.T @ (second[:3, 3] - first[:3, 3])
    return relative


def matrix_from_quaternion(w, x, y, z) -> Float[np.ndarray, "3 3"]:
    """The rotation of a quaternion of any length above 0, float64 [3, 3]. BadRecord if it has none."""
    q = np.array([w, x, y, z], np.float64)
    length = np.linalg.norm(q)
    if not 1e-9 < length < np.inf:
        raise BadRecord(f"quaternion: {q.tolist()} is no rotation")
    w, x, y, z = q / length
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def quaternion_from_matrix(R) -> Float[np.ndarray, "4"]:
    """w, x, y, z (w >= 0) of a rotation [3, 3], float64: Shepperd's method, which divides by the largest part."""
    R = np.asarray(R, np.float64)
    # Four times the squares of w, x, y, z.
    squares = 1 + np.array([np.trace(R), *(2 * np.diag(R) - np.trace(R))])
    largest = int(np.argmax(squares))
    crossed = np.array([R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1]])
    products = np.zeros((4, 4))
    products[0, 1:] = products[1:, 0] = crossed
    products[1:, 1:] = R + R.T
    np.fill_diagonal(products, squares)
    q = products[largest] / np.linalg.norm(products[largest])
    return -q if q[0] < 0 else q


def from_quaternion(wxyz, translation) -> Float[np.ndarray, "4 4"]:
    """a_T_b, float64 [4, 4], from a quaternion w x y z (of any length above 0) and b's origin in a."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = matrix_from_quaternion(*wxyz), np.asarray(translation, np.float64)
    return matrix


def matrix_from_euler(yaw, pitch, roll) -> Float[np.ndarray, "3 3"]:
    """Degrees -> `Ry(yaw) Rx(pitch) Rz(roll)`, float64 [3, 3]."""
    (sy, sp, sr), (cy, cp, cr) = np.sin(np.radians([yaw, pitch, roll])), np.cos(np.radians([yaw, pitch, roll]))
    return np.array(
        [
            [cy * cr + sy * sp * sr, -cy * sr + sy * sp * cr, sy * cp],
            [cp * sr, cp * cr, -sp],
            [-sy * cr + cy * sp * sr, sy * sr + cy * sp * cr, cy * cp],
        ]
    )


def euler_from_matrix(R) -> tuple[float, float, float]:
    """Rotation [3, 3] -> (yaw, pitch, roll) in degrees; at pitch = ±90° only yaw ∓ roll is defined and roll is 0."""
    R = np.asarray(R, np.float64)
    cos_pitch = np.hypot(R[1, 0], R[1, 1])
    # The same as asin(-R12), without its loss of digits near 90 degrees.
    pitch = np.arctan2(-R[1, 2], cos_pitch)
    if cos_pitch < _GIMBAL_COSINE:
        yaw, roll = np.arctan2(-R[2, 0], R[0, 0]), 0.0
    else:
        yaw, roll = np.arctan2(R[0, 2], R[2, 2]), np.arctan2(R[1, 0], R[1, 1])
    return float(np.degrees(yaw)), float(np.degrees(pitch)), float(np.degrees(roll))


def rotation_angle(R) -> float:
    """Total angle of a rotation [3, 3] in degrees, 0 to 180.

    acos((tr R - 1) / 2) loses half of the digits near 0 and 180; sine and cosine together keep them.
    """
    R = np.asarray(R, np.float64)
    axis = np.array([R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1]])
    return float(np.degrees(np.arctan2(np.linalg.norm(axis), np.trace(R) - 1)))


def unit_vector(vector) -> np.ndarray:
    """A vector [3] that is not zero, at length 1; scaled first, so that huge and tiny ones stay in range."""
    vector = np.asarray(vector, np.float64)
    vector = vector / np.abs(vector).max()
    return vector / np.linalg.norm(vector)


def direction_angle(first, second, sign_blind: bool = False) -> float:
    """Angle between two non-zero vectors [3] in degrees; `sign_blind`: between their lines, so at most 90."""
    # Only the directions count; scaling keeps products of huge or tiny vectors in range.
    first, second = (v / np.abs(v).max() for v in (np.asarray(first, np.float64), np.asarray(second, np.float64)))
    cosine = first @ second
    return float(np.degrees(np.arctan2(np.linalg.norm(np.cross(first, second)), abs(cosine) if sign_blind else cosine)))
