"""Manifests: what a benchmark asks, chosen once and frozen, as small files beside the built shards.

`BUILT/manifests/NAME.jsonl` holds a line a record: its id, its place among the built records, its cameras and the
labels that are asked about, so that scoring needs neither images nor shards. `NAME.json` says how they were chosen, of
which build, and the checksum of the lines: a manifest that was changed since is refused.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from vlm3_jax import storage
from vlm3_jax.camera import Camera
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.evaluate.benchmarks import Asked
from vlm3_jax.files import Fields, write_text
from vlm3_jax.records import Conversation, DepthPoints, ImageRef, Matches, Record, Turn, View

FOLDER = "manifests"
VERSION = 1
# What a build writes last (builders/running/finish.py).
BUILT = "build.json"
# What of it says whether the records are still the ones that a manifest was made of.
IDENTITY = ("builder", "version", "split", "depthlm", "items", "items_sha256", "images")


class NotThere(UserError):
    """Nothing to ask: the data were not built, or have no manifest; `reason` says which in a few words."""

    def __init__(self, reason: str, command: str):
        super().__init__(f"{reason}; make it with {command}")
        self.reason, self.command = reason, command


@dataclasses.dataclass(frozen=True, eq=False)
class Manifest:
    """`head`: what NAME.json holds; `lines`: those of NAME.jsonl; `name`: its path, for errors."""

    asked: Asked
    head: dict[str, Any]
    lines: Sequence[bytes]
    name: str

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, number: int) -> "Row":
        where = f"{self.name}, line {number + 1}"
        try:
            return Row(Fields(json.loads(self.lines[number]), where), self.asked.benchmark.task)
        except (ValueError, RecursionError):
            raise UserError(f"{where}: not JSON") from None

    @property
    def incomplete(self) -> str:
        """That only a part of the set was built, in a few words; "" if all of it was, or if nobody knows."""
        benchmark, seen = self.asked.benchmark, len(self) + len(self.head.get("set_aside", ()))
        return (
            f"{seen:,} of the set's {benchmark.records:,} built" if benchmark.exact and seen < benchmark.records else ""
        )

    @property
    def sha256(self) -> str:
        """The checksum of its lines, which two runs must share to be compared."""
        return self.head["sha256"]


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """One record of a manifest. UserError from any of its parts if the line does not hold it."""

    fields: Fields
    task: str

    @property
    def id(self) -> str:
        """Of the record."""
        return self.fields.text("id")

    @property
    def index(self) -> int:
        """Its place among the built records."""
        return self.fields.integer("index", 0)

    @property
    def scene(self) -> str:
        """What it is of, "" if the set has no scenes."""
        return self.fields.text("scene", "")

    @property
    def images(self) -> tuple[str, ...]:
        """What its images are called in the data set."""
        return self.fields.texts("images")

    @functools.cached_property
    def cameras(self) -> tuple[Camera, ...]:
        """Of its images, as they are stored."""
        try:
            return tuple(Camera(*map(float, c[:4]), int(c[4]), int(c[5])) for c in self.fields.tree["cameras"])
        except (KeyError, TypeError, ValueError, IndexError, OverflowError, BadRecord) as error:
            raise UserError(f"{self.fields.name}: cameras: {error}") from None

    @property
    def target(self) -> dict[str, Any]:
        """What its answers are scored against beside what the question tells; {} where that is all."""
        return self.fields.child("target", {}).tree

    @functools.cached_property
    def record(self) -> Record:
        """A stored record with the labels that are asked about, in their order, and images without pixels."""
        names = (*self.images, *[""] * len(self.cameras))
        refs = [ImageRef(c.width, c.height, name, data=b"") for c, name in zip(self.cameras, names)]
        views = tuple(View(ref, camera) for ref, camera in zip(refs, self.cameras, strict=True))
        record = Record(self.id, views, metric=self.fields.flag("metric", True))
        try:
            return _READERS[self.task](record, self.fields)
        except (KeyError, TypeError, ValueError, BadRecord) as error:
            raise UserError(f"{self.fields.name}: {self.task} labels: {error}") from None


def row(record: Record, index: int, labels: dict[str, Any]) -> dict[str, Any]:
    """A line, as JSON, of a built record and its chosen labels."""
    cameras = [[c.fx, c.fy, c.cx, c.cy, c.width, c.height] for c in record.cameras]
    return {
        "id": record.id,
        "index": index,
        "scene": record.scene,
        "images": [view.image.name for view in record.views],
        "cameras": cameras,
        **labels,
    }


def identity(built: storage.AnyPath) -> dict[str, Any]:
    """What tells the records of a built folder from others. FileNotFoundError if nothing was built there."""
    tree = json.loads((built / BUILT).read_text())
    return {name: tree.get(name) for name in IDENTITY}


def write(built: storage.AnyPath, name: str, head: dict[str, Any], rows: Sequence[dict]) -> dict[str, Any]:
    """Freezes the rows; returns the head with its counts and checksum, which is written last."""
    text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows)
    sha256 = hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()
    head = {"version": VERSION, **head, "rows": len(rows), "sha256": sha256}
    (built / FOLDER).mkdir(parents=True, exist_ok=True)
    write_text(built / FOLDER / f"{name}.jsonl", text, errors="backslashreplace")
    write_text(built / FOLDER / f"{name}.json", json.dumps(head, indent=1) + "\n")
    return head


def read(asked: Asked, built: storage.AnyPath | None = None) -> Manifest:
    """The manifest of a benchmark in its built folder (`built`, else where it is looked for).

    NotThere if it was not made; UserError if it was changed, or is of another build than the shards beside it.
    """
    built = built or asked.folder
    try:
        now = identity(built)
    except FileNotFoundError:
        raise NotThere(f"no built data in {built}", asked.command) from None
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{built / BUILT}: cannot be read ({error}); build the data again") from None
    path = built / FOLDER / f"{asked.benchmark.name}.json"
    if not path.is_file():
        raise NotThere(f"{built} has no manifest of {asked.benchmark.name}", asked.command)
    manifest = open_files(asked, path)
    if manifest.head.get("built") != now:
        raise UserError(
            f"{path}: it was frozen of another build than {built}; delete it and give {asked.command} again"
        )
    return manifest


def open_files(asked: Asked, path: storage.AnyPath) -> Manifest:
    """A manifest by the path of its NAME.json, wherever it lies. UserError if its checksum differs."""
    fields = Fields.read(path)
    fields.require("version", VERSION, None)
    if fields.text("benchmark") != asked.benchmark.name:
        raise UserError(f"{path}: a manifest of {fields.text('benchmark')}, not of {asked.benchmark.name}")
    if asked.benchmark.depthlm and fields.text("rules") != asked.rules:
        raise UserError(
            f"{path}: of {fields.text('rules')} labels, not of {asked.rules}; build those with {asked.command}"
        )
    lines = path.with_suffix(".jsonl")
    try:
        data = lines.read_bytes()
    except FileNotFoundError:
        raise UserError(
            f"{lines}: not there, though {path.name} is; restore it, or delete that and build again"
        ) from None
    if hashlib.sha256(data).hexdigest() != fields.text("sha256"):
        raise UserError(
            f"{lines}: its checksum is not the one in {path.name}: it was changed after it was frozen; restore it, or "
            f"delete both and give {asked.command} again"
        )
    return Manifest(asked, fields.tree, data.splitlines(), str(lines))


def _depth(record: Record, fields: Fields) -> Record:
    points = np.array(fields.tree["points_px"], np.int64).reshape(-1, 2)
    depth = np.array(fields.numbers("depth_m", len(points), above=0), np.float64)
    kind = fields.text("kind")
    if kind not in ("z", "distance"):
        raise ValueError(f"kind is {kind!r}, expected z or distance")
    return dataclasses.replace(record, depth=(DepthPoints(points, depth, kind),))


def _matches(record: Record, fields: Fields) -> Record:
    points = [np.array(fields.tree[name], np.float64).reshape(-1, 2) for name in ("points0_px", "points1_px")]
    if len(points[0]) != len(points[1]):
        raise ValueError("not as many points in the second image as in the first")
    return dataclasses.replace(record, matches=Matches(*points))


def _pose(record: Record, fields: Fields) -> Record:
    pose = np.eye(4)
    pose[:3] = np.array(fields.numbers("cam1_T_cam2", 12)).reshape(3, 4)
    views = [dataclasses.replace(view, world_T_cam=T) for view, T in zip(record.views, (np.eye(4), pose), strict=True)]
    return dataclasses.replace(record, views=tuple(views))


def _objects(record: Record, fields: Fields) -> Record:
    boxes = np.array(fields.tree["boxes_px"], np.float64).reshape(-1, 4)
    regions = tuple(range(len(boxes)))
    turns = (Turn("user", fields.text("question"), (0,), regions), Turn("assistant", fields.text("answer")))
    return dataclasses.replace(record, conversation=Conversation(turns, boxes))


_READERS = {"depth": _depth, "correspondence": _matches, "pose": _pose, "objects": _objects}
