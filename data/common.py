"""What every builder is made of: its items, its options, why an item is skipped, and help for reading folders."""

import contextlib
import dataclasses
import io
import itertools
import pathlib
from collections.abc import Iterable
from typing import ClassVar

import numpy as np
from PIL import Image

from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.formats.optional import module as module
from vlm3_jax.records import MAX_IMAGE_BYTES, ImageRef, Record

# Of images that had to be decoded (undistorted, resized, of a format that records do not hold). Colour is not thinned
# out: a red lamp keeps its edge.
JPEG_QUALITY = 95


class Skip(Exception):
    """The data set itself marks an item as unusable, or leaves out what it needs; `reason` is one line. No fault."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """One record to be: `key`, unique within its split, becomes `Record.id`; `scene` is what hold-outs go by.

    `data`: whatever `Builder.record` needs to read it, plain and small (texts, numbers, lists, paths): it is pickled
    for the processes that read it, and its paths are best kept relative to the raw folder. All items of a split are
    in memory together: what items have in common should be one object.
    """

    key: str
    scene: str
    data: dict


@dataclasses.dataclass(frozen=True)
class Options:
    """What a user may ask of every builder.

    `depthlm`: labels as DepthLM's curators stored them, where those differ from metres. The resizing of images is done
    for builders, by `running`.
    """

    depthlm: bool = False


class Builder:
    """A public data set: which items a split has, and the record of each. One subclass a data set, in its own file.

    Subclasses fill in the fields below; docs/datasets.md, the help of the command line and tests are made from them.
    Both methods are functions of their arguments and of the options: they keep nothing between calls that could change
    a result, for items are read in several processes and again after a kill.
    """

    name: ClassVar[str] = ""
    """What users call it; letters, digits and underscores, as TFDS wants it."""
    title: ClassVar[str] = ""
    """Its published name."""
    folder: ClassVar[str] = "depth"
    """Where mixtures look for it: "depth", "pairs", "objects" or "bench"."""
    version: ClassVar[str] = "1.0.0"
    """To be raised whenever the same files give other records."""
    splits: ClassVar[tuple[str, ...]] = ("train",)
    """The published ones."""
    held_out: ClassVar[str] = ""
    """The split that mixtures hold out, one of `splits`; "" if none is."""
    layout: ClassVar[str] = ""
    """The raw folder, in a line."""
    labels: ClassVar[str] = ""
    """What the records hold and in which unit, in a line."""
    licence: ClassVar[str] = ""
    """The licence of the raw data, and where it is obtained."""
    checked: ClassVar[str] = "fixture"
    """What it was tried on: "fixture" (files that a test writes in the original layout), or which real ones."""
    doubts: ClassVar[tuple[str, ...]] = ()
    """What could not be confirmed on original files."""
    test: ClassVar[str] = ""
    """Its test, a path in this repository."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Modules of the extra `builders` without which it cannot read its files."""
    honours_depthlm: ClassVar[bool] = False
    """Whether its labels change with `Options.depthlm`."""

    def __init__(self, options: Options = Options()):
        self.options = options

    def frames(self, raw: pathlib.Path, split: str) -> list[Item]:
        """All intended items of a split, sorted by key, each with everything that belongs to it.

        Looks at names and indices only, and sorts whole frames, never one kind of file alone. UserError if the layout
        is not there.
        """
        raise NotImplementedError

    def record(self, raw: pathlib.Path, item: Item) -> Record:
        """Reads one item. Skip for what the set marks unusable, BadRecord for what is damaged.

        Images stay encoded where they can (`image`); nothing is filtered that a later list could leave out.
        """
        raise NotImplementedError


def image(path: pathlib.Path, name: str = "") -> ImageRef:
    """An image file as it is stored, its size read from its header; `name` is what errors call it.

    BadRecord if it is missing or no JPEG, PNG or WebP.
    """
    name = name or path.name
    try:
        if (size := path.stat().st_size) > MAX_IMAGE_BYTES:
            raise BadRecord(f"{name}: {size} bytes is above the limit of {MAX_IMAGE_BYTES}")
        return ImageRef.of_bytes(path.read_bytes(), name)
    except FileNotFoundError:
        raise BadRecord(f"{name}: no such image file") from None


def encode(pixels: np.ndarray, name: str, quality: int | None = JPEG_QUALITY) -> ImageRef:
    """uint8 [H, W, 3] -> an image that is stored as JPEG of this quality, colour at full size; None: PNG, lossless."""
    buffer = io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    if quality is None:
        picture.save(buffer, "PNG", compress_level=1)
    else:
        picture.save(buffer, "JPEG", quality=quality, subsampling=0)
    return ImageRef(pixels.shape[1], pixels.shape[0], name, data=buffer.getvalue())


def subfolders(folder: pathlib.Path, what: str) -> list[pathlib.Path]:
    """The folders in one, sorted by name; UserError if there is none, saying `what` they should be."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        found = sorted((path for path in folder.iterdir() if path.is_dir()), key=lambda path: path.name)
        if found:
            return found
    raise UserError(f"{folder}: expected {what} in it; see docs/datasets.md for the layout")


def need_files(paths: Iterable[pathlib.Path]) -> None:
    """UserError that names the first path that is not there."""
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: not there; see docs/datasets.md for the layout of this data set")


def by_key(items: Iterable[Item]) -> list[Item]:
    """The items sorted by key; UserError if two have the same one."""
    found = sorted(items, key=lambda item: item.key)
    for one, other in itertools.pairwise(found):
        if one.key == other.key:
            raise UserError(f"two items are called {one.key!r}; the raw folder holds the same frame twice")
    return found
