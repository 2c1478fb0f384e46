"""What holds for every task and protocol: generated answers are perfect, the contract of `base.Task`."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records_for_tests import random_record

from vlm3_jax import records, tasks
from vlm3_jax.camera import Focal
from vlm3_jax.errors import UserError
from vlm3_jax.tasks import protocol
from vlm3_jax.tasks.base import drop_think

PERFECT = {"delta1": 1.0, "success": 1.0, "auc30": 1.0, "exact": 1.0}
# A rounded coordinate is half a unit off on each axis of the 560 x 420 frame.
HALF_UNIT_PX = np.hypot(560, 420) / 2


def ask(name, seed, wording="release", vary=False, **fields):
    rng = np.random.default_rng(seed)
    asked = protocol.given(name, wording, **fields)
    return tasks.get(name).examples(random_record(rng, metric=bool(seed % 3)), rng, asked, vary)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(tasks.TASKS)), st.sampled_from(protocol.WORDINGS), st.booleans(), st.integers(0, 10**6))
def test_the_answers_that_examples_gives_are_perfect(name, wording, vary, seed):
    task, examples = tasks.get(name), ask(name, seed, wording, vary, think=vary, questions=30)
    assert examples
    targets = json.loads(json.dumps([e.target for e in examples]))
    metrics = task.score([e.answer for e in examples], targets)
    assert metrics["parse_failures"] == 0
    assert metrics["count"] == len(examples)
    if name == "correspondence":
        # The match that lies beyond coordinate R - 1 is clipped by up to one unit.
        assert metrics["epe"] <= 2 * HALF_UNIT_PX / targets[0]["coord_range"]
    else:
        assert metrics[task.headline] == PERFECT[task.headline]
    assert task.item_scores([task.parse(e.answer, t) for e, t in zip(examples, targets)], targets).shape == (
        len(examples),
    )


@pytest.mark.parametrize("name", tasks.TASKS)
def test_the_headline_is_the_mean_of_the_item_scores(name):
    task, examples = tasks.get(name), []
    for seed in range(12):
        examples += ask(name, seed, questions=12)
    # Answers to other questions: readable for some, wrong for most.
    predictions = [e.answer for e in examples[5:]] + ["?"] * 5
    targets = [e.target for e in examples]
    parsed = [task.parse(text, target) for text, target in zip(predictions, targets)]
    assert task.score(predictions, targets)[task.headline] == pytest.approx(
        np.nanmean(task.item_scores(parsed, targets)), abs=1e-15
    )
    assert next(iter(task.score(predictions, targets))) == task.headline


@pytest.mark.parametrize("name", tasks.TASKS)
def test_references_are_parsed_answers_one_an_item(name):
    task, targets = tasks.get(name), [e.target for seed in range(6) for e in ask(name, seed, questions=12)]
    references = {"constant": task.constant_answers(targets), **task.extra_references(targets)}
    for answers in references.values():
        assert len(answers) == len(targets)
        assert np.isfinite(np.nanmean(task.item_scores(answers, targets)))
    assert task.constant_answers([]) == []


@pytest.mark.parametrize("name", tasks.TASKS)
def test_labels_after_unification_and_a_crop_stay_inside(name):
    rng = np.random.default_rng(3)
    record = records.unify(random_record(rng), Focal(800))
    record = records.with_cameras(record, [view.camera.crop(200, 100, 500, 400) for view in record.views])
    examples = tasks.get(name).examples(record, rng, protocol.given(name, questions=100))
    for example in examples:
        coords = np.ravel(example.target.get("coords") or example.target.get("boxes") or 0)
        assert coords.min() >= 0
        assert coords.max() < 2000


def test_the_same_seed_asks_the_same_and_another_seed_does_not():
    # Conversations are as they are stored.
    for name in tasks.TASKS.keys() - {"conversation"}:
        first, again, other = (
            tasks.get(name).examples(
                random_record(np.random.default_rng(1)), np.random.default_rng(s), protocol.RELEASE[name]
            )
            for s in (5, 5, 6)
        )
        assert first == again
        assert first != other


def test_a_record_without_labels_has_no_questions():
    bare = dataclasses.replace(random_record(np.random.default_rng(0)), depth=(), objects=(), matches=None)
    bare = dataclasses.replace(bare, conversation=None)
    bare = dataclasses.replace(bare, views=bare.views[:1])
    for task in tasks.TASKS.values():
        assert task.examples(bare, np.random.default_rng(0), protocol.RELEASE[task.name]) == []


def test_names():
    assert set(tasks.TASKS) == {"depth", "objects", "correspondence", "pose", "conversation"}
    with pytest.raises(UserError, match=r"depths.*depth, objects"):
        tasks.get("depths")


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a <think> b\nc </think> d", "a  d"),
        ("<think> cut", ""),
        ("<think> x <answer> 1 </answer>", "<answer> 1 </answer>"),
    ],
)
def test_thinking_is_dropped(text, kept):
    assert drop_think(text) == kept
