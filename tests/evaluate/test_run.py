import dataclasses
import io
import json
import math

import numpy as np
import pytest
import rich.console
from evaluate_toys import SPEC, Constant, Truthful, make_items, mixed_items

from vlm3_jax.errors import UserError
from vlm3_jax.evaluate import run
from vlm3_jax.evaluate.results import load_results
from vlm3_jax.evaluate.run import evaluate, group_items, rescore, variant_images
from vlm3_jax.tasks import TASKS


@pytest.fixture
def all_items():
    return mixed_items()


PERFECT = {"depth": 1.0, "objects": 1.0, "correspondence": 0.0, "pose": 1.0}


def test_truth_scores_perfectly_and_only_with_its_own_images(all_items, tmp_path):
    results = evaluate(Truthful(all_items), all_items, None, tmp_path, progress=False, records_per_call=5)
    assert {entry.task for entry in results.entries} == set(TASKS)
    for entry in results.entries:
        model, blind, shuffled = (entry.scores[v] for v in ("model", "blind", "shuffled"))
        # Rounded answers: one normalised unit of 1,000 is 0.56 px.
        assert model.value == pytest.approx(PERFECT[entry.task], abs=0.5 if entry.task == "correspondence" else 1e-3)
        assert model.failures == 0
        assert model.gain is None
        assert blind.value == model.value, "a grey image keeps its reference, so this answerer still knows it"
        # Pose asks the same questions everywhere, so another pair's answers can be read; they are just wrong.
        assert entry.task == "pose" or shuffled.failures > 0.5 * len(make_items(entry.task))
        difference, low, high = shuffled.gain
        assert (low > 0 and difference > 0) if entry.higher_is_better else (high < 0 and difference < 0)
        assert list(entry.scores)[:4] == ["model", "blind", "shuffled", "best constant"]


def test_constant_answer_equals_the_constant_row(tmp_path):
    items = make_items("depth")
    (best, *_) = TASKS["depth"].constant_answers([i.target for i in items])
    results = evaluate(Constant(f"<answer> {best} </answer>"), items, None, tmp_path, progress=False)
    scores = results.entries[0].scores
    for variant in run.VARIANTS:
        assert dataclasses.replace(scores[variant], metrics={}, gain=None) == dataclasses.replace(
            scores["best constant"], gain=None
        )
    assert scores["best constant"].gain == (0, 0, 0)


def test_copying_the_query_is_a_reference_of_correspondence(tmp_path):
    items = make_items("correspondence")
    results = evaluate(Constant("?"), items, None, tmp_path, variants=("model",), progress=False)
    scores = results.entries[0].scores
    assert list(scores) == ["model", "best constant", "copy query"]
    assert scores["model"].failures == scores["model"].count == len(items)
    assert scores["model"].value == scores["best constant"].value, "unreadable counts as the image centre"
    errors = [
        math.dist(np.divide(i.target["coords"], 1000) * (560, 420), np.divide(i.target["truth"], 1000) * (560, 420))
        for i in items
    ]
    assert scores["copy query"].value == pytest.approx(np.mean(errors))


def test_each_record_is_asked_once_with_all_its_questions(all_items, tmp_path):
    answerer = Truthful(all_items)
    evaluate(answerer, all_items, None, tmp_path, variants=("model",), progress=False)
    assert len(answerer.asked) == len({(i.source, i.images[0].ref.name, len(i.images)) for i in all_items})
    assert sum(len(questions) for _, questions in answerer.asked) == len(all_items)


@pytest.mark.parametrize("records", [2, 3, 7])
def test_shuffled_is_a_derangement_within_the_source_with_the_same_sizes(records):
    items = make_items("pose", records) + make_items("depth", records, source="other")
    groups = group_items(items)
    shown = variant_images(groups, "shuffled", seed=5)
    names = {
        group.source: {p.ref.name for g in groups if g.source == group.source for p in g.images} for group in groups
    }
    for group, layouts in zip(groups, shown, strict=True):
        for own, other in zip(group.images, layouts, strict=True):
            assert other.ref is not own.ref
            assert other.ref.name in names[group.source]
            assert (other.size, other.final, other.grid) == (own.size, own.final, own.grid)
            assert other.load(SPEC).shape == own.load(SPEC).shape
    taken = [layouts[0].ref.name for group, layouts in zip(groups, shown, strict=True) if group.source == "other"]
    assert len(set(taken)) == records
    again = variant_images(groups, "shuffled", seed=5)
    assert [[p.ref for p in layouts] for layouts in again] == [[p.ref for p in layouts] for layouts in shown]


def test_a_mirrored_donor_stays_mirrored():
    groups = group_items(make_items("depth", 2))
    mirrored = tuple(dataclasses.replace(p, flip=True) for p in groups[0].images)
    groups[0] = dataclasses.replace(groups[0], images=mirrored)
    first, second = variant_images(groups, "shuffled", seed=0)
    assert not first[0].flip
    assert second[0].flip


def test_blind_images_are_constant():
    groups = group_items(make_items("pose", 2))
    pixels = [layout.load(SPEC) for layouts in variant_images(groups, "blind", 0) for layout in layouts]
    assert all((p == 128).all() for p in pixels)
    assert pixels[0].shape == groups[0].images[0].load(SPEC).shape


def test_prediction_rows_and_rescoring(all_items, tmp_path):
    results = evaluate(Constant("<answer> 3 </answer>"), all_items, None, tmp_path, progress=False)
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows[: len(all_items)]] == [item.id for item in all_items]
    assert {"id", "source", "task", "variant", "question", "prediction", "target"} <= set(rows[0])
    assert len(rows) == 3 * len(all_items)
    assert not list(tmp_path.glob("*.part"))
    (tmp_path / "results.json").unlink()
    assert repr(rescore(tmp_path)) == repr(results)
    assert repr(load_results(tmp_path)) == repr(results)
    tree = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert isinstance(tree["entries"][0]["scores"]["model"]["value"], float)
    for entry in results.entries:
        mine = [row for row in rows if (row["source"], row["variant"]) == (entry.source, "model")]
        metrics = TASKS[entry.task].score([r["prediction"] for r in mine], [r["target"] for r in mine])
        assert entry.scores["model"].value == pytest.approx(metrics[entry.headline], nan_ok=True)
        assert next(iter(metrics)) == entry.headline


def test_before_after_is_the_difference_of_the_scores(tmp_path):
    items = make_items("depth")
    after = evaluate(Truthful(items), items, None, tmp_path / "after", progress=False)
    before = evaluate(Constant("2 m"), items[::-1], None, tmp_path / "before", progress=False)
    ((cell, gain),) = run.before_after(tmp_path / "before", tmp_path / "after").items()
    assert cell == ("toy-depth", "depth")
    assert gain[0] == pytest.approx(after.entries[0].scores["model"].value - before.entries[0].scores["model"].value)
    assert gain[1] < gain[0] < gain[2] or gain[0] == 1


def test_table_marks_the_direction_and_shows_every_row(all_items, tmp_path):
    results = evaluate(Constant("?"), all_items, None, tmp_path, progress=False)
    console = rich.console.Console(width=200, record=True, file=io.StringIO())
    console.print(results.table())
    text = console.export_text()
    assert "epe ↓" in text
    assert "delta1 ↑" in text
    assert text.count("best constant") == 4


def test_a_failing_answerer_leaves_earlier_results_alone(tmp_path):
    items = make_items("depth", 2)
    evaluate(Constant("1 m"), items, None, tmp_path, progress=False)
    kept = (tmp_path / "predictions.jsonl").read_text()

    class Broken:
        def answer(self, images, questions):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="memory"):
        evaluate(Broken(), items, None, tmp_path, progress=False)
    assert (tmp_path / "predictions.jsonl").read_text() == kept


def test_user_errors(tmp_path):
    items = make_items("depth", 1)
    with pytest.raises(UserError, match="nothing to evaluate"):
        evaluate(Constant("1"), [], None, tmp_path)
    with pytest.raises(UserError, match="toy-depth: a single record cannot be shuffled"):
        evaluate(Constant("1"), items, None, tmp_path)
    with pytest.raises(UserError, match="include model"):
        evaluate(Constant("1"), items, None, tmp_path, variants=("blind",))
    with pytest.raises(UserError, match=r"predictions.jsonl: no predictions here"):
        rescore(tmp_path)
    with pytest.raises(UserError, match=r"results.json: no results here"):
        load_results(tmp_path)
    (tmp_path / "predictions.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(UserError, match=r"line 1: the row lacks source"):
        rescore(tmp_path)
    (tmp_path / "predictions.jsonl").write_text("[1\n")
    with pytest.raises(UserError, match=r"line 1: not a JSON object"):
        rescore(tmp_path)
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(UserError, match="not a results file"):
        load_results(tmp_path)


def test_variants_must_hold_the_same_items(tmp_path):
    evaluate(Constant("1 m"), make_items("depth", 2), None, tmp_path, progress=False)
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match="shuffled: 15"):
        rescore(tmp_path)
