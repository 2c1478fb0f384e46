"""Correspondence prompts, EPE by hand, and a real stereo pair."""

import pathlib

import numpy as np
import pytest
from records_for_tests import view

from vlm3_jax import tasks
from vlm3_jax.camera import Camera
from vlm3_jax.records import Matches, Record
from vlm3_jax.tasks.correspondence import question
from vlm3_jax.tasks.protocol import given

task = tasks.get("correspondence")


def pair(point0=(45, 67), point1=(52.4, 61.2)):
    camera = Camera(100, 100, 50, 50, 100, 100)
    return Record("a", (view(camera), view(camera)), matches=Matches(np.array([point0]), np.array([point1])))


def test_prompts_to_the_character(rng):
    (example,) = task.examples(pair(), rng, given("correspondence"))
    assert example.question == (
        "Given these two images, what pixel in the second image corresponds to pixel (450, 670) in the first image? "
        "Report the answer as (x, y)."
    )
    assert (example.answer, example.views) == ("(524, 612)", (0, 1))
    assert example.target["truth"] == pytest.approx([524, 612])
    (example,) = task.examples(pair(), rng, given("correspondence", think=True))
    assert example.question.endswith(
        'Report the answer as (x, y). Please think step by step and follow the format: "<think> [think process] '
        '</think>\n\n[answer]".'
    )
    assert example.answer.endswith("</think>\n\n(524, 612)")
    (example,) = task.examples(pair(), rng, given("correspondence", "paper"))
    assert "pixel (900, 1340)" in example.question
    assert example.question.endswith("(x2, y2).")
    assert example.answer == "The corresponding pixel is (1048, 1224)"
    (example,) = task.examples(pair((5, 7)), rng, given("correspondence", "short"))
    assert (example.question, example.answer) == ("m05,07", "52,61")


def test_training_varies_the_wording_and_evaluation_does_not(record, rng):
    def openings(vary):
        asked = given("correspondence", questions=40)
        return {e.question.split("(")[0] for e in task.examples(record, rng, asked, vary)}

    assert len(openings(True)) == 5
    assert openings(False) == {question(0, 0, given("correspondence")).split("(")[0]}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("(52, 61)", (52, 61)),
        ("52,61", (52, 61)),
        ("<think> from (1, 2) </think>\n\n(3.5, 4)", (3.5, 4)),
        ("The corresponding pixel is [10, -2]", (10, -2)),
        ("x = 10, y = 20", None),
        ("<think> (1, 2)", None),
        ("52", None),
        ("(1" + "0" * 400 + ", 5)", None),
    ],
)
def test_parse(text, value):
    assert task.parse(text) == value


def test_metrics_by_hand():
    targets = [{"kind": "match", "coords": [0, 0], "truth": [500.0, 500.0], "coord_range": 1000} for _ in range(3)]
    targets.append({"kind": "match", "coords": [0, 0], "truth": [2000.0, 0.0], "coord_range": 2000})
    # 10 units of x are 5.6 px, 10 of y are 4.2 px; the failure is half the frame's diagonal off.
    metrics = task.score(["(510, 500)", "(500, 510)", "(500, 500)", "?"], targets)
    half_diagonal = np.hypot(280, 210)
    assert metrics == {
        "epe": pytest.approx((5.6 + 4.2 + 0 + half_diagonal) / 4),
        "epe_parsed": pytest.approx((5.6 + 4.2) / 3),
        "above_1px": 0.75,
        "above_2px": 0.75,
        "above_5px": 0.5,
        "count": 4,
        "parse_failures": 1,
    }
    assert task.extra_references(targets)["copy_query"] == [(0, 0)] * 4


def test_motorcycle_disparity(samples: pathlib.Path, rng):
    with np.load(samples / "motorcycle_stereo" / "motorcycle_disp.npz") as archive:
        disparity = archive["arr_0"]
    height, width = disparity.shape
    camera = Camera(994.978, 994.978, 311.193, 254.877, width, height)
    y, x = np.nonzero(np.isfinite(disparity))
    right = np.stack([x - disparity[y, x], y], -1)
    record = Record("m", (view(camera), view(camera)), matches=Matches(np.stack([x, y], -1), right))
    examples = task.examples(record, rng, given("correspondence", questions=200))
    assert len(examples) == 200
    for example in examples:
        (x0, y0), (x1, y1) = example.target["coords"], example.target["truth"]
        # The same row, further left by a disparity of the image's own range.
        assert abs(y1 - y0) <= 0.5
        assert np.nanmin(disparity[np.isfinite(disparity)]) - 1 < (x0 - x1) * width / 1000 < 60 + 1
    shift = np.mean([e.target["coords"][0] - e.target["truth"][0] for e in examples]) * 560 / 1000
    copied = task.item_scores(
        task.extra_references([e.target for e in examples])["copy_query"], [e.target for e in examples]
    )
    assert copied.mean() == pytest.approx(shift, rel=1e-2)


def test_matches_outside_the_second_image_are_not_asked(rng):
    assert task.examples(pair(point1=(100.0, 20)), rng, given("correspondence")) == []
    assert task.examples(pair(point1=(-0.1, 20)), rng, given("correspondence")) == []
