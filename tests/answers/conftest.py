"""A small photo and answers about it: a slanted floor with a box in front, known exactly."""

import numpy as np
import pytest

from vlm3_jax.answers.values import DenseMap, Depth, Match, RelativePose
from vlm3_jax.camera import Camera
from vlm3_jax.pose import matrix_from_euler, unit_vector
from vlm3_jax.processor.photo import Photo

SIZE = 40, 30


@pytest.fixture
def camera() -> Camera:
    return Camera(36.0, 36.0, 20.0, 15.0, *SIZE)


@pytest.fixture
def photo(camera, rng) -> Photo:
    pixels = rng.integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    return Photo("rooms/a photo.jpg", pixels, camera, "EXIF")


@pytest.fixture
def depth(camera) -> Depth:
    """Three points, the second unread; the map is a wall at z = 4 m with a box at z = 2 m, one pixel unknown."""
    z = np.full((SIZE[1], SIZE[0]), 4.0)
    z[10:20, 8:24] = 2.0
    rows, columns = np.indices(z.shape)
    pixels = np.stack([columns, rows], -1).reshape(-1, 2)
    distance = camera.distance_from_z(pixels, z.ravel()).reshape(z.shape).astype(np.float32)
    distance[0, 0] = np.nan
    points = np.array([[2, 3], [20, 15], [39, 29]])
    lengths = np.array([distance[3, 2], np.nan, distance[29, 39]], np.float64)
    return Depth(points, lengths, ["a", "?", "é"], camera, "EXIF", "z", DenseMap(distance, 3, 2.5))


@pytest.fixture
def match(camera) -> Match:
    points = np.array([[1, 2], [30, 20], [5, 5]])
    found = np.array([[4.5, 6.0], [np.nan, np.nan], [np.nan, np.nan]])
    outside = np.array([False, True, False])
    return Match(points, found, ["x", "y", "z"], outside, ("EXIF", "given"), (camera, camera))


@pytest.fixture
def pose(camera) -> RelativePose:
    rotation, direction = matrix_from_euler(30.0, -10.0, 5.0), unit_vector([1.0, -0.5, 2.0])
    return RelativePose(rotation, direction, 1.5, {"euler_natural": "..."}, ("EXIF", "given"), (camera, camera))
