"""Sources: random access to records, whatever their files look like. `make_source` turns a config entry into one."""

import difflib
import math
import os
import typing

import ml_collections

from vlm3_jax.data.sources.array_record import ArrayRecordSource
from vlm3_jax.data.sources.depthlm import BadLine, DepthLMSource
from vlm3_jax.errors import UserError
from vlm3_jax.records import Record
from vlm3_jax.storage import local_path
from vlm3_jax.tasks import TASKS
from vlm3_jax.tasks import protocol as protocols
from vlm3_jax.tasks.protocol import WORDINGS, Protocol

KINDS = ("depthlm", "records")
DEPTH_KINDS = ("distance", "z")


class Source(typing.Protocol):
    """A sequence of records. `bad` lists what was set aside while indexing, `points_removed` counts unusable labels."""

    name: str
    path: object
    bad: list[BadLine]
    points_removed: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record | None:
        """Record `index`, its images not decoded; None if it is one of `bad`. BadRecord if its data cannot be used."""


def component_config(**fields) -> ml_collections.ConfigDict:
    """One entry of a mixture table: a source, the task it trains and how its images and questions are made.

    UserError for a field that does not exist, naming the nearest one.
    """
    config = ml_collections.ConfigDict()
    # "depthlm" (jsonl and an image folder) or "records" (ArrayRecord shards).
    config.kind = "records"
    # The jsonl file; or a shard, a folder of shards or a glob pattern.
    config.path = ""
    # depthlm: the folder that the image paths are relative to; "" takes the jsonl's own folder.
    config.images = ""
    # depthlm: what the depths are, "distance" (to the camera centre) or "z"; it has no default because both occur.
    config.depth_kind = ""
    # "depth", "objects", "correspondence" or "pose".
    config.task = "depth"
    # Share of the mixture, relative to the other entries; 0 leaves the entry out.
    config.weight = 1.0
    # How the questions are asked (vlm3_jax/tasks/protocol.py): "release", "paper" or "short".
    config.protocol = "release"
    # In place of the protocol's own: how images are resized ("focal:1000", "focal:750:per_axis", "longest:1024",
    # "as_is"; "": its own), coordinates in [0, coord_range) and at most so many questions a record (0: its own).
    config.resize, config.coord_range, config.questions = "", 0, 0
    # The release's optional step-by-step suffix of the correspondence question.
    config.think = False
    # Probability that a record is mirrored left to right.
    config.flip = 0.0
    # Pairs with a smaller covisibility are left out (they are counted as passed over, not as bad).
    config.covisibility_min = 0.0
    # Typical (width, height, focal length) of the stored images in px: `vlm3 plan` works without the data.
    config.size = ()
    # Only the records [first, first + limit) are used; limit 0: all from `first` on.
    config.first = 0
    config.limit = 0
    for field, value in fields.items():
        if field not in config:
            near = difflib.get_close_matches(field, config.keys(), 1, 0)
            raise UserError(f"data: a mixture entry has no field {field!r}; did you mean {near[0]!r}?")
        try:
            config[field] = value
        except TypeError:
            wanted = type(config[field]).__name__
            raise UserError(
                f"data: field {field!r} of a mixture entry must be of type {wanted}, got {value!r}"
            ) from None
    return config


def check_entry(name: str, entry) -> ml_collections.ConfigDict:
    """The entry with its defaults filled in; UserError, naming entry and field, if a value is not allowed."""
    try:
        entry = component_config(**dict(entry))
    except UserError as error:
        raise UserError(f"mixture entry {name!r}: {error}") from None
    allowed = {"kind": KINDS, "task": tuple(TASKS), "protocol": WORDINGS}
    if entry.kind == "depthlm":
        allowed["depth_kind"] = DEPTH_KINDS
    for field, choices in allowed.items():
        if entry[field] not in choices:
            raise UserError(f"mixture entry {name!r}: {field} is {entry[field]!r}; choose one of {choices}")
    ranges = {
        "weight": 0 <= entry.weight < math.inf,
        "coord_range": entry.coord_range >= 0,
        "questions": entry.questions >= 0,
        "flip": 0 <= entry.flip <= 1,
        "first": entry.first >= 0,
        "limit": entry.limit >= 0,
    }
    for field, good in ranges.items():
        if not good:
            raise UserError(f"mixture entry {name!r}: {field} = {entry[field]} is out of range")
    if not entry.path:
        raise UserError(f"mixture entry {name!r}: path is empty")
    for field in ("path", "images"):
        local_path(entry[field], f"mixture entry {name!r}: {field}")
    try:
        protocol_of(entry)
    except ValueError as error:
        raise UserError(f"mixture entry {name!r}: {error}") from None
    return entry


def protocol_of(entry) -> Protocol:
    """How a mixture entry asks: its named protocol with the entry's own fields in place. ValueError for a bad one."""
    fields = {field: entry[field] for field in ("resize", "coord_range", "questions", "think")}
    return protocols.given(entry.task, entry.protocol, **fields)


def make_source(name: str, entry, max_bad_fraction: float = 0.01) -> Source:
    """The source of a mixture entry (`component_config` or a dict of its fields)."""
    entry = check_entry(name, entry)
    limit = entry.limit or None
    if entry.kind == "records":
        return ArrayRecordSource(name, entry.path, entry.first, limit)
    images = entry.images or os.path.dirname(entry.path) or "."
    return DepthLMSource(name, entry.path, images, entry.depth_kind, entry.first, limit, max_bad_fraction)
