"""A vehicle that drives through the world with cameras and a lidar, for fixtures of driving sets.

Vehicle and lidar axes are x forward, y left, z up; cameras x right, y down, z forward. Its origin is near the ground.
"""

import numpy as np

from tests.builders import world

VEHICLE_T_AXES = np.linalg.inv(world.FORWARD_LEFT_UP)
WORLD_T_MAP = world.pose(12.0, 3.0, -7.0, 50, 4, -6) @ world.FORWARD_LEFT_UP
"""Where the origin of the driving set's own map lies; its z is up, its poses are `map_T_vehicle`."""


def world_T_vehicle(seconds: float) -> np.ndarray:
    """Where the vehicle is: 8 m/s and 100 degrees/s, so that 20 ms matter."""
    return world.pose(0.1 + 2 * seconds, 1.2, -0.2 + 8 * seconds, 5 + 100 * seconds, 1, -1) @ world.FORWARD_LEFT_UP


def map_T_vehicle(seconds: float) -> np.ndarray:
    """The vehicle in the set's own map."""
    return np.linalg.inv(WORLD_T_MAP) @ world_T_vehicle(seconds)


def mounted(yaw: float, pitch: float = -2, roll: float = 1, x: float = 0.05, y: float = -1.3, z: float = 0.3):
    """vehicle_T_cam of a camera that looks `yaw` degrees to the right; x right, y down, z forward of the origin."""
    turn = world.pose(0, 0, 0, yaw)
    return VEHICLE_T_AXES @ turn @ world.pose(x, y, z, 0, pitch, roll)


VEHICLE_T_LIDAR = VEHICLE_T_AXES @ world.pose(0.02, -1.55, 0.05, 7, 1, 2) @ world.FORWARD_LEFT_UP


def sweep(seconds: float, directions=None) -> np.ndarray:
    """Points [N, 3] in the lidar's axes, all measured at one time."""
    directions = world.sweep(240, 40, -35, 15) if directions is None else directions
    return world.lidar_points(world_T_vehicle(seconds) @ VEHICLE_T_LIDAR, directions)


def move(matrix, points) -> np.ndarray:
    """Points [N, 3] by a matrix [4, 4]."""
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def quaternion(matrix) -> np.ndarray:
    """w x y z of a rotation, by scipy."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_matrix(matrix[:3, :3]).as_quat()[[3, 0, 1, 2]]
