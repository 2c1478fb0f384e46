"""DepthLM jsonl: one object a line with an image path, its intrinsics, pixels and their depths (docs/data.md)."""

import array
import codecs
import json
import math
import os
import pathlib
import sys
import typing
import weakref

import numpy as np

from vlm3_jax import storage
from vlm3_jax.camera import Camera
from vlm3_jax.data.sources.removed import RemovedLabels
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.records import DepthPoints, ImageRef, Record, Removed, View, removed_parts
from vlm3_jax.storage import patiently
from vlm3_jax.storage.folders import fetched_file

MAX_LINE_BYTES = 16 * 2**20
FIELDS = ("image", "intrinsics", "pixel_coords", "depth")


class BadLine(typing.NamedTuple):
    """A line that was set aside: `line` counts from 1."""

    file: str
    line: int
    reason: str

    def __str__(self):
        return f"{self.file}:{self.line}: {self.reason}"


class DepthLMSource:
    """Random access to the records of a jsonl file; only byte offsets are kept in memory.

    A file in a bucket is fetched (folders.fetched_file), its images are read where they lie.
    `images`: the folder that the `image` fields are relative to. `depth_kind`: "distance" (to the camera centre) or
    "z". `first`, `limit`: only the lines [first, first + limit), empty ones not counted.

    One pass over the file validates every line. A malformed line is set aside in `bad` and its record is None: it keeps
    its number, so that a line that breaks between two runs moves no other. Above `max_bad_fraction` of the lines, or
    for a path outside `images`, or a line above 16 MiB, a UserError names file and line. Points that are not
    `DepthPoints.RULE` are left out and told in `removed`.
    """

    def __init__(
        self,
        name: str,
        path: str | os.PathLike,
        images: str | os.PathLike,
        depth_kind: str,
        first: int = 0,
        limit: int | None = None,
        max_bad_fraction: float = 0.01,
    ):
        self.name = name
        self.path = storage.path(path)
        self.root = storage.path(images).resolve()
        self.depth_kind = depth_kind
        self.bad: list[BadLine] = []
        self.removed = RemovedLabels()
        if not self.path.is_file():
            raise UserError(f"{name}: no such file {self.path}")
        if not self.root.is_dir():
            raise UserError(f"{name}: the image folder {self.root} does not exist")
        # Every line of it is looked at, and then any at any time.
        local = fetched_file(self.path)
        chosen = slice(first, None if limit is None else first + limit)
        spans, lines = self._index(local, max_bad_fraction, range(sys.maxsize)[chosen])
        self._offsets, self._lines = spans[chosen].copy(), lines[chosen]
        used = np.isin([bad.line for bad in self.bad], self._lines)
        self.bad = [bad for bad, here in zip(self.bad, used, strict=True) if here]
        if len(self.bad) == len(self._lines):
            wanted = f"[{first}, {'end' if limit is None else first + limit})"
            raise UserError(f"{self.bad[0] if self.bad else self.path} (no usable line in {wanted})")
        self._file = os.open(local, os.O_RDONLY)
        self.close = weakref.finalize(self, os.close, self._file)

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Record | None:
        number = int(self._lines[index])
        offset, length = self._offsets[index]
        if not length:
            return None
        # pread has no file position, so threads can share the descriptor.
        data = patiently(lambda: os.pread(self._file, int(length), int(offset)), f"{self.path}:{number}")
        try:
            image, camera, points, depth, _ = parse_line(data)
        except BadRecord as error:
            raise BadRecord(f"{self.path}:{number}: {error}") from None
        ref = ImageRef(camera.width, camera.height, image, path=self._resolve(image, number))
        return Record(
            id=f"{image}#{number}",
            views=(View(ref, camera),),
            depth=(DepthPoints(points, depth, self.depth_kind),),
        )

    def _index(self, local: pathlib.Path, max_bad_fraction: float, used: range) -> tuple[np.ndarray, np.ndarray]:
        """(offset, length) int64 [N, 2] and number int64 [N] of the lines; length 0: set aside.

        Points are told that those in `used` leave out.
        """
        spans, lines = array.array("q"), array.array("q")
        offset = 0
        with open(local, "rb") as file:
            if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8:
                offset = file.tell()
            file.seek(offset)
            for number, data in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
                if len(data) > MAX_LINE_BYTES:
                    raise UserError(
                        f"{self.path}:{number}: the line is longer than {MAX_LINE_BYTES} bytes; one image a line"
                    )
                if data.strip():
                    lines.append(number)
                    try:
                        image, _, _, _, removed = parse_line(data)
                        self._check_inside(image, number)
                        spans.extend((offset, len(data)))
                        if (place := len(lines) - 1) in used:
                            id = f"{image}#{number}"
                            self.removed.add(place - used.start, f"{self.path}:{number}", id, removed)
                    except BadRecord as error:
                        self.bad.append(BadLine(str(self.path), number, str(error)))
                        spans.extend((offset, 0))
                offset += len(data)
        total = len(lines)
        if not total:
            raise UserError(f"{self.path}: the file has no lines")
        if len(self.bad) > max_bad_fraction * total:
            raise UserError(
                f"{self.bad[0]} ({len(self.bad)} of {total} lines are unusable, "
                f"above max_bad_fraction = {max_bad_fraction:g})"
            )
        return np.array(spans, np.int64).reshape(-1, 2), np.array(lines, np.int64)

    def _check_inside(self, image: str, number: int) -> None:
        """The cheap part of `_resolve`, for every line: no path may climb out of the folder by `..`."""
        if os.path.normpath(image).split(os.sep, 1)[0] == os.pardir:
            raise UserError(f"{self.path}:{number}: image {image!r} leaves the image folder {self.root}")

    def _resolve(self, image: str, number: int) -> storage.AnyPath:
        """The image's file; UserError if it lies outside the image folder (also through a symbolic link).

        BadRecord if its links go in a circle.
        """
        try:
            # In a bucket there are no links that `..` could go back over.
            inside = os.path.normpath(image) if storage.is_remote(self.root) else image
            path = (self.root / inside).resolve()
        except RuntimeError:
            raise BadRecord(f"{self.path}:{number}: image {image!r} is a loop of symbolic links") from None
        if not path.is_relative_to(self.root):
            raise UserError(f"{self.path}:{number}: image {image!r} leaves the image folder {self.root}")
        return path


def parse_line(data: bytes) -> tuple[str, Camera, np.ndarray, np.ndarray, tuple[Removed, ...]]:
    """One line -> image path, camera, points int64 [N, 2] (px), depth float64 [N] (m), the points left out.

    BadRecord (without file and line) if it is not an object with the required fields, or no point is usable.
    """
    try:
        row = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"not JSON ({str(error).splitlines()[0]})") from None
    if not isinstance(row, dict):
        raise BadRecord(f"expected a JSON object, got {type(row).__name__}")
    missing = [field for field in FIELDS if field not in row]
    if missing:
        raise BadRecord(f"field {missing[0]!r} is missing")
    # numpy takes true and false among numbers for 1 and 0; a look at the bytes spares nearly all lines the walk.
    if b"true" in data or b"false" in data:
        for field in FIELDS[1:]:
            if _holds_truth_values(row[field]):
                raise BadRecord(f"{field}: expected numbers, got true or false")
    image = row["image"]
    if not isinstance(image, str) or not image.strip("/") or "\0" in image:
        raise BadRecord(f"image: expected a path, got {image!r}")
    camera = Camera.from_intrinsics(_numbers(row, "intrinsics", (6,)))
    points = np.floor(_numbers(row, "pixel_coords", (None, 2)))
    if isinstance(row["depth"], list):
        # What has no depth is null or NaN.
        row["depth"] = [math.nan if value is None else value for value in row["depth"]]
    depth = _numbers(row, "depth", (None,))
    if len(points) != len(depth):
        raise BadRecord(f"pixel_coords has {len(points)} points and depth {len(depth)} values")
    label = DepthPoints(points, depth, "")
    keep = label.sound([camera])
    if not keep.any():
        raise BadRecord(f"none of its {len(points)} points is {DepthPoints.RULE}")
    points = points[keep].astype(np.int64)
    removed = () if keep.all() else (removed_parts(label, "depth", keep),)
    return image.lstrip("/"), camera, points, depth[keep], removed


def _numbers(row: dict, field: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """The field as float64 of the given shape (None: any length)."""
    try:
        values = np.asarray(row[field])
    except ValueError:
        raise BadRecord(f"{field}: its rows differ in length") from None
    if values.size == 0 and shape[0] is None:
        return np.zeros([0, *shape[1:]])
    if values.dtype.kind not in "iuf":
        raise BadRecord(f"{field}: expected numbers")
    if values.ndim != len(shape) or any(want not in (None, got) for want, got in zip(shape, values.shape, strict=True)):
        wanted = " x ".join("N" if n is None else str(n) for n in shape)
        raise BadRecord(f"{field}: expected {wanted} numbers, got shape {list(values.shape)}")
    return values.astype(np.float64)


def _holds_truth_values(values) -> bool:
    return any(map(_holds_truth_values, values)) if isinstance(values, list) else isinstance(values, bool)
