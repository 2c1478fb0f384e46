"""Which pictures a report shows: items chosen evenly over the evaluation (never by score) and drawn task by task."""

import collections
import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

import vlm3_jax.tasks
from vlm3_jax import pose as geometry
from vlm3_jax.evaluate import run, statistics
from vlm3_jax.evaluate.report import pictures

if TYPE_CHECKING:
    from vlm3_jax.evaluate.items import Item
    from vlm3_jax.processor.image import ImageLayout
    from vlm3_jax.tasks.base import Task

MAX_SIDE = 440
MAX_LINES = 6
_TEXT_LIMIT = 240


@dataclasses.dataclass(frozen=True)
class Panel:
    """An encoded picture with a title and lines of text below it (plain text, not escaped)."""

    title: str
    picture: bytes
    lines: tuple[str, ...] = ()


def panels(
    rows: Iterable[dict[str, Any]], items: Sequence["Item"], tasks: Mapping[str, "Task"] | None, limit: int
) -> dict[str, list[Panel]]:
    """Up to `limit` image panels a task (and a scatter a depth source) from prediction rows of the variant "model"."""
    images = {(group.source, group.record): group.images for group in run.group_items(items)}
    by_record = collections.defaultdict(lambda: collections.defaultdict(list))
    for row in rows:
        if row["variant"] == "model":
            by_record[row["task"]][row["source"], run.record_id(row["id"])].append(row)
    found = {}
    for name, groups in by_record.items():
        task = tasks[name] if tasks else vlm3_jax.tasks.get(name)
        found[name] = list(_scatters(task, groups)) if name == "depth" else []
        draw = _DRAWERS.get(name)
        for key in _spread([key for key in groups if key in images and draw], limit):
            pixels = [shown_pixels(layout) for layout in images[key]]
            found[name].append(draw(task, groups[key], pixels, key[1]))
    return found


def curves(rows: Sequence[Mapping[str, Any]]) -> bytes | None:
    """The loss picture from rows of metrics.jsonl; None if they hold no loss at all."""
    train = [(row["step"], row["loss"]) for row in rows if row.get("loss") is not None]
    held_out = collections.defaultdict(lambda: ([], []))
    entropies = {}
    for row in rows:
        for key, value in row.items():
            kind, _, source = key.partition("/")
            if kind == "eval_loss" and value is not None:
                held_out[source][0].append(row["step"])
                held_out[source][1].append(value)
            elif kind == "answer_entropy" and value is not None:
                entropies[source] = value
    if not train and not held_out:
        return None
    return pictures.loss_curve([s for s, _ in train], [v for _, v in train], held_out, entropies)


def shown_pixels(layout: "ImageLayout") -> np.ndarray:
    """What the model was shown, uint8 [h, w, 3], reduced to at most MAX_SIDE pixels a side."""
    pixels = layout.ref.load()
    image = Image.fromarray(np.ascontiguousarray(pixels[:, ::-1]) if layout.flip else pixels)
    if image.size != layout.size:
        image = image.resize(layout.size, Image.Resampling.BICUBIC)
    if layout.crop is not None:
        image = image.crop(layout.crop)
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    return np.asarray(image)


def _depth(task: "Task", rows, pixels, title: str) -> Panel:
    points = np.array([np.divide(row["target"]["coords"], row["target"]["coord_range"]) for row in rows])
    true, predicted = _depths(task, rows)
    picture = pictures.depth_points(pixels[0], points, true, predicted)
    right = task.item_scores([_parsed(task, row) for row in rows], [row["target"] for row in rows])
    return Panel(title, picture, (f"{task.headline} {statistics.mean(right):.2f} over {len(rows)} points",))


def _correspondence(task: "Task", rows, pixels, title: str) -> Panel:
    ranges = np.array([row["target"]["coord_range"] for row in rows], float)[:, None]
    query = np.array([row["target"]["coords"] for row in rows], float) / ranges
    true = np.array([row["target"]["truth"] for row in rows], float) / ranges
    answers = [_parsed(task, row) for row in rows]
    predicted = np.array([(np.nan, np.nan) if a is None else a for a in answers], float) / ranges
    picture = pictures.match_lines(*pixels[:2], query, true, predicted)
    errors = task.item_scores(answers, [row["target"] for row in rows])
    return Panel(title, picture, (f"{task.headline} {statistics.mean(errors):.1f} px over {len(rows)} queries",))


def _objects(task: "Task", rows, pixels, title: str) -> Panel:
    rows = rows[:MAX_LINES]
    numbers: dict[tuple[float, ...], int] = {}
    lines = []
    for row, line in zip(rows, _answer_lines(rows), strict=True):
        regions = [tuple(np.divide(box, row["target"]["coord_range"])) for box in row["target"]["boxes"]]
        lines.append(f"{[numbers.setdefault(region, len(numbers) + 1) for region in regions]} {line}")
    return Panel(title, pictures.boxes(pixels[0], np.array(list(numbers))), tuple(lines))


def _pose(task: "Task", rows, pixels, title: str) -> Panel:
    target = rows[0]["target"]
    R, t = np.array(target["rotation"], float).reshape(3, 3), np.array(target["translation"], float)
    answers = {row["target"]["kind"]: _parsed(task, row) for row in rows}
    euler, direction = answers.get("euler_natural"), answers.get("translation_direction")
    picture = pictures.pose_views(
        *pixels[:2],
        true_yaw_deg=geometry.euler_from_matrix(R)[0],
        true_direction=t / max(np.linalg.norm(t), 1e-9),
        yaw_deg=None if euler is None else euler[0],
        direction=None if direction is None else np.array(direction) / np.linalg.norm(direction),
    )
    return Panel(title, picture, _answer_lines(rows))


_DRAWERS: dict[str, Callable[["Task", Any, Any, str], Panel]] = {
    "depth": _depth,
    "correspondence": _correspondence,
    "objects": _objects,
    "pose": _pose,
}


def _scatters(task: "Task", groups) -> list[Panel]:
    """Predicted against true depth of all items, a panel a source."""
    by_source = collections.defaultdict(list)
    for (source, _), rows in groups.items():
        by_source[source] += rows
    return [
        Panel(f"{source}: {len(rows)} points", pictures.depth_scatter(*_depths(task, rows)))
        for source, rows in by_source.items()
    ]


def _depths(task: "Task", rows) -> tuple[np.ndarray, np.ndarray]:
    """True and predicted depth (m) [N]; NaN where the answer cannot be read."""
    answers = [_parsed(task, row) for row in rows]
    predicted = np.array([np.nan if a is None else a for a in answers], float)
    return np.array([row["target"]["depth_m"] for row in rows], float), predicted


def _answer_lines(rows) -> tuple[str, ...]:
    return tuple(
        f"{_short(row['question'])} → {_short(row['prediction'])} (true: {_short(row['answer'])})"
        for row in rows[:MAX_LINES]
    )


def _short(text: str) -> str:
    text = re.sub(r"\s+", " ", text).strip()
    return text if len(text) <= _TEXT_LIMIT else text[: _TEXT_LIMIT - 1] + "…"


def _parsed(task: "Task", row) -> Any:
    return task.parse(row["prediction"], row["target"])


def _spread(keys: list, limit: int) -> list:
    """At most `limit` of the keys, evenly spaced."""
    return [keys[k * len(keys) // limit] for k in range(limit)] if len(keys) > limit else keys
