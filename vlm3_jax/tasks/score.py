"""Scores anybody's answers from two JSON-lines files: `vlm3 score TASK predictions.jsonl targets.jsonl`."""

import json
import math
from typing import Any

import numpy as np

from vlm3_jax import pose, storage, tasks
from vlm3_jax.errors import BadRecord, UserError


def score_files(task_name: str, predictions_path, targets_path, rules: str = "vlm3") -> dict[str, float]:
    """All metrics of the task over the targets, answers read by these `base.RULES`, with `missing_predictions`.

    Rows are `{"id": ..., "prediction": text or numbers}` and `{"id": ..., "target": {...}}` (`Example.target`). A
    target without a prediction counts as a parse failure. UserError naming file and line for a row that is malformed,
    has an id that was there before, or is a prediction for an id without target.
    """
    task = tasks.get(task_name)
    targets = _read(targets_path, "target", lambda target: target_problem(target, task.target_fields))
    if not targets:
        raise UserError(f"{targets_path}: no targets; each line must be {{'id': ..., 'target': {{...}}}}")
    predictions = _read(predictions_path, "prediction", _prediction_problem)
    for row_id, (line, _) in predictions.items():
        if row_id not in targets:
            raise UserError(f"{predictions_path}, line {line}: id {row_id!r} has no target in {targets_path}")
    answers = [
        parsed(task, predictions[row_id][1], target, f"{predictions_path}, line {predictions[row_id][0]}", rules)
        if row_id in predictions
        else None
        for row_id, (_, target) in targets.items()
    ]
    metrics = task.metrics(answers, [target for _, target in targets.values()])
    return {**metrics, "missing_predictions": len(targets) - len(predictions)}


def parsed(task: tasks.Task, prediction, target: dict[str, Any], where: str, rules: str = "vlm3"):
    """What a prediction says: a text as it is read, numbers as they are, None for null or NaN.

    UserError, at `where`, if it does not suit.
    """
    if isinstance(prediction, str):
        return task.parse(prediction, target, rules)
    if _is_none(prediction):
        return None
    form = task.answer_forms[target["kind"]]
    if not FORMS[form](prediction):
        raise UserError(
            f"{where}: 'prediction' must be a text or {_describe(form)}, for a target of {target['kind']!r}"
        )
    return tuple(prediction) if isinstance(prediction, list) else prediction


def describe_targets(*names: str) -> str:
    """What a target of each kind of these tasks holds (all tasks if none is named), and an answer that is no text."""
    lines = ["fields of a target by kind, and what an answer may be that is no text:"]
    for task in [tasks.TASKS[name] for name in names] or tasks.TASKS.values():
        for kind, fields in task.target_fields.items():
            held = "; ".join(f"{field}: {_describe(form)}" for field, form in fields.items())
            lines.append(f"  {task.name}, {kind}\n      {held}")
            if task.answer_forms[kind] != "text":
                lines.append(f"      answer: {_describe(task.answer_forms[kind])}")
    return "\n".join(lines)


def _describe(form) -> str:
    return _DESCRIPTIONS[form] if isinstance(form, str) else f"one of {', '.join(form)}"


def _read(path, field: str, problem) -> dict[Any, tuple[int, Any]]:
    """id -> (line number, value of `field`), in file order."""
    path = storage.path(path)
    rows: dict[Any, tuple[int, Any]] = {}
    try:
        # Some editors and spreadsheets begin a file with a byte order mark.
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    row_id, value = _read_row(line, f"{path}, line {number}", field, problem)
                    if row_id in rows:
                        raise UserError(f"{path}, line {number}: id {row_id!r} is also on line {rows[row_id][0]}")
                    rows[row_id] = number, value
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read it ({getattr(error, 'strerror', None) or 'not UTF-8 text'})") from None
    return rows


def _read_row(line: str, where: str, field: str, problem) -> tuple[Any, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise UserError(f"{where}: not JSON; write one object a line") from None
    if not isinstance(row, dict) or "id" not in row or field not in row:
        raise UserError(f"{where}: expected an object with 'id' and {field!r}")
    if not FORMS["id"](row["id"]):
        raise UserError(f"{where}: 'id' must be a string or an integer")
    reason = problem(row[field])
    if reason:
        raise UserError(f"{where}: {reason}")
    return row["id"], row[field]


def _prediction_problem(prediction) -> str | None:
    right = isinstance(prediction, str | bool) or _number(prediction) or _list_of_numbers(prediction)
    return None if right else "'prediction' must be a text, the model's answer, or numbers"


def value_problem(task: tasks.Task, value, target: dict[str, Any]) -> str | None:
    """What is wrong with a value that stands for a text's answer to a question with this target; None is no answer."""
    form = task.answer_forms[target["kind"]]
    right = value is None or FORMS[form](value)
    return None if right else f"'value' must be null or {_describe(form)}, for a target of {target['kind']!r}"


def target_problem(target, fields: dict[str, dict[str, Any]]) -> str | None:
    """What is wrong with a target; None if nothing. `fields`: `Task.target_fields`."""
    if not isinstance(target, dict) or target.get("kind") not in list(fields):
        return f"'target' must be an object whose 'kind' is one of {', '.join(fields)}"
    for field, form in fields[target["kind"]].items():
        if field not in target or not (FORMS[form](target[field]) if isinstance(form, str) else target[field] in form):
            return f"target field {field!r} is missing or is not {_describe(form)}"
    return None


def _is_none(prediction) -> bool:
    """Whether it says that there is no answer, as JSON and as tables of numbers write it."""
    return prediction is None or (isinstance(prediction, float) and math.isnan(prediction))


def _number(value) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _list_of_numbers(value) -> bool:
    return isinstance(value, list) and all(map(_number, value))


def _numbers(value, count: int) -> bool:
    return _list_of_numbers(value) and len(value) == count


def _rotation(value) -> bool:
    if not _numbers(value, 9) or max(map(abs, value)) > 2:
        return False
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(value, (3, 3))
    try:
        pose.check_pose(matrix, "target")
    except BadRecord:
        return False
    return True


def _integer(value, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


FORMS = {
    "id": lambda v: isinstance(v, str) or (isinstance(v, int) and not isinstance(v, bool)),
    "bool": lambda v: isinstance(v, bool),
    "number": _number,
    "positive": lambda v: _number(v) and v > 0,
    "numbers2": lambda v: _numbers(v, 2),
    "numbers3": lambda v: _numbers(v, 3),
    "rotation": _rotation,
    "vector": lambda v: _numbers(v, 3) and any(v),
    "boxes2": lambda v: isinstance(v, list) and len(v) == 2 and all(_numbers(box, 4) for box in v),
    "index": lambda v: _integer(v, 0, 1),
    "hour": lambda v: _integer(v, 1, 12),
    "text": lambda v: isinstance(v, str),
}
_DESCRIPTIONS = {
    "id": "a string or an integer",
    "bool": "true or false",
    "number": "a number",
    "positive": "a positive number",
    "numbers2": "a list of 2 numbers",
    "numbers3": "a list of 3 numbers",
    "rotation": "a rotation matrix, 9 numbers row by row (orthonormal, determinant +1: no scale, no reflection)",
    "vector": "a list of 3 numbers that are not all zero",
    "boxes2": "a list of 2 boxes of 4 numbers",
    "index": "0 or 1",
    "hour": "an hour from 1 to 12",
    "text": "a text",
}
