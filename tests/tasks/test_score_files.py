"""Scoring anybody's JSON-lines files: numbers and one-line errors that name file and line."""

import json

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from vlm3_jax import tasks
from vlm3_jax.errors import UserError
from vlm3_jax.tasks.score import score_files


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def truth(row_id, depth_m=2.0):
    return {"id": row_id, "target": {"kind": "depth", "depth_m": depth_m}}


def answer(row_id, text="2.0 meters"):
    return {"id": row_id, "prediction": text}


def test_scores_with_a_missing_prediction(tmp_path):
    targets = write(tmp_path / "t.jsonl", [truth("a"), "", truth("b"), truth(3), truth("d")])
    predictions = write(tmp_path / "p.jsonl", [answer(3, "5 meters"), answer("a"), answer("b")])
    metrics = score_files("depth", predictions, targets)
    assert metrics["delta1"] == 0.5
    assert (metrics["count"], metrics["parse_failures"], metrics["missing_predictions"]) == (4, 1, 1)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([answer("a"), "{oops"], "p.jsonl, line 2: not JSON"),
        (["[1]"], "p.jsonl, line 1: expected an object"),
        ([{"id": "a"}], "line 1: expected an object with 'id' and 'prediction'"),
        ([{"prediction": "x"}], "line 1: expected an object with 'id'"),
        ([answer("a"), answer("a")], "p.jsonl, line 2: id 'a' is also on line 1"),
        ([answer("z")], "p.jsonl, line 1: id 'z' has no target in"),
        ([answer("a", [2.0])], "line 1: 'prediction' must be a text or a number, for a target of 'depth'"),
        ([answer("a", True)], "line 1: 'prediction' must be a text or a number"),
        ([answer("a", {"depth": 2})], "line 1: 'prediction' must be a text, the model's answer, or numbers"),
        ([answer("a", None)], "line 1: 'prediction' must be a text"),
        ([{"id": ["a"], "prediction": "x"}], "line 1: 'id' must be"),
        (["[" * 100_000], "line 1: not JSON"),
    ],
)
def test_wrong_predictions(tmp_path, rows, message):
    targets = write(tmp_path / "t.jsonl", [truth("a")])
    with pytest.raises(UserError) as error:
        score_files("depth", write(tmp_path / "p.jsonl", rows), targets)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_numbers_are_scored_as_they_are(tmp_path):
    targets = write(tmp_path / "t.jsonl", [truth("a"), truth("b"), truth("c"), truth("d")])
    predictions = write(tmp_path / "p.jsonl", [answer("a", 2.2), answer("b", 3), answer("c", "2 m"), answer("d", -1)])
    metrics = score_files("depth", predictions, targets)
    assert (metrics["delta1"], metrics["parse_failures"]) == (0.5, 0)
    boxes = [[1, 2, 3, 4], [5, 6, 7, 8]]
    rows = [{"kind": "predicate", "family": "left_right", "word": "left", "truth": False, "boxes": boxes}]
    rows += [
        {"kind": "quantity", "family": "width", "truth": 2.0},
        {"kind": "direction", "family": "direction", "truth": 1},
    ]
    targets = write(tmp_path / "t.jsonl", [{"id": n, "target": row} for n, row in enumerate(rows)])
    predictions = write(tmp_path / "p.jsonl", [answer(0, False), answer(1, 2.4), answer(2, 12)])
    assert score_files("objects", predictions, targets)["success"] == 1
    match = {"kind": "match", "coords": [1, 2], "truth": [500, 500], "coord_range": 1000}
    targets = write(tmp_path / "t.jsonl", [{"id": "a", "target": match}])
    assert score_files("correspondence", write(tmp_path / "p.jsonl", [answer("a", [500, 510])]), targets)["epe"] == 4.2


@pytest.mark.parametrize(
    ("task", "target", "message"),
    [
        ("depth", 3, "'target' must be an object whose 'kind' is one of depth"),
        ("depth", {"kind": "match"}, "'kind' is one of depth"),
        ("depth", {"kind": "depth"}, "'depth_m' is missing"),
        ("depth", {"kind": "depth", "depth_m": 0}, "'depth_m' is missing or is not a positive number"),
        ("depth", {"kind": "depth", "depth_m": float("nan")}, "'depth_m'"),
        ("depth", {"kind": "depth", "depth_m": True}, "'depth_m'"),
        ("correspondence", {"kind": "match", "coords": [1, 2], "truth": [1], "coord_range": 9}, "'truth'"),
        ("pose", {"kind": "euler_natural", "pair": "a", "rotation": [1], "translation": [1, 2, 3]}, "'rotation'"),
        (
            "pose",
            {"kind": "translation_direction", "pair": "a", "rotation": [0] * 9, "translation": [0, 0, 0]},
            "'translation' is missing or is not a list of 3 numbers that are not all zero",
        ),
        ("depth", {"kind": "depth", "depth_m": 10**400}, "'depth_m'"),
        ("objects", {"kind": "direction", "family": "direction", "truth": 13}, "an hour from 1 to 12"),
        (
            "objects",
            {"kind": "quantity", "family": "depth", "truth": 1.0},
            "'family' is missing or is not one of direct",
        ),
        ("objects", {"kind": [], "family": "depth"}, "'kind' is one of"),
    ],
)
def test_wrong_targets(tmp_path, task, target, message):
    targets = write(tmp_path / "t.jsonl", [{"id": "a", "target": target}])
    with pytest.raises(UserError, match="line 1") as error:
        score_files(task, write(tmp_path / "p.jsonl", [answer("a")]), targets)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "rotation",
    [
        np.diag([1, 1, -1]),
        -np.eye(3),
        np.eye(3) * 1000,
        np.eye(3) * 1.01,
        np.zeros((3, 3)),
        np.full((3, 3), 1e200),
        np.diag([1, 1, 2]),
        [[1, 0.1, 0], [0, 1, 0], [0, 0, 1]],
    ],
)
@pytest.mark.parametrize("kind", tasks.get("pose").target_fields)
def test_a_target_rotation_must_be_a_rotation(tmp_path, rotation, kind):
    def row(row_id, rotation):
        target = {"kind": kind, "pair": "p", "rotation": np.ravel(rotation).tolist(), "translation": [1, 0, 0]}
        return {"id": row_id, "target": target}

    predictions = write(tmp_path / "p.jsonl", [answer("a")])
    turned = Rotation.from_euler("YXZ", (30, -20, 5), degrees=True).as_matrix().round(5)
    assert score_files("pose", predictions, write(tmp_path / "t.jsonl", [row("a", turned)]))["count"] == 1
    targets = write(tmp_path / "t.jsonl", [row("a", turned), row("b", rotation)])
    with pytest.raises(UserError, match=r"t\.jsonl, line 2: target field 'rotation'.* no scale, no reflection"):
        score_files("pose", predictions, targets)


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path):
    paths = [write(tmp_path / "p.jsonl", [answer("a")]), write(tmp_path / "t.jsonl", [truth("a")])]
    for path in paths:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert score_files("depth", *paths)["delta1"] == 1


def test_wrong_files(tmp_path):
    targets = write(tmp_path / "t.jsonl", [truth("a")])
    with pytest.raises(UserError, match=r"none\.jsonl: cannot read it"):
        score_files("depth", tmp_path / "none.jsonl", targets)
    with pytest.raises(UserError, match="no targets"):
        score_files("depth", targets, write(tmp_path / "empty.jsonl", []))
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "\xe9"}\n')
    with pytest.raises(UserError, match="not UTF-8"):
        score_files("depth", tmp_path / "latin.jsonl", targets)
    with pytest.raises(UserError, match="unknown task"):
        score_files("colour", targets, targets)
