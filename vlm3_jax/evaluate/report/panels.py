"""Which pictures a report shows and what stands below them: records drawn task by task.

Examples are chosen evenly over the evaluation and never by score; the worst cases stand apart from them.
"""

import collections
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vlm3_jax import pose as geometry
from vlm3_jax import storage
from vlm3_jax.evaluate import statistics
from vlm3_jax.evaluate.report import charts, frusta, pictures
from vlm3_jax.evaluate.report.groups import depths
from vlm3_jax.evaluate.scoring import Answers, Cell
from vlm3_jax.evaluate.swap import SWAPPED
from vlm3_jax.evaluate.thumbnails import read_thumbnails, spread
from vlm3_jax.evaluate.worst import RECORDS, worst_records
from vlm3_jax.tasks import Task

MAX_LINES = 6
# So many points or matches of an image are drawn, and so many of a bad one's worst are told.
MAX_DRAWN, MAX_TOLD = 60, 3
_TEXT_LIMIT = 240


@dataclasses.dataclass(frozen=True)
class Panel:
    """A title with lines of text (plain, not escaped), and an encoded picture if there is one."""

    title: str
    picture: bytes | None
    lines: tuple[str, ...] = ()


def examples(folder: storage.AnyPath, cells: Sequence[Cell]) -> list[Panel]:
    """Of the cells of one task: the model's answers in pictures, of records whose thumbnails stand in `folder`."""
    shown = []
    for cell in cells:
        if cell.component.endswith(SWAPPED):
            continue
        for record, answers in _by_record(cell.model).items():
            thumbnails = read_thumbnails(cell.folder or folder, cell.component, record)
            if len(thumbnails) >= _IMAGES[cell.task.name] and _drawable(cell.task, answers):
                shown.append((cell.task, answers, thumbnails, f"{cell.component}/{record}"))
    return [_DRAWERS[task.name](task, *rest) for task, *rest in spread(shown)]


def worst(folder: storage.AnyPath, cells: Sequence[Cell]) -> list[Panel]:
    """Of the cells of one task: the records that were answered worst, of each component the same number."""
    cells = [cell for cell in cells if not cell.component.endswith(SWAPPED)]
    found = []
    for cell in cells:
        of_record = _by_record(cell.model)
        for record in worst_records(cell, max(2, RECORDS // len(cells))):
            answers, title = of_record[record], f"{cell.component}/{record}"
            thumbnails = read_thumbnails(cell.folder or folder, cell.component, record, worst=True)
            panel = Panel(title, None, _headline(cell.task, answers))
            if len(thumbnails) >= _IMAGES[cell.task.name] and _drawable(cell.task, answers):
                panel = _DRAWERS[cell.task.name](cell.task, answers, thumbnails, title)
            found.append(dataclasses.replace(panel, lines=(*panel.lines, *_worst_lines(cell.task, answers))))
    return found


def _drawable(task: Task, answers: Answers) -> bool:
    return task.name != "depth" or all(map(_told, answers.targets))


def _headline(task: Task, answers: Answers) -> tuple[str, ...]:
    score = statistics.mean(answers.scores)
    return () if np.isnan(score) else (f"{task.headline} {score:.2f} over {len(answers.rows)} answers",)


def _worst_lines(task: Task, answers: Answers) -> tuple[str, ...]:
    """The worst points of an image; other tasks' lines tell their answers anyway."""
    if task.name != "depth":
        return ()
    errors = task.item_errors(answers.parsed, answers.targets)
    said = ["nothing readable" if value is None else f"{value:.2f} m" for value in answers.parsed]
    return tuple(
        f"{_place(answers.targets[i])}{said[i]}, true {answers.targets[i]['depth_m']:.2f} m"
        for i in np.argsort(-errors, kind="stable")[:MAX_TOLD]
    )


def _place(target: dict[str, Any]) -> str:
    """Where a point is; "" where somebody's predictions do not tell."""
    return f"at {tuple(target['coords'])} of {target['coord_range']}: " if _told(target) else ""


def _told(target: dict[str, Any]) -> bool:
    return "coords" in target and "coord_range" in target


def _by_record(answers: Answers) -> dict[str, Answers]:
    """The answers about each record."""
    places = collections.defaultdict(list)
    for place, record in enumerate(answers.records):
        places[record].append(place)
    return {
        record: Answers([answers.rows[i] for i in at], [answers.parsed[i] for i in at], answers.scores[at])
        for record, at in places.items()
    }


def curves(rows: Sequence[Mapping[str, Any]]) -> bytes | None:
    """The loss picture from rows of metrics.jsonl; None if they hold no loss at all."""
    train = [(row["step"], row["loss"]) for row in rows if row.get("loss") is not None]
    held_out = collections.defaultdict(lambda: ([], []))
    entropies = {}
    for row in rows:
        for key, value in row.items():
            kind, _, component = key.partition("/")
            if kind == "eval_loss" and value is not None:
                held_out[component][0].append(row["step"])
                held_out[component][1].append(value)
            elif kind == "answer_entropy" and value is not None:
                entropies[component] = value
    if not train and not held_out:
        return None
    return charts.loss_curve([s for s, _ in train], [v for _, v in train], held_out, entropies)


def _some(answers: Answers) -> Answers:
    """At most `MAX_DRAWN`, evenly spaced."""
    at = spread(range(len(answers.rows)), MAX_DRAWN)
    return Answers([answers.rows[i] for i in at], [answers.parsed[i] for i in at], answers.scores[at])


def _depth(task: Task, answers: Answers, images, title: str) -> Panel:
    some = _some(answers)
    points = np.array([np.divide(target["coords"], target["coord_range"]) for target in some.targets])
    picture = pictures.depth_points(images[0], points, *depths(some))
    right = statistics.mean(answers.scores)
    return Panel(title, picture, (f"{task.headline} {right:.2f} over {len(answers.rows)} points",))


def _correspondence(task: Task, answers: Answers, images, title: str) -> Panel:
    some = _some(answers)
    ranges = np.array([target["coord_range"] for target in some.targets], float)[:, None]
    query = np.array([target["coords"] for target in some.targets], float) / ranges
    true = np.array([target["truth"] for target in some.targets], float) / ranges
    predicted = np.array([(np.nan, np.nan) if pixel is None else pixel for pixel in some.parsed], float) / ranges
    picture = pictures.match_lines(*images[:2], query, true, predicted)
    error = statistics.mean(answers.scores)
    return Panel(title, picture, (f"{task.headline} {error:.1f} px over {len(answers.rows)} queries",))


def _objects(task: Task, answers: Answers, images, title: str) -> Panel:
    numbers: dict[tuple[float, ...], int] = {}
    lines = []
    for target, line in zip(answers.targets, _answer_lines(answers)):
        regions = [tuple(np.divide(box, target.get("coord_range", 1))) for box in target.get("boxes", ())]
        lines.append(f"{[numbers.setdefault(region, len(numbers) + 1) for region in regions]} {line}")
    return Panel(title, pictures.boxes(images[0], np.array(list(numbers)).reshape(-1, 4)), tuple(lines))


def _pose(task: Task, answers: Answers, images, title: str) -> Panel:
    target = answers.targets[0]
    R, t = np.array(target["rotation"], float).reshape(3, 3), np.array(target["translation"], float)
    said = {target["kind"]: value for target, value in zip(answers.targets, answers.parsed, strict=True)}
    euler, direction = said.get("euler_natural"), said.get("translation_direction")
    true = R, t / max(np.linalg.norm(t), 1e-9)
    rotation = None if euler is None else geometry.matrix_from_euler(*euler)
    unit = None if direction is None else geometry.unit_vector(direction)
    picture = frusta.pose_views(*images[:2], true, (rotation, unit))
    off = [] if rotation is None else [f"rotation off by {geometry.rotation_angle(R.T @ rotation):.1f}°"]
    if unit is not None and true[1].any():
        off.append(f"direction off by {geometry.direction_angle(t, unit):.1f}°")
    told = (
        f"{row['target']['kind'].replace('_', ' ')}: {_short(row['prediction'])} (true: {_short(row['answer'])})"
        for row in answers.rows
    )
    return Panel(title, picture, (*([", ".join(off)] if off else []), *told))


_DRAWERS: dict[str, Callable[[Task, Answers, list[np.ndarray], str], Panel]] = {
    "depth": _depth,
    "correspondence": _correspondence,
    "objects": _objects,
    "pose": _pose,
    "conversation": _objects,
}
# How many images a drawing needs.
_IMAGES = {"depth": 1, "correspondence": 2, "objects": 1, "pose": 2, "conversation": 1}


def _answer_lines(answers: Answers) -> tuple[str, ...]:
    return tuple(
        f"{_short(row['question'])} → {_short(row['prediction'])} (true: {_short(row['answer'])})"
        for row in answers.rows[:MAX_LINES]
    )


def _short(text: str) -> str:
    text = re.sub(r"\s+", " ", text).strip()
    return text if len(text) <= _TEXT_LIMIT else text[: _TEXT_LIMIT - 1] + "…"
