"""Depth prompts to the character and delta1 by hand."""

import json
import pathlib

import numpy as np
import pytest
from records_for_tests import view

from vlm3_jax import records, tasks
from vlm3_jax.camera import Camera, Focal
from vlm3_jax.errors import BadRecord
from vlm3_jax.records import DepthPoints, Record
from vlm3_jax.tasks.protocol import given

task = tasks.get("depth")


def one_point(depth_m, point=(321, 123), kind="distance"):
    camera = Camera(500, 500, 320, 240, 640, 480)
    return Record("a", (view(camera),), (DepthPoints(np.array([point]), np.array([depth_m]), kind),))


def targets(*depths):
    return [{"kind": "depth", "depth_m": d} for d in depths]


def test_release_prompt_to_the_character(rng):
    (example,) = task.examples(one_point(2.345), rng, given("depth"))
    assert example.question == (
        "Given this image, how far is the point at coordinates (1003, 512) from the camera? The coordinates are in "
        "normalised [0, 2000] format relative to image width and height. Output the thinking process in <think> "
        "</think> and final answer (the meter number only, without the unit) in <answer> </answer> tags."
    )
    assert example.answer == (
        "<think> The point is around 2.35 meters away from the camera. </think>\n\n<answer> 2.35 </answer>"
    )
    assert example.target == {"kind": "depth", "depth_m": 2.345, "depth_kind": "distance", "coords": [1003, 512]} | {
        "coord_range": 2000
    }
    assert example.views == (0,)


def test_paper_and_short_prompts(rng):
    (example,) = task.examples(one_point(2.345, kind="z"), rng, given("depth", "paper"))
    assert example.question == (
        "How far is the pixel at (1003, 512) from the camera? Both x and y are normalized to between [0, 2000)."
    )
    assert example.answer == "2.35 meters"
    assert example.target["depth_kind"] == "z"
    (example,) = task.examples(one_point(2.345, (33, 123)), rng, given("depth", "short"))
    assert (example.question, example.answer) == ("d05,26", "2.3")
    (example,) = task.examples(one_point(2.345, (33, 123)), rng, given("depth", "short", coord_range=1000))
    assert example.question == "d052,256"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think> about 7 meters </think>\n\n<answer> 2.35 </answer>", 2.35),
        ("<answer>-1</answer>", -1),
        ("<answer> 1.2e1 meters </answer>", 12),
        ("<answer> .5", 0.5),
        ("It is 3 pixels and 4.5 meters away", 4.5),
        ("2m", 2),
        ("1.5 metres", 1.5),
        ("2.3", 2.3),
        ("", None),
        ("I cannot tell.", None),
        ("<think> 5 meters", None),
        ("<think> 5 meters </think> <answer> unknown </answer>", None),
        ("at (100, 200)", None),
        ("35 cm", 0.35),
        ("<answer> 1e999 </answer>", None),
        ("nan", None),
    ],
)
def test_parse(text, value):
    assert task.parse(text) == value


def test_metrics_by_hand():
    truth = targets(2.0, 2.0, 4.0, 8.0, 1.0, 1.0)
    # 1.25 exactly is wrong (strict), both ways; a failure and zero are wrong.
    texts = ["2.4 m", "2.5 m", "3.2 m", "7 m", "no idea", "0 m"]
    metrics = task.score(texts, truth)
    assert metrics == {
        "delta1": 2 / 6,
        "delta1_parsed": 2 / 5,
        "abs_rel": pytest.approx((0.2 + 0.25 + 0.2 + 0.125 + 1) / 5),
        "scale_bias": 0.875,
        "count": 6,
        "parse_failures": 1,
    }
    nothing = task.score(["?"], targets(1.0))
    assert nothing["delta1"] == 0
    assert np.isnan([nothing["delta1_parsed"], nothing["abs_rel"], nothing["scale_bias"]]).all()


def test_the_constant_is_the_best_of_all_constants(rng):
    truth = targets(*rng.lognormal(1, 0.8, 300))
    best = task.item_scores(task.constant_answers(truth), truth).mean()
    others = [task.item_scores([c] * 300, truth).mean() for c in np.geomspace(0.1, 100, 2000)]
    assert best >= max(others)
    # Equal truths count each: three ones beat two fives.
    assert 0.8 < task.constant_answers(targets(1.0, 1.0, 1.0, 5.0, 5.1))[0] < 1.25


def test_points_are_drawn_without_replacement_from_one_view_with_labels(record, rng):
    examples = task.examples(record, rng, given("depth", questions=1000))
    assert len(examples) == 60
    depths = [e.target["depth_m"] for e in examples]
    assert sorted(depths) == sorted(map(float, record.depth[0].depth_m))
    assert {e.views for e in examples} == {(record.depth[0].view,)}


def test_broken_and_unwritable_labels(rng):
    for broken in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(BadRecord, match="a: depth"):
            task.examples(one_point(broken), rng, given("depth"))
    assert task.examples(one_point(0.25), rng, given("depth", "short")) == []
    assert task.examples(one_point(2.0, (640, 10)), rng, given("depth")) == []


def test_real_prompts_of_ibims(samples: pathlib.Path, rng):
    row = json.loads((samples / "ibims1" / "ibims1.jsonl").read_text().splitlines()[0])
    camera = Camera.from_intrinsics(row["intrinsics"])
    record = Record("0", (view(camera),), (DepthPoints(np.array(row["pixel_coords"]), np.array(row["depth"]), "z"),))
    examples = task.examples(records.unify(record, Focal(1000)), rng, given("depth", questions=100))
    # The release's arithmetic, written out for each point.
    fx, _, cx, cy, width, height = row["intrinsics"]
    s = 1000 / fx
    expected = {
        (
            min(round(int((x - cx) * s + cx * s + 1e-9) * 2000 / int(width * s)), 1999),
            min(round(int((y - cy) * s + cy * s + 1e-9) * 2000 / int(height * s)), 1999),
            f"{d:.2f}",
        )
        for (x, y), d in zip(row["pixel_coords"], row["depth"])
    }
    assert {(*e.target["coords"], e.answer.split("<answer> ")[1].split()[0]) for e in examples} == expected
    assert task.score([e.answer for e in examples], [e.target for e in examples])["delta1"] == 1
