"""Cameras: unification, normalised coordinates and distance against hand-computed values and real data."""

import json
import pathlib
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm3_jax.camera import Camera, as_camera, as_points, denormalize_points, normalize_points
from vlm3_jax.errors import BadRecord, UserError


def test_uniform_unification_truncates_and_keeps_the_ratio_of_focal_lengths():
    unified = Camera(500, 510, 320.5, 240, 641, 480).unify(1000)
    assert (unified.fx, unified.fy, unified.cx, unified.cy) == (1000, 1020, 641, 480)
    assert (unified.width, unified.height) == (1282, 960)
    assert Camera(559.62, 558.14, 361.87, 241.99, 640, 480).unify(1000).width == int(640 * 1000 / 559.62)


def test_per_axis_unification_rounds_and_makes_the_focal_lengths_equal():
    unified = Camera(600, 500, 320, 240, 640, 480).unify(750, "per_axis")
    assert (unified.fx, unified.fy) == (750, 750)
    assert (unified.width, unified.height) == (800, 720)
    assert Camera(599.7, 599.7, 320, 240, 640, 480).unify(750, "per_axis").width == round(640 * 750 / 599.7)


def test_a_missing_focal_length_is_the_other_one():
    assert Camera.from_intrinsics([0, 500, 1, 2, 640, 480]).fx == 500
    assert Camera.from_intrinsics([500, 0, 1, 2, 640, 480]).fy == 500
    for broken in ([0, 0, 1, 2, 640, 480], [1, 2, 3], [np.nan, 1, 1, 2, 640, 480], [1, 1, 1, 2, 0, 480]):
        with pytest.raises(BadRecord):
            Camera.from_intrinsics(broken)


@given(st.tuples(st.integers(0, 1599), st.integers(0, 899)), st.sampled_from([1000, 2000]), st.integers(100, 1600))
def test_normalised_coordinates_are_pythons_round(point, coord_range, side):
    expected = [min(round(v * coord_range / side), coord_range - 1) for v in point]
    assert normalize_points([point], (side, side), coord_range).tolist() == [expected]


def test_normalising_rounds_halves_to_even_and_clips():
    assert normalize_points([[1, 3], [639, 479]], (4, 4), 2).tolist() == [[0, 1], [1, 1]]
    assert normalize_points([[1, 3]], (80, 80), 1000).tolist() == [[12, 38]]


@given(st.integers(0, 1999), st.integers(0, 1999))
def test_denormalising_inverts(x, y):
    pixels = denormalize_points([[x, y]], (3000, 2500), 2000)
    assert normalize_points(pixels, (3000, 2500), 2000).tolist() == [[x, y]]


def test_points_map_as_the_release_does(samples: pathlib.Path):
    row = json.loads((samples / "ibims1" / "ibims1.jsonl").read_text().splitlines()[0])
    camera = Camera.from_intrinsics(row["intrinsics"])
    unified = camera.unify(1000)
    fx, fy, cx, cy = row["intrinsics"][:4]
    expected = [
        [int((x - cx) * unified.fx / fx + unified.cx), int((y - cy) * unified.fy / fy + unified.cy)]
        for x, y in row["pixel_coords"]
    ]
    assert camera.map_points(row["pixel_coords"], unified).tolist() == expected


def test_distance_is_the_norm_of_the_point(samples: pathlib.Path):
    row = json.loads((samples / "nuscenes_sample" / "depth.jsonl").read_text().splitlines()[0])
    camera = Camera.from_intrinsics(row["intrinsics"])
    points, z = np.array(row["pixel_coords"]), np.array(row["depth"])
    distance = camera.distance_from_z(points, z)
    in_space = np.linalg.solve(camera.matrix, np.c_[points, np.ones(len(points))].T * z).T
    np.testing.assert_allclose(distance, np.linalg.norm(in_space, axis=1))
    np.testing.assert_allclose(camera.project(in_space), points, atol=1e-6)
    np.testing.assert_allclose(camera.z_from_distance(points, distance), z)
    assert (distance / z).max() > 1.05


def test_a_crop_moves_the_principal_point_only():
    cropped = Camera(500, 500, 320, 240, 640, 480).crop(20, 10, 600, 400)
    assert cropped == Camera(500, 500, 300, 230, 600, 400)
    assert Camera.from_fov(800, 600, 90).fx == pytest.approx(400)


def test_inside():
    points = [[0, 0], [9, 7], [10, 7], [9, 8], [-1, 3], [9.5, 3]]
    assert Camera(10, 10, 5, 5, 10, 8).inside(points).tolist() == [True, True, False, False, False, False]


def test_focal_lengths_that_are_not_in_pixels_are_refused():
    for fx, fy in ((0.9, 1.2), (20, 20), (500, 20), (1e5, 1e5), (500, 1e5)):
        camera = Camera(fx, fy, 320, 240, 640, 480)
        with pytest.raises(BadRecord, match=r"^camera: implausible field of view, .*; give focal lengths in pixels"):
            camera.plausible()
        with pytest.raises(BadRecord, match=r"^camera_b: implausible field of view"):
            as_camera(camera, 640, 480, "camera_b")
    for centre in ((0.5, 0.5), (1, 0.01)):
        with pytest.raises(
            BadRecord, match=r"camera: its principal point .* is in the corner of an image of 640 x 480"
        ):
            Camera(500, 500, *centre, 640, 480).plausible()
    for fov in (2, 60, 165):
        assert Camera.from_fov(640, 480, fov).plausible() == Camera.from_fov(640, 480, fov)


def test_a_camera_is_a_camera_or_K():
    camera = Camera(500.0, 510.0, 320.0, 240.0, 640, 480)
    K = [[500, 0, 320], [0, 510, 240], [0, 0, 1]]
    assert as_camera(camera, 640, 480) is camera
    assert as_camera(K, 640, 480) == as_camera(np.array(K), 640, 480) == camera
    for wrong, why in [
        (camera, "camera: it is for 640 x 480 px, the image has 320 x 240"),
        ((500, 510, 320, 240), "got an array of shape [4]"),
        (np.eye(4), "got an array of shape [4, 4]"),
        ("wide", "a 3 x 3 matrix K in pixels, got str"),
        (np.transpose(K), "K must be [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]"),
        (np.full((3, 3), np.nan), "K must be"),
        ([[0.9, 0, 0.5], [0, 1.2, 0.5], [0, 0, 1]], "implausible field of view"),
        ([[-500, 0, 320], [0, 510, 240], [0, 0, 1]], "with fx and fy above 0"),
    ]:
        with pytest.raises(UserError, match=re.escape(why)):
            as_camera(wrong, 320, 240)


def test_points_are_pixels_of_the_image():
    assert as_points([[0, 0], [639, 479]], 640, 480).tolist() == [[0, 0], [639, 479]]
    assert as_points((12.9, 0.5), 640, 480).tolist() == [[12, 0]]
    for wrong, why in [
        ([[1, 2, 3], [4, 5, 6]], "got an array of int64, shape [2, 3]"),
        (
            [[1, 2], [float("nan"), 3]],
            "points[1]: (nan, 3) is not in the image of 640 x 480 px (1 of 2 points",
        ),
        ([[-0.5, 3]], "points[0]: (-0.5, 3) is not in the image"),
        ([[640, 3]], "points[0]: (640, 3) is not in the image"),
        ([], "got none"),
        ([[1, 2], [3]], "got none"),
        ([["a", "b"]], "got an array of <U1"),
        ([[True, False]], "got an array of bool"),
        (None, "got an array of object"),
        ([[0.5, 0.25], [0, 1]], "points: all lie between 0 and 1; give pixels, not fractions of the image"),
    ]:
        with pytest.raises(UserError, match=re.escape(why)):
            as_points(wrong, 640, 480)
