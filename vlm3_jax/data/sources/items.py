"""What sources of files in place share: a list of items that is known at the start, each read when it is asked for.

An item is plain and small. Item i is the same in every run as long as the files are: they are sorted by name. Held-out
parts are cut by scene, so that no scene is in both.
"""

import abc
import io
import posixpath
import zlib
from collections.abc import Sequence
from typing import Any

from PIL import Image, UnidentifiedImageError

from vlm3_jax import records
from vlm3_jax.camera import Camera
from vlm3_jax.data.sources.removed import RemovedLabels
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.processor import intrinsics
from vlm3_jax.records import FORMATS, MAX_IMAGE_BYTES, ImageRef, Record, View
from vlm3_jax.storage import AnyPath, is_remote, patiently

PARTS = ("", "train", "held_out")
# Where nothing tells an image's camera; only resizing by focal length goes by it.
ASSUMED_FOV_DEG = 60.0
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class ItemSource(abc.ABC):
    """Random access to the records of `items`, of which [first, first + limit) are used.

    UserError if there are none. BadRecord, naming the item, if one cannot be used; labels that are unusable are removed
    and told in `removed`.
    """

    def __init__(self, name: str, path: AnyPath, items: Sequence[Any], first: int = 0, limit: int | None = None):
        self.name, self.path = name, path
        self.bad: list = []
        self.removed = RemovedLabels()
        self._items = items[first : None if limit is None else first + limit]
        if not len(items):
            raise UserError(f"{name}: {path} has no records, or none in this part (held_out is its share)")
        if not len(self._items):
            raise UserError(f"{name}: {path} holds {len(items)} records, so none from index {first} on")

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Record:
        item = self._items[index]
        try:
            record, removed = records.keep_sound(self._record(item))
        except BadRecord as error:
            raise BadRecord(f"{self.path}: {error}") from None
        self.removed.add(index, str(self.path), record.id, removed)
        return record

    @abc.abstractmethod
    def _record(self, item) -> Record:
        """The record of one item; BadRecord, naming it, if it cannot be used."""


def part_of(scenes: Sequence[str], part: str, share: float, name: str) -> list[int]:
    """The indices of the items (of these scenes, in order) that belong to a part: "" all, "train" or "held_out".

    About `share` of the scenes, one at least, are held out; which, is told by their names. Of a single scene it is the
    last `share` of its items. UserError if nothing is left.
    """
    if not part:
        return list(range(len(scenes)))
    names = sorted(set(scenes), key=lambda scene: (zlib.crc32(scene.encode()), scene))
    if len(names) > 1:
        held_out = set(names[: min(len(names) - 1, max(1, round(share * len(names))))])
        inside = [scene in held_out for scene in scenes]
    else:
        first = len(scenes) - max(1, round(share * len(scenes)))
        inside = [index >= first for index in range(len(scenes))]
    found = [index for index, held in enumerate(inside) if held == (part == "held_out")]
    if not found:
        raise UserError(f"{name}: one scene with {len(scenes)} records cannot be parted; leave part empty")
    return found


def inside(root: AnyPath, file: str, name: str) -> AnyPath:
    """A file below `root`, which is resolved; UserError, with `name`, if it lies elsewhere, also through a link."""
    if is_remote(root):
        # There are no links that `..` could go back over.
        file = posixpath.normpath(file.lstrip("/"))
        if file.split("/")[0] == "..":
            raise UserError(f"{name}: {file!r} leaves the folder {root}")
    try:
        path = (root / file.lstrip("/")).resolve()
    # A loop of links, a null character.
    except (RuntimeError, ValueError, OSError, UserError) as error:
        raise BadRecord(f"{name}: {file!r} is no path ({error})") from None
    if not path.is_relative_to(root):
        raise UserError(f"{name}: {file!r} leaves the folder {root}")
    return path


def photo(path: AnyPath, name: str, shown: str = "") -> tuple[Image.Image, ImageRef]:
    """An image of which only the header is read (its size, format and, but for PNG, EXIF), and the same in place.

    One in a bucket is fetched whole, for a second request would take longer. BadRecord, calling it `shown` (`name`), if
    it is none.
    """
    shown = shown or name

    def read() -> tuple[Image.Image, bytes | None]:
        data = path.read_bytes(MAX_IMAGE_BYTES) if is_remote(path) else None
        try:
            opened = Image.open(path if data is None else io.BytesIO(data), formats=FORMATS)
        except UnidentifiedImageError:
            raise BadRecord(f"{shown}: no {', '.join(FORMATS)} file") from None
        with opened as image:
            # Read now, since the file will be closed; that of a PNG may stand behind its pixels.
            if image.format != "PNG":
                image.getexif()
            return image, data

    try:
        image, data = patiently(read, shown)
    except FileNotFoundError:
        raise BadRecord(f"{shown}: no such image file") from None
    except OSError as error:
        raise BadRecord(f"{shown}: cannot read the image ({error.strerror or error})") from None
    return image, ImageRef(*image.size, name, path=None if data is not None else path, data=data)


def image_ref(path: AnyPath, size: tuple[int, int], name: str) -> ImageRef:
    """An image in place whose size is known."""
    return ImageRef(*size, name, path=path)


def photo_view(path: AnyPath, file: str, name: str, rule: intrinsics.Rule | None = None) -> tuple[View, bool]:
    """A photograph in place (`file`; errors call it `name`), and whether nothing told its camera (`intrinsics.find`).

    That is a field of view of `ASSUMED_FOV_DEG` then.
    """
    image, ref = photo(path, file, name)
    # What a PNG may tell stands behind its pixels, which are not decoded here.
    known = image if image.format != "PNG" else Image.new("1", image.size)
    found = intrinsics.find(known, path, rule)
    camera = Camera.from_fov(*image.size, ASSUMED_FOV_DEG) if found is None else found[0]
    return View(ref, camera), found is None


def rescaled(camera: Camera, width: int, height: int, name: str) -> Camera:
    """The camera of the same picture at another size; BadRecord if its sides are in another proportion."""
    if (camera.width, camera.height) == (width, height):
        return camera
    sx, sy = width / camera.width, height / camera.height
    if abs(sx / sy - 1) > 0.01:
        raise BadRecord(
            f"{name}: the image is {width} x {height}, its camera is for {camera.width} x {camera.height}: not the "
            "same part of the picture"
        )
    # Pixels are counted from their centres.
    centre = (camera.cx + 0.5) * sx - 0.5, (camera.cy + 0.5) * sy - 0.5
    return Camera(camera.fx * sx, camera.fy * sy, *centre, width, height)


def pairs_apart(count: int, gaps: Sequence[int]) -> list[tuple[int, int]]:
    """(i, i + gap) of a sequence of so many frames, by i."""
    return [(i, i + gap) for i in range(count) for gap in sorted(set(gaps)) if i + gap < count]
