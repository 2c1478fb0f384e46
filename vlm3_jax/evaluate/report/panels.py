"""Which pictures a report shows: records chosen evenly over the evaluation (never by score) and drawn task by task."""

import collections
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vlm3_jax import pose as geometry
from vlm3_jax import storage
from vlm3_jax.evaluate import statistics
from vlm3_jax.evaluate.report import pictures
from vlm3_jax.evaluate.scoring import Answers, Cell
from vlm3_jax.evaluate.thumbnails import read_thumbnails, spread
from vlm3_jax.tasks import Task

MAX_LINES = 6
_TEXT_LIMIT = 240


@dataclasses.dataclass(frozen=True)
class Panel:
    """An encoded picture with a title and lines of text below it (plain text, not escaped)."""

    title: str
    picture: bytes
    lines: tuple[str, ...] = ()


def panels(folder: storage.AnyPath, cells: Sequence[Cell]) -> dict[str, list[Panel]]:
    """By task: a scatter for each component with depths, then the model's answers in pictures.

    Shown are records whose thumbnails stand in `folder`.
    """
    found, shown = collections.defaultdict(list), collections.defaultdict(list)
    for cell in cells:
        if cell.task.name == "depth":
            title = f"{cell.component}: {len(cell.model.rows)} points"
            found[cell.task.name].append(Panel(title, pictures.depth_scatter(*_depths(cell.model))))
        for record, answers in _by_record(cell.model).items():
            thumbnails = read_thumbnails(cell.folder or folder, cell.component, record)
            if len(thumbnails) >= _IMAGES[cell.task.name]:
                shown[cell.task].append((answers, thumbnails, f"{cell.component}/{record}"))
    for task, records in shown.items():
        found[task.name] += [_DRAWERS[task.name](task, *record) for record in spread(records)]
    return found


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
    return pictures.loss_curve([s for s, _ in train], [v for _, v in train], held_out, entropies)


def _depth(task: Task, answers: Answers, images, title: str) -> Panel:
    points = np.array([np.divide(target["coords"], target["coord_range"]) for target in answers.targets])
    picture = pictures.depth_points(images[0], points, *_depths(answers))
    right = statistics.mean(answers.scores)
    return Panel(title, picture, (f"{task.headline} {right:.2f} over {len(answers.rows)} points",))


def _depths(answers: Answers) -> tuple[np.ndarray, np.ndarray]:
    """True and predicted depth (m) [N]; NaN where the answer cannot be read."""
    predicted = np.array([np.nan if depth is None else depth for depth in answers.parsed], float)
    return np.array([target["depth_m"] for target in answers.targets], float), predicted


def _correspondence(task: Task, answers: Answers, images, title: str) -> Panel:
    ranges = np.array([target["coord_range"] for target in answers.targets], float)[:, None]
    query = np.array([target["coords"] for target in answers.targets], float) / ranges
    true = np.array([target["truth"] for target in answers.targets], float) / ranges
    predicted = np.array([(np.nan, np.nan) if pixel is None else pixel for pixel in answers.parsed], float) / ranges
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
    picture = pictures.pose_views(
        *images[:2],
        true_yaw_deg=geometry.euler_from_matrix(R)[0],
        true_direction=t / max(np.linalg.norm(t), 1e-9),
        yaw_deg=None if euler is None else euler[0],
        direction=None if direction is None else np.array(direction) / np.linalg.norm(direction),
    )
    return Panel(title, picture, _answer_lines(answers))


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
