"""Pose conventions against scipy and against real ScanNet poses."""

import itertools
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from vlm3_jax import pose
from vlm3_jax.errors import BadRecord

angles = st.tuples(st.floats(-179.9, 179.9), st.floats(-89.9, 89.9), st.floats(-179.9, 179.9))


@given(angles)
def test_euler_is_scipys_intrinsic_yxz(angles):
    R = pose.matrix_from_euler(*angles)
    np.testing.assert_allclose(R, Rotation.from_euler("YXZ", angles, degrees=True).as_matrix(), atol=1e-12)


@given(angles)
def test_euler_round_trip(angles):
    found = pose.euler_from_matrix(pose.matrix_from_euler(*angles))
    np.testing.assert_allclose(found, angles, atol=1e-7)


@pytest.mark.parametrize("pitch", [90.0, -90.0])
def test_euler_at_the_gimbal_keeps_the_rotation_and_sets_roll_to_zero(pitch):
    R = pose.matrix_from_euler(40.0, pitch, 25.0)
    yaw, found, roll = pose.euler_from_matrix(R)
    assert roll == 0
    np.testing.assert_allclose(found, pitch, atol=1e-6)
    np.testing.assert_allclose(pose.matrix_from_euler(yaw, found, roll), R, atol=1e-9)


def test_signs_turn_right_look_up_bank_right():
    forward, right = np.array([0, 0, 1.0]), np.array([1.0, 0, 0])
    assert (pose.matrix_from_euler(10, 0, 0) @ forward)[0] > 0
    assert (pose.matrix_from_euler(0, 10, 0) @ forward)[1] < 0
    # Banked to the right, the camera's right side points down (+y).
    assert (pose.matrix_from_euler(0, 0, 10) @ right)[1] > 0


@pytest.mark.parametrize("degrees", [0.0, 1e-9, 1e-5, 1.0, 90.0, 179.0, 180 - 1e-5, 180 - 1e-9, 180.0])
def test_rotation_angle_is_exact_at_both_ends(degrees):
    axis = np.array([0.36, -0.48, 0.8])
    R = Rotation.from_rotvec(axis * np.radians(degrees)).as_matrix()
    assert pose.rotation_angle(R) == pytest.approx(degrees, rel=1e-6, abs=1e-13)


def test_direction_angle_with_and_without_sign():
    assert pose.direction_angle([1, 0, 0], [-2, 0, 0]) == 180
    assert pose.direction_angle([1, 0, 0], [-2, 0, 0], sign_blind=True) == 0
    assert pose.direction_angle([0, 0, 1], [0, 1, 1]) == pytest.approx(45)
    assert pose.direction_angle([0, 0, 1], [0, 1, -1], sign_blind=True) == pytest.approx(45)
    assert pose.direction_angle([1e-200, 0, 0], [0, 1e200, 0]) == 90


def test_relative_pose_maps_camera_two_into_camera_one(rng):
    first, second = np.eye(4), np.eye(4)
    first[:3, :3], second[:3, :3] = Rotation.random(2, rng=rng).as_matrix()
    first[:3, 3], second[:3, 3] = rng.normal(size=(2, 3))
    np.testing.assert_allclose(pose.relative_pose(first, second), np.linalg.inv(first) @ second, atol=1e-12)


def test_real_scannet_pairs(samples: pathlib.Path):
    poses = [np.loadtxt(path) for path in sorted((samples / "scannet_pose_sample" / "pose").glob("*.txt"))]
    assert len(poses) == 4
    for one, two in itertools.combinations(poses, 2):
        relative = pose.relative_pose(one, two)
        # Any point of the world is the same seen through both cameras (ScanNet writes six decimals).
        world = np.array([1.2, -0.7, 0.4, 1])
        seen_by_one, seen_by_two = np.linalg.solve(one, world), np.linalg.solve(two, world)
        np.testing.assert_allclose(relative @ seen_by_two, seen_by_one, atol=2e-5)
        assert np.linalg.norm(relative[:3, 3]) == pytest.approx(np.linalg.norm(two[:3, 3] - one[:3, 3]), rel=1e-5)
        expected = np.degrees((Rotation.from_matrix(one[:3, :3]).inv() * Rotation.from_matrix(two[:3, :3])).magnitude())
        assert pose.rotation_angle(relative[:3, :3]) == pytest.approx(expected, abs=1e-3)
        np.testing.assert_allclose(
            pose.euler_from_matrix(relative[:3, :3]),
            Rotation.from_matrix(relative[:3, :3]).as_euler("YXZ", degrees=True),
            atol=1e-3,
        )


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (np.eye(3), "finite 4 x 4"),
        (np.full((4, 4), -np.inf), "finite 4 x 4"),
        (np.diag([2.0, 2, 2, 1]), "determinant 8;"),
        (np.diag([1.0, 1, -1, 1]), "determinant -1; -1 says that an axis is mirrored"),
        (np.diag([1.0, 1, 1, 2]), "last row"),
    ],
)
def test_a_pose_that_is_no_rigid_motion_is_a_bad_record(broken, why):
    with pytest.raises(BadRecord, match=f"frame 7: .*{why}"):
        pose.check_pose(broken, "frame 7")


def test_an_inverse_is_that_of_the_matrix():
    moved = pose.from_quaternion((0.5, -1, 2, 0.25), (1, 2, 3))
    np.testing.assert_allclose(pose.inverse(moved), np.linalg.inv(moved), atol=1e-12)


def test_a_transposed_pose_is_named():
    moved = np.eye(4)
    moved[:3, 3] = [1, 2, 3]
    assert pose.check_pose(moved, "frame 7").shape == (4, 4)
    with pytest.raises(BadRecord, match=r"^frame 7: the last row .* is \[1.0, 2.0, 3.0, 1.0\], not 0 0 0 1; is the"):
        pose.check_pose(moved.T, "frame 7")


def test_quaternions_there_and_back(rng):
    """Half turns, where w is 0, and turns about single axes among them; w is never negative."""
    special = [np.eye(3), *(np.diag(d) for d in ([1.0, -1, -1], [-1.0, 1, -1], [-1.0, -1, 1]))]
    for R in [*special, *(pose.matrix_from_euler(*rng.uniform(-180, 180, 3)) for _ in range(50))]:
        q = pose.quaternion_from_matrix(R)
        assert q[0] >= 0
        np.testing.assert_allclose(np.linalg.norm(q), 1, rtol=1e-12)
        np.testing.assert_allclose(pose.matrix_from_quaternion(*q), R, atol=1e-12)
