import dataclasses
import io
import json
import math
import re

import numpy as np
import pytest
import rich.console
from evaluate_toys import Constant, Truthful, count, make_questions, mixed_questions

from vlm3_jax.errors import UserError
from vlm3_jax.evaluate.results import load_results
from vlm3_jax.evaluate.run import VARIANTS, evaluate
from vlm3_jax.evaluate.scoring import before_after, read_cells, rescore
from vlm3_jax.tasks import TASKS
from vlm3_jax.tasks.depth import DepthTask


@pytest.fixture
def all_questions():
    return mixed_questions()


PERFECT = {"depth": 1.0, "objects": 1.0, "correspondence": 0.0, "pose": 1.0, "conversation": 1.0}


def test_truth_scores_perfectly_and_only_with_its_own_images(all_questions, tmp_path):
    results = evaluate(Truthful(all_questions), all_questions, tmp_path, progress=False, records_per_call=5)
    assert {entry.task for entry in results.entries} == set(TASKS)
    for entry in results.entries:
        model, blind, shuffled = (entry.scores[v] for v in ("model", "blind", "shuffled"))
        # Rounded answers: one normalised unit of 1,000 is 0.56 px.
        assert model.value == pytest.approx(PERFECT[entry.task], abs=0.5 if entry.task == "correspondence" else 1e-3)
        assert model.failures == 0
        assert model.gain is None
        assert blind.value == model.value, "a grey image keeps its reference, so this answerer still knows it"
        # Pose asks the same questions everywhere, so another pair's answers can be read; they are just wrong. And any
        # text is an answer in a conversation.
        assert entry.task in ("pose", "conversation") or shuffled.failures > 0.5 * len(make_questions(entry.task))
        difference, low, high = shuffled.gain
        assert (low > 0 and difference > 0) if entry.higher_is_better else (high < 0 and difference < 0)
        assert list(entry.scores)[:4] == ["model", "blind", "shuffled", "best constant"]


def test_constant_answer_equals_the_constant_row(tmp_path):
    asked = make_questions("depth")
    (best, *_) = TASKS["depth"].constant_answers([e.target for questions in asked for e in questions.examples])
    results = evaluate(Constant(f"<answer> {best} </answer>"), asked, tmp_path, progress=False)
    scores = results.entries[0].scores
    for variant in VARIANTS:
        assert dataclasses.replace(scores[variant], metrics={}, gain=None) == dataclasses.replace(
            scores["best constant"], gain=None
        )
    assert scores["best constant"].gain == (0, 0, 0)


def test_copying_the_query_is_a_reference_of_correspondence(tmp_path):
    asked = make_questions("correspondence")
    results = evaluate(Constant("?"), asked, tmp_path, variants=("model",), progress=False)
    scores = results.entries[0].scores
    assert list(scores) == ["model", "best constant", "copy query"]
    assert scores["model"].failures == scores["model"].count == count(asked)
    assert scores["model"].value == scores["best constant"].value, "unreadable counts as the image centre"
    targets = [example.target for questions in asked for example in questions.examples]
    errors = [
        math.dist(np.divide(t["coords"], 1000) * (560, 420), np.divide(t["truth"], 1000) * (560, 420)) for t in targets
    ]
    assert scores["copy query"].value == pytest.approx(np.mean(errors))


def test_each_record_is_asked_once_with_all_its_questions(all_questions, tmp_path):
    answerer = Truthful(all_questions)
    evaluate(answerer, all_questions, tmp_path, variants=("model",), progress=False)
    assert len(answerer.asked) == len(all_questions)
    assert sum(len(questions) for _, questions in answerer.asked) == count(all_questions)


def test_prediction_rows_and_rescoring(all_questions, tmp_path):
    results = evaluate(Constant("<answer> 3 </answer>"), all_questions, tmp_path, progress=False)
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == 3 * [id for questions in all_questions for id in questions.ids]
    assert {"id", "component", "record", "task", "variant", "question", "prediction", "target"} <= set(rows[0])
    assert all(re.fullmatch(rf"{row['component']}/{row['record']}/\d", row["id"]) for row in rows)
    assert not list(tmp_path.glob("*.part"))
    (tmp_path / "results.json").unlink()
    assert repr(rescore(tmp_path)) == repr(results)
    assert repr(load_results(tmp_path)) == repr(results)
    tree = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert isinstance(tree["entries"][0]["scores"]["model"]["value"], float)
    for entry in results.entries:
        mine = [row for row in rows if (row["component"], row["variant"]) == (entry.component, "model")]
        metrics = TASKS[entry.task].score([r["prediction"] for r in mine], [r["target"] for r in mine])
        assert entry.scores["model"].value == pytest.approx(metrics[entry.headline], nan_ok=True)
        assert next(iter(metrics)) == entry.headline


def test_before_after_is_the_difference_of_the_scores(tmp_path):
    asked = make_questions("depth")
    after = evaluate(Truthful(asked), asked, tmp_path / "after", progress=False)
    before = evaluate(Constant("2 m"), asked[::-1], tmp_path / "before", progress=False)
    ((cell, gain),) = before_after(read_cells(tmp_path / "before"), read_cells(tmp_path / "after")).items()
    assert cell == ("toy-depth", "depth")
    assert gain[0] == pytest.approx(after.entries[0].scores["model"].value - before.entries[0].scores["model"].value)
    assert gain[1] < gain[0] < gain[2] or gain[0] == 1


def test_table_marks_the_direction_and_shows_every_row(all_questions, tmp_path):
    results = evaluate(Constant("?"), all_questions, tmp_path, progress=False)
    console = rich.console.Console(width=200, record=True, file=io.StringIO())
    console.print(results.table())
    text = console.export_text()
    assert "epe ↓" in text
    assert "delta1 ↑" in text
    assert text.count("best constant") == len(TASKS)


def test_a_failing_answerer_leaves_earlier_results_alone(tmp_path):
    asked = make_questions("depth", 2)
    evaluate(Constant("1 m"), asked, tmp_path, progress=False)
    kept = (tmp_path / "predictions.jsonl").read_text()

    class Broken:
        def answer(self, images, questions):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="memory"):
        evaluate(Broken(), asked, tmp_path, progress=False, settings={"model": "another"})
    assert (tmp_path / "predictions.jsonl").read_text() == kept


def test_user_errors(tmp_path):
    asked = make_questions("depth", 1)
    with pytest.raises(UserError, match="nothing to evaluate"):
        evaluate(Constant("1"), [], tmp_path)
    with pytest.raises(UserError, match="toy-depth: a single record cannot be shuffled"):
        evaluate(Constant("1"), asked, tmp_path)
    with pytest.raises(UserError, match="include model"):
        evaluate(Constant("1"), asked, tmp_path, variants=("blind",))
    with pytest.raises(UserError, match=r"predictions.jsonl: no predictions here"):
        rescore(tmp_path)
    with pytest.raises(UserError, match=r"results.json: no results here"):
        load_results(tmp_path)
    (tmp_path / "predictions.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(UserError, match=r"line 1: the row lacks component"):
        rescore(tmp_path)
    (tmp_path / "predictions.jsonl").write_text("[1\n")
    with pytest.raises(UserError, match=r"line 1: not a JSON object"):
        rescore(tmp_path)
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(UserError, match="not a results file"):
        load_results(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("task", "cooking", r"line 1: unknown task 'cooking'; choose one of depth, "),
        ("prediction", 3, "line 1: prediction must be text"),
        ("target", [], "line 1: target must be an object"),
        ("target", {"kind": ["depth"]}, "line 1: the target's kind must be one of depth"),
        ("target", {"kind": "depth"}, "line 1: the target lacks depth_m"),
    ],
)
def test_rows_that_cannot_be_scored_are_named(tmp_path, field, value, why):
    evaluate(Constant("1 m"), make_questions("depth", 2), tmp_path, variants=("model",), progress=False)
    path = tmp_path / "predictions.jsonl"
    first, *others = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps({**json.loads(first), field: value}), *others]))
    with pytest.raises(UserError, match=why):
        rescore(tmp_path)


def test_entries_stand_in_the_order_of_the_tasks(all_questions, tmp_path):
    results = evaluate(Constant("?"), all_questions, tmp_path, variants=("model",), progress=False)
    assert [entry.task for entry in results.entries] == list(TASKS)


def test_every_answer_is_read_once(tmp_path, monkeypatch):
    asked, read = make_questions("depth"), []
    parse = DepthTask.parse
    monkeypatch.setattr(DepthTask, "parse", lambda self, text, target: read.append(text) or parse(self, text, target))
    evaluate(Constant("1 m"), asked, tmp_path, progress=False)
    assert len(read) == len(VARIANTS) * count(asked)


def test_variants_must_hold_the_same_questions(tmp_path):
    evaluate(Constant("1 m"), make_questions("depth", 2), tmp_path, progress=False)
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match="shuffled: 15"):
        rescore(tmp_path)


def test_a_question_that_stands_there_twice_is_named(tmp_path):
    """A file put together by hand would count it twice."""
    asked = make_questions("depth", 2)
    evaluate(Constant("1 m"), asked, tmp_path, variants=("model",), progress=False)
    path = tmp_path / "predictions.jsonl"
    rows = path.read_text().splitlines()
    path.write_text("\n".join([*rows, rows[1]]) + "\n")
    twice = json.loads(rows[1])["id"]
    with pytest.raises(UserError, match=rf"predictions.jsonl: 1 questions .* the first is '{twice}'; keep one row"):
        rescore(tmp_path)
