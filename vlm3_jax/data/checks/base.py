"""What every check offers, and the depths of a record whatever form they are stored in."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from vlm3_jax.camera import Camera
from vlm3_jax.records import DepthMap, Record

# Of a dense map so many pixels are looked at.
MAP_POINTS = 400


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a check has to say of a component: `lines` for people, `values` for programs.

    `faults`: what is off; with one of them a check ends with 1. `warnings`: what is odd, and may be right.
    """

    lines: tuple[str, ...] = ()
    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    faults: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class Check(Protocol):
    """Takes the stored records of one component one by one, and then tells what it found."""

    def add(self, index: int, record: Record) -> None:
        """Looks at one more record, number `index` of its source, its images not decoded; numbers rise."""

    def facts(self) -> Facts:
        """What all records together say; no lines if there was nothing to look at."""


@dataclasses.dataclass(frozen=True, eq=False)
class Depths:
    """Labelled depths of one view: `points_px` float64 [N, 2] in pixels of the image, `depth_m` float64 [N], `kind`."""

    view: int
    camera: Camera
    points_px: np.ndarray
    depth_m: np.ndarray
    kind: str

    def z_m(self, kind: str | None = None) -> np.ndarray:
        """The z-depth of each point, if the labels are of this kind (None: of the kind told)."""
        if (kind or self.kind) == "z":
            return self.depth_m
        return self.camera.z_from_distance(self.points_px, self.depth_m)


@functools.lru_cache(maxsize=4)
def dense_maps(record: Record) -> tuple[tuple[DepthMap, np.ndarray], ...]:
    """The dense maps of a record with their depths, float32 [height, width]; decoded once for all checks."""
    return tuple((stored, stored.load()) for stored in record.depth_maps)


def dense_depths(record: Record, most: int = MAP_POINTS) -> Iterator[Depths]:
    """At most so many pixels of each dense map, at random."""
    for stored, values in dense_maps(record):
        camera = record.cameras[stored.view]
        rows, columns = np.nonzero(np.isfinite(values))
        if len(rows) > most:
            chosen = np.random.default_rng(0).choice(len(rows), most, replace=False)
            rows, columns = rows[chosen], columns[chosen]
        points = image_pixels(np.stack([columns, rows], -1), values.shape, camera)
        yield Depths(stored.view, camera, points, values[rows, columns].astype(np.float64), stored.kind)


def depths(record: Record) -> Iterator[Depths]:
    """The labelled points of a record, and pixels of its dense maps."""
    for label in record.depth:
        points = np.asarray(label.points_px, np.float64)
        yield Depths(label.view, record.cameras[label.view], points, np.asarray(label.depth_m, np.float64), label.kind)
    yield from dense_depths(record)


class Thinning:
    """What is slow looks at `most` records, then at half of those that follow, then at a quarter, and so on.

    Neighbours stay together.
    """

    def __init__(self, most: int = 512):
        self._most, self._taken, self._stride = most, 0, 1

    def takes(self, index: int) -> bool:
        """Whether record `index` is looked at."""
        if index // 2 % self._stride:
            return False
        self._taken += 1
        if self._taken % self._most == 0:
            self._stride *= 2
        return True


def image_pixels(points, shape, camera: Camera) -> np.ndarray:
    """Pixels [N, 2] of a map of `shape` (height, width) that covers the whole image -> pixels of the image."""
    scale = np.array([camera.width / shape[1], camera.height / shape[0]])
    return (np.asarray(points, np.float64) + 0.5) * scale - 0.5


def map_pixels(points, shape, camera: Camera) -> np.ndarray:
    """The inverse of `image_pixels`."""
    scale = np.array([camera.width / shape[1], camera.height / shape[0]])
    return (np.asarray(points, np.float64) + 0.5) / scale - 0.5


def spread(values) -> dict[str, float]:
    """Smallest, median and largest of some numbers."""
    return {"min": float(np.min(values)), "median": float(np.median(values)), "max": float(np.max(values))}
