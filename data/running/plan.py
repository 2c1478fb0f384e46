"""What a build is: its options, the items of every shard, and the names of all files; nothing is written yet."""

import dataclasses
import hashlib
import itertools
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from vlm3_jax.builders import registry
from vlm3_jax.builders.common import JPEG_QUALITY, Builder, Item, Options
from vlm3_jax.camera import Resize, resize_rule
from vlm3_jax.errors import UserError
from vlm3_jax.processor.image import VisionSpec
from vlm3_jax.storage import AnyPath, local_path, path

# Raise it when the same builder starts to give other files for a reason that is not the builder's.
FORMAT_VERSION = 1
# About half a gigabyte of frames with depth: little is lost by a kill, and a set of millions has thousands of files.
SHARD_ITEMS = 1024
# Of the items of a split; beyond it something is wrong with the folder, or with the builder, and not with a few files.
MAX_BAD = 0.01


@dataclasses.dataclass(frozen=True)
class Images:
    """How images are stored. `resize`: text form of a resize rule, "" for as they are.

    `vision`: with it, images are stored at the size that this vision tower sees. `quality`: of the JPEG of images that
    are decoded on the way, None for PNG.
    """

    resize: str = ""
    vision: VisionSpec | None = None
    quality: int | None = JPEG_QUALITY

    def __post_init__(self):
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise UserError(f"--quality={self.quality}: give a JPEG quality from 1 to 100, or png")
        if self.resize:
            try:
                resize_rule(self.resize)
            except ValueError as error:
                raise UserError(f"--focal: {error}") from None

    @property
    def rule(self) -> Resize | None:
        """The resize rule; None for images as they are."""
        return resize_rule(self.resize) if self.resize else None

    @property
    def lossy(self) -> bool:
        """Whether the loader will see other pixels than if it had resized the published image."""
        return self.quality is not None and bool(self.resize or self.vision)


@dataclasses.dataclass(frozen=True)
class Build:
    """One split of one data set, from the folder `raw` to `out`, here or in a bucket; files depend on nothing else.

    (Where the folders are does not matter, only what `raw` holds.)
    """

    name: str
    split: str
    raw: pathlib.Path
    out: AnyPath
    options: Options = dataclasses.field(default_factory=Options)
    images: Images = dataclasses.field(default_factory=Images)
    shard_items: int = SHARD_ITEMS
    limit: int = 0

    def builder(self) -> Builder:
        """The builder, with its options."""
        return registry.get(self.name)(self.options)


@dataclasses.dataclass(frozen=True)
class Job:
    """One shard: `number` of `count`, its items, and `identity`, the hash of the description of the whole build."""

    build: Build
    number: int
    count: int
    identity: str
    items: tuple[Item, ...]

    @property
    def shard(self) -> AnyPath:
        """The file of its records, named as TFDS names it."""
        return self.build.out / f"{stem(self.build)}-{self.number:05d}-of-{self.count:05d}"

    @property
    def completion(self) -> AnyPath:
        """What says that the shard is whole."""
        return folder(self.build.out) / f"{self.number:05d}-of-{self.count:05d}.json"


def stem(build: Build) -> str:
    """What the names of all shards begin with."""
    return f"{build.name}-{build.split}.array_record"


def folder(out: AnyPath) -> AnyPath:
    """Where completion records are."""
    return out / "built"


def make_build(name: str, raw, out, split: str = "", **options: Any) -> Build:
    """A build of checked options: those of `Build`, with `depthlm`. UserError names the option that is wrong."""
    builder = registry.get(name)
    split = split or builder.splits[0]
    if split not in builder.splits:
        raise UserError(f"--split={split}: {name} has {', '.join(builder.splits)}")
    depthlm = options.pop("depthlm", False)
    if depthlm and not builder.honours_depthlm:
        raise UserError(f"--depthlm: {name} has no other labels for it; leave it out")
    build = Build(name, split, local_path(raw, "--raw"), path(out, "--out"), Options(depthlm), **options)
    if build.shard_items < 1 or build.limit < 0:
        raise UserError(f"--shard-items={build.shard_items} --limit={build.limit}: give at least 1 and 0 (no limit)")
    if build.images.lossy and split == builder.held_out:
        raise UserError(
            f"--split={split}: mixtures hold it out, and evaluation resizes exactly; leave out --focal and --final, or "
            "store without loss (--quality=png)"
        )
    if not build.raw.is_dir():
        raise UserError(f"--raw={build.raw}: no such folder; see docs/datasets.md for the layout of {name}")
    return build


def jobs(build: Build) -> tuple[dict, list[Job]]:
    """(description, one job a shard). UserError if the raw folder is not laid out as the builder expects."""
    builder = build.builder()
    items = builder.frames(build.raw, build.split)
    items = items[: build.limit] if build.limit else items
    if not items:
        raise UserError(f"{build.raw}: no items of {build.name}, split {build.split}, in it")
    check_items(items)
    about = describe(build, builder, items)
    identity = hashlib.sha256(canonical(about)).hexdigest()
    starts = range(0, len(items), build.shard_items)
    parts = [tuple(items[start : start + build.shard_items]) for start in starts]
    return about, [Job(build, number, len(parts), identity, part) for number, part in enumerate(parts)]


def check_items(items: Sequence[Item]) -> None:
    """ValueError, for it is the builder's fault, if keys are not sorted, not unique or empty."""
    for one, other in itertools.pairwise(items):
        if not one.key < other.key:
            raise ValueError(f"items must be sorted by key, each once: {one.key!r} comes before {other.key!r}")
    if not items[0].key:
        raise ValueError("an item has an empty key")


def describe(build: Build, builder: Builder, items: Iterable[Item]) -> dict:
    """What the files depend on, as JSON holds it; the raw files count by what the builder found, not by their bytes."""
    found = hashlib.sha256()
    count = 0
    for item in items:
        found.update(canonical([item.key, item.scene, item.data], build.raw))
        count += 1
    about = {
        "format_version": FORMAT_VERSION,
        "builder": build.name,
        "version": builder.version,
        "split": build.split,
        "depthlm": build.options.depthlm,
        "images": dataclasses.asdict(build.images),
        "shard_items": build.shard_items,
        "items": count,
        "items_sha256": found.hexdigest(),
    }
    # Through JSON and back, so that it compares equal to what a file holds (tuples become lists).
    return json.loads(canonical(about))


def canonical(tree, raw: pathlib.Path | None = None) -> bytes:
    """One spelling of a plain value; paths below `raw` are relative to it."""

    def plain(value):
        if isinstance(value, pathlib.PurePath):
            inside = raw is not None and value.is_relative_to(raw)
            return (value.relative_to(raw) if inside else value).as_posix()
        if isinstance(value, np.ndarray):
            return [value.dtype.str, list(value.shape), hashlib.sha256(np.ascontiguousarray(value)).hexdigest()]
        if isinstance(value, bytes):
            return [len(value), hashlib.sha256(value).hexdigest()]
        if isinstance(value, np.generic):
            return value.item()
        if dataclasses.is_dataclass(value):
            return dataclasses.asdict(value)
        raise TypeError(f"an item holds a {type(value).__name__}; give plain values (texts, numbers, lists, paths)")

    return json.dumps(tree, sort_keys=True, separators=(",", ":"), default=plain).encode()
