"""Choosing what a benchmark asks of built data, once: points, matches, poses and questions become a manifest."""

import collections
import dataclasses
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from vlm3_jax import records, storage, tasks
from vlm3_jax.data.sources.array_record import ArrayRecordSource
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.evaluate import manifest
from vlm3_jax.evaluate.benchmarks import Asked, Benchmark
from vlm3_jax.pose import relative_pose
from vlm3_jax.records import Record, pairs
from vlm3_jax.tasks import stored
from vlm3_jax.tasks.objects_words import GROUPS
from vlm3_jax.tasks.pose import MIN_BASELINE
from vlm3_jax.tasks.protocol import RELEASE

SEED = 42
# Candidates drawn of each pair for each match that it is to give on average: some pairs have few.
SPARE = 4
# What the rows of SpatialRGPT-Bench call their quantities, "_data" left out at the end.
QUANTITIES = {
    "distance": "direct",
    "direct_distance": "direct",
    "horizontal_distance": "horizontal",
    "vertical_distance": "vertical",
    "width": "width",
    "height": "height",
    "direction": "direction",
}
_RELATION = re.compile(r"([a-z]+)_(predicate|choice)")


@dataclasses.dataclass(frozen=True)
class Frozen:
    """What was frozen: `head` of the manifest, and whether it is `new` or was there before."""

    head: dict[str, Any]
    new: bool

    def __str__(self):
        left = self.head["set_aside"]
        text = f"{self.head['labels']:,} labels of {self.head['rows']:,} records"
        text += f" ({len(left)} set aside: {left[0]['id']}: {left[0]['reason']}, ...)" if left else ""
        return f"manifest of {self.head['benchmark']}: {text}" + ("" if self.new else ", frozen before")


def freeze(asked: Asked, built: storage.AnyPath, keys: Sequence[str]) -> Frozen:
    """Makes the manifest of a benchmark in a built folder; `keys`: the ids of its records, in their order.

    A manifest that is there already stays as it is. UserError if it is of another build, was changed, or if nothing
    can be asked.
    """
    benchmark = asked.benchmark
    if (built / manifest.FOLDER / f"{benchmark.name}.json").is_file():
        return Frozen(manifest.read(asked, built).head, new=False)
    places = {key: place for place, key in enumerate(keys)}
    chosen = benchmark.choose(list(keys))
    if not chosen:
        raise UserError(f"{built}: none of its {len(keys)} records is one that {benchmark.name} asks about")
    source = ArrayRecordSource(benchmark.name, built)
    left: list[dict[str, str]] = []
    rows = _bounded(list(_rows(benchmark, source, places, chosen, left)), benchmark.total)
    if not rows:
        raise UserError(f"{built}: nothing to ask of {benchmark.name}; the first, {left[0]['id']}: {left[0]['reason']}")
    head = {
        "benchmark": benchmark.name,
        "rules": asked.rules,
        "task": benchmark.task,
        "selection": benchmark.selection,
        "labels_per_record": benchmark.labels,
        "labels_in_all": benchmark.total,
        "seed": SEED,
        "crop": None,
        "built": manifest.identity(built),
        "records": len(keys),
        "chosen": len(chosen),
        "labels": sum(map(_count, rows)),
        "set_aside": left,
    }
    return Frozen(manifest.write(built, benchmark.name, head, rows), new=True)


def written_keys(built: storage.AnyPath, keys: Iterable[str]) -> list[str]:
    """Those of a build's items that became records."""
    lines = (built / "rejected.jsonl").read_text().splitlines()
    rejected = {json.loads(line)["key"] for line in lines}
    return [key for key in keys if key not in rejected]


def _rows(benchmark: Benchmark, source, places, chosen, left):
    """The rows of the chosen records with all that may be asked; those that cannot go to `left`."""
    draw = _DRAW[benchmark.task]
    per_record = benchmark.labels or SPARE * -(-benchmark.total // len(chosen))
    for key in chosen:
        try:
            record = source[places[key]]
            if record.id != key:
                raise UserError(f"{source.path}: record {places[key]} is {record.id!r}, not {key!r}; build it again")
            rng = np.random.default_rng([SEED, zlib.crc32(key.encode())])
            yield manifest.row(record, places[key], draw(record, rng, per_record, benchmark))
        except BadRecord as error:
            left.append({"id": key, "reason": str(error)})


def _bounded(rows: list[dict[str, Any]], total: int) -> list[dict[str, Any]]:
    """Rows with `total` matches in all (0: as many as there are): one of each in turn until they are enough."""
    if not total:
        return rows
    wanted: collections.Counter = collections.Counter()
    places = [[number] * len(one["points0_px"]) for number, one in enumerate(rows)]
    in_turn = (number for layer in itertools.zip_longest(*places) for number in layer if number is not None)
    wanted.update(itertools.islice(in_turn, total))
    return [
        {**one, "points0_px": one["points0_px"][: wanted[n]], "points1_px": one["points1_px"][: wanted[n]]}
        for n, one in enumerate(rows)
        if wanted[n]
    ]


def _count(row: dict[str, Any]) -> int:
    return len(row.get("depth_m") or row.get("points0_px") or [row])


def _depth(record: Record, rng, count: int, benchmark: Benchmark) -> dict[str, Any]:
    """At most `count` points of the first view, drawn evenly of those that have a depth."""
    labels = [one for one in records.draw_labels(record, rng, count).depth if one.view == 0]
    if not labels:
        raise BadRecord("it has no depth")
    place = rng.permutation(len(labels[0].points_px))[:count]
    # Shortest decimals of what is stored in 32 bits.
    depth = [float(str(value)) for value in np.asarray(labels[0].depth_m, np.float32)[place]]
    return {"kind": labels[0].kind, "points_px": np.asarray(labels[0].points_px)[place].tolist(), "depth_m": depth}


def _matches(record: Record, rng, count: int, benchmark: Benchmark) -> dict[str, Any]:
    """At most `count` whole pixels of view 0 whose surface point view 1 sees, by UFM's rule of occlusion."""
    first, second = pairs.posed_maps(record)
    a, r = benchmark.tolerance
    found = pairs.matches(first, second, rng, count, tolerance=lambda distance_m: a + r * distance_m + np.log(2) * a)
    if not len(found.points0_px):
        raise BadRecord("no pixel of its first view is seen in its second")
    second_px = [[float(str(v)) for v in point] for point in np.asarray(found.points1_px, np.float32)]
    return {"points0_px": found.points0_px.tolist(), "points1_px": second_px}


def _pose(record: Record, rng, count: int, benchmark: Benchmark) -> dict[str, Any]:
    """The second camera seen from the first."""
    if len(record.views) < 2 or any(view.world_T_cam is None for view in record.views[:2]):
        raise BadRecord("it has no two poses")
    relative = relative_pose(*(view.world_T_cam for view in record.views[:2]))
    if np.linalg.norm(relative[:3, 3]) <= MIN_BASELINE:
        raise BadRecord("its cameras stand in one place, so there is no direction of motion")
    return {"metric": record.metric, "cam1_T_cam2": relative[:3].ravel().tolist()}


def _objects(record: Record, rng, count: int, benchmark: Benchmark) -> dict[str, Any]:
    """The question with its boxes, and what its answer says as the task's targets have it."""
    conversation = record.conversation
    if conversation is None or [turn.role for turn in conversation.turns] != ["user", "assistant"]:
        raise BadRecord("it is not one question with its answer")
    asked, answered = conversation.turns
    boxes = np.asarray(conversation.boxes_px)[list(asked.regions)]
    (example,) = stored.examples(record, RELEASE["objects"], alone=True)
    category = record.id.rsplit("-", 1)[-1]
    target = _target(category, len(boxes))
    truth = tasks.get("objects").read(example.answer, target | {"boxes": example.target["boxes"]})
    if truth is None or (target["kind"] == "quantity" and not truth > 0):
        raise BadRecord(f"its answer {answered.text!r} cannot be read as one to a question of {category}")
    return {
        "question": asked.text,
        "answer": answered.text,
        "boxes_px": boxes.tolist(),
        "target": target | {"truth": truth},
    }


def _target(category: str, boxes: int) -> dict[str, Any]:
    """Kind, family and word of a category of SpatialRGPT-Bench (left_predicate, tall_choice, width_data, direction)."""
    if family := QUANTITIES.get(category.removesuffix("_data")):
        return {"kind": "direction" if family == "direction" else "quantity", "family": family}
    found = _RELATION.fullmatch(category)
    family = next((name for name, words in GROUPS.items() if found and found[1] in words), None)
    if family is None:
        raise BadRecord(f"its category {category!r} is none of SpatialRGPT-Bench's")
    if boxes != 2:
        raise BadRecord(f"it compares {boxes} regions, expected 2")
    return {"kind": found[2], "family": family, "word": found[1]}


_DRAW = {"depth": _depth, "correspondence": _matches, "pose": _pose, "objects": _objects}
