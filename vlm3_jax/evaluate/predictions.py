"""Predictions on disk: a JSON line for each question and variant, with all that scoring needs."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from vlm3_jax import storage
from vlm3_jax.errors import UserError
from vlm3_jax.evaluate.items import Questions
from vlm3_jax.tasks import TASKS
from vlm3_jax.tasks.score import target_problem, value_problem

FILE = "predictions.jsonl"
# `record` is what intervals resample; `answer` and `target` are the truth as text and as data.
FIELDS = {
    "id": str,
    "component": str,
    "record": str,
    "task": str,
    "variant": str,
    "question": str,
    "answer": str,
    "prediction": str,
    "target": dict,
}
# What a row may have besides: `scene` is what the record is of.
OPTIONAL = {"scene": str}
# Numbers beside an answer about depth, m but for the level (`evaluate.spreads`).
BESIDES = ("spread", "expected_m", "median_m", "low_m", "high_m", "level")


def rows(asked: Questions, variant: str, predictions: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of one record's answers."""
    for id, example, prediction in zip(asked.ids, asked.examples, predictions, strict=True):
        yield {
            "id": id,
            "component": asked.component,
            "record": asked.record,
            "task": asked.task,
            "variant": variant,
            "question": example.question,
            "answer": example.answer,
            "prediction": prediction,
            "target": example.target,
            **({"scene": asked.scene} if asked.scene else {}),
        }


def read_predictions(folder: storage.AnyPath) -> Iterator[dict[str, Any]]:
    """The rows of predictions.jsonl in the output folder of an evaluation.

    UserError, with the line, for one that is not JSON or lacks a field.
    """
    path = storage.path(folder) / FILE
    if not path.is_file():
        raise UserError(f"{path}: no predictions here; run `vlm3 eval` with this output folder first")
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            yield _checked(line, f"{path}, line {number}")


def _checked(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not a JSON object ({error})") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: not a JSON object")
    if missing := [name for name in FIELDS if name not in row]:
        raise UserError(f"{where}: the row lacks {', '.join(missing)}; run `vlm3 eval` again")
    for name, kind in (FIELDS | OPTIONAL).items():
        if not isinstance(row.get(name, kind()), kind):
            raise UserError(f"{where}: {name} must be {'an object' if kind is dict else 'text'}")
    for name in BESIDES:
        if not isinstance(row.get(name, 0.0), int | float):
            raise UserError(f"{where}: {name} must be a number")
    if row["task"] not in TASKS:
        raise UserError(f"{where}: unknown task {row['task']!r}; choose one of {', '.join(TASKS)}")
    kinds, target = TASKS[row["task"]].target_fields, row["target"]
    if target.get("kind") not in list(kinds):
        raise UserError(f"{where}: the target's kind must be one of {', '.join(kinds)}")
    if missing := [name for name in kinds[target["kind"]] if name not in target]:
        raise UserError(f"{where}: the target lacks {', '.join(missing)}")
    problem = target_problem(target, kinds) or value_problem(TASKS[row["task"]], row.get("value"), target)
    if problem:
        raise UserError(f"{where}: {problem}")
    return row
