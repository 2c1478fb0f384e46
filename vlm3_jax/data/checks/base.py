"""What every check offers, and the depths of a record whatever form they are stored in."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from vlm3_jax.camera import Camera
from vlm3_jax.records import Record

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


def depths(record: Record, most: int = MAP_POINTS) -> Iterator[Depths]:
    """The labelled points of a record, and the pixels of its dense maps."""
    for label in record.depth:
        points = np.asarray(label.points_px, np.float64)
        yield Depths(label.view, record.cameras[label.view], points, np.asarray(label.depth_m, np.float64), label.kind)
    for stored in record.depth_maps:
        values = stored.load()
        camera = record.cameras[stored.view]
        rows, columns = np.nonzero(np.isfinite(values) & (values > 0))
        if len(rows) > most:
            # Evenly spaced numbers, row by row, would lie on a few columns.
            chosen = np.random.default_rng(0).choice(len(rows), most, replace=False)
            rows, columns = rows[chosen], columns[chosen]
        points = image_pixels(np.stack([columns, rows], -1), values.shape, camera)
        yield Depths(stored.view, camera, points, values[rows, columns].astype(np.float64), stored.kind)


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
