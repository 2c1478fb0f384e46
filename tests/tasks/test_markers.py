"""DepthLM's markers: the arrow pixel by pixel, which points get one, and that each question has its own image."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from records_for_tests import random_record

from vlm3_jax import marker, tasks
from vlm3_jax.tasks import protocol
from vlm3_jax.tasks.protocol import given

# x - 5 to x + 2 across, y - 3 to y + 3 down; P is the pixel that is pointed at, and stays as it is.
ARROW = """
........
..R.....
...R....
RRRRRP..
...R....
..R.....
........
"""
task = tasks.get("depth")


def red(image) -> np.ndarray:
    return (np.asarray(image) == (255, 0, 0)).all(-1)


def test_the_arrow_pixel_by_pixel(rng):
    pixels = rng.integers(0, 200, (40, 60, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    marked = marker.drawn(image, (30, 20))
    wanted = np.zeros((40, 60), bool)
    wanted[17:24, 25:33] = [[c == "R" for c in line] for line in ARROW.split()]
    np.testing.assert_array_equal(red(marked), wanted)
    # All other pixels, that of the point too, and the image that was given stay as they are.
    np.testing.assert_array_equal(np.asarray(marked)[~wanted], pixels[~wanted])
    np.testing.assert_array_equal(np.asarray(image), pixels)
    assert red(marker.drawn(image, (0, 0))).sum() == 0
    assert red(marker.drawn(image, (3, 39))).sum() == 5


def test_points_within_five_pixels_of_the_border_get_none():
    points = [[5, 5], [4, 5], [5, 4], [94, 74], [95, 74], [94, 75]]
    assert marker.fits(points, 100, 80).tolist() == [True, False, False, True, False, False]


def test_the_question_to_the_character_and_the_pixel_it_points_at(rng):
    record = random_record(rng)
    (example,) = task.examples(record, rng, given("depth", marker=True))
    assert example.question == (
        "Given this image, how far is the point pointed by the red arrow from the camera? Output the thinking process "
        "in <think> </think> and final answer (the meter number only, without the unit) in <answer> </answer> tags."
    )
    (labels,) = record.depth
    depth = dict(zip(map(tuple, labels.points_px.tolist()), labels.depth_m.tolist(), strict=True))
    assert example.target["depth_m"] == depth[example.marker]
    assert example.answer.endswith(f"<answer> {depth[example.marker]:.2f} </answer>")
    assert task.parse(example.answer) == pytest.approx(depth[example.marker], abs=0.005)
    (short,) = task.examples(record, rng, given("depth", "short", marker=True))
    assert short.question == "d"
    assert all(e.marker is None for e in task.examples(record, rng, given("depth")))


def test_labels_too_close_to_the_border_are_not_asked(rng):
    record = random_record(rng)
    width, height = record.cameras[0].width, record.cameras[0].height
    edge = dataclasses.replace(record.depth[0], points_px=np.array([[4, 50], [50, height - 5], [width - 5, 9]]))
    edge = dataclasses.replace(edge, depth_m=np.array([1.0, 2.0, 3.0]))
    assert len(task.examples(dataclasses.replace(record, depth=(edge,)), rng, given("depth"))) == 3
    assert task.examples(dataclasses.replace(record, depth=(edge,)), rng, given("depth", marker=True)) == []


@pytest.mark.parametrize(
    ("name", "wording", "fields", "message"),
    [
        ("depth", "paper", {}, "marker is for depth in the release's or the short wording, not depth, paper"),
        ("pose", "release", {}, "not pose, release"),
        ("depth", "release", {"questions": 10}, "questions is 10, but with a marker every question needs its own"),
    ],
)
def test_where_there_are_no_markers(name, wording, fields, message):
    with pytest.raises(ValueError, match=message):
        given(name, wording, marker=True, **fields)


def test_a_model_says_that_it_is_asked_by_markers(tmp_path):
    asked = {"depth": given("depth", marker=True), "pose": given("pose")}
    protocol.write(tmp_path, asked)
    assert protocol.read(tmp_path) == asked
    # A program that knows of no marker reads the others.
    assert "marker" not in asked["pose"].facts()
