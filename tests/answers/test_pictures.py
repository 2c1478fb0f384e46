import dataclasses
import io

import numpy as np
from PIL import Image

from vlm3_jax.answers import picture
from vlm3_jax.records.colours import depth_colours


def opened(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_a_map_stands_beside_its_photo(depth, photo):
    shown = opened(picture.encode_depth(depth, photo))
    # Small photos are enlarged by a whole number: 12 here.
    gap, width, height = picture._GAP, 40 * 12, 30 * 12
    np.testing.assert_array_equal(shown[gap : gap + height : 12, gap : gap + width : 12], photo.pixels)
    right = shown[gap : gap + height, width + 2 * gap :][::12, :width:12]
    near, far = (depth_colours(np.array([[v]]), (2.0, 4.0))[0, 0] for v in (2.0, 4.0))
    np.testing.assert_array_equal(right[15, 10], near)
    np.testing.assert_array_equal(right[25, 30], far)
    np.testing.assert_array_equal(right[0, 0], 0)


def test_the_spread_of_a_map_stands_beside_it(depth, photo):
    """In per cent of the median: twice as sure on the left."""
    share = np.where(np.arange(40) < 20, 0.1, 0.2)
    median = 2 * depth.dense.distance_m
    dense = dataclasses.replace(depth.dense, median_m=median, deviation_m=(share * median).astype(np.float32))
    shown = opened(picture.encode_depth(dataclasses.replace(depth, dense=dense), photo))
    gap, width, height = picture._GAP, 40 * 12, 30 * 12
    third = shown[gap : gap + height, 2 * width + 3 * gap :][::12, :width:12]
    sure, unsure = (depth_colours(np.array([[v]]), (10.0, 20.0))[0, 0] for v in (10.0, 20.0))
    np.testing.assert_array_equal(third[15, 10], sure)
    np.testing.assert_array_equal(third[25, 30], unsure)


def test_points_without_an_answer_are_grey(depth, photo):
    shown = opened(picture.encode_depth(dataclasses.replace(depth, dense=None), photo))
    gap, width = picture._GAP, 40 * 12
    x, y = ((np.array([20, 15]) + 0.5) * 12).astype(int)
    assert shown[gap + y, width + 2 * gap + x].tolist() == [128, 128, 128]


def test_nothing_readable(depth, photo):
    nothing = dataclasses.replace(depth, distance_m=np.full(3, np.nan), dense=None)
    assert opened(picture.encode_depth(nothing, photo)).shape[2] == 3


def test_matches_are_joined(match, photo):
    shown = opened(picture.encode_match(match, [photo, photo]))
    gap, width = picture._GAP, 40 * 12
    first, second = np.array([1.5, 2.5]) * 12 + gap, np.array([4.5, 6.0]) * 12 + [width + 2 * gap, gap]
    middle = np.rint((first + second) / 2).astype(int)
    near = shown[middle[1] - 1 : middle[1] + 2, middle[0] - 1 : middle[0] + 2].reshape(-1, 3)
    assert (255, 215, 0) in set(map(tuple, near.tolist()))
