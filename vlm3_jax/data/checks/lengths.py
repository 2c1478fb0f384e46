"""Lengths and their units, and cameras that are not those of their images."""

import array
import collections

import numpy as np

from vlm3_jax.data.checks.base import Facts, depths, spread
from vlm3_jax.records import LABELS, Record

# Few photos show labels farther away, and those in millimetres nearly always come out above it.
FAR_M = 500.0
# A median above it is no set of photos: those of streets have 10 to 30 m.
FAR_MEDIAN_M = 100.0
# A share of the image that a principal point in its middle may be off by.
OFF_CENTRE = 0.1
# Dense maps are of the proportions of their images, but for a row or two.
OTHER_SHAPE = 0.05
# Fewer labels, or views, say little.
MIN_LABELS, MIN_VIEWS = 50, 5
# So many lengths of a record and a kind are kept for the median.
KEPT = 64


class _Range:
    """Lengths of one kind: how many, the smallest and the largest, and some of each record for the rest."""

    def __init__(self):
        self.count, self.low, self.high = 0, np.inf, -np.inf
        self._some = []

    def add(self, values: np.ndarray) -> None:
        """More lengths; those that are not finite are counted elsewhere."""
        values = values[np.isfinite(values)]
        if len(values):
            self.count += len(values)
            self.low, self.high = min(self.low, values.min()), max(self.high, values.max())
            self._some.append(values[:: -(-len(values) // KEPT)].astype(np.float32))

    @property
    def some(self) -> np.ndarray:
        """Lengths of all records, float32 [N]."""
        return np.concatenate(self._some)

    def spread(self) -> dict[str, float]:
        """Smallest, median and largest."""
        return {"min": float(self.low), "median": float(np.median(self.some)), "max": float(self.high)}


class Lengths:
    """Depths, distances of objects and baselines: their range, and whether they can be metres."""

    def __init__(self):
        self._ranges = collections.defaultdict(_Range)
        self._metric = True

    def add(self, index: int, record: Record) -> None:
        """Takes its lengths."""
        for found in depths(record):
            self._ranges["depth"].add(found.depth_m)
        for name in LABELS:
            if name != "depth":
                for label in record.labels:
                    if isinstance(label, LABELS[name]):
                        self._ranges[name].add(label.metres())
        poses = [view.world_T_cam for view in record.views[:2] if view.world_T_cam is not None]
        if len(poses) == 2:
            self._ranges["baseline"].add(np.linalg.norm(poses[1][:3, 3] - poses[0][:3, 3], keepdims=True))
        self._metric &= record.metric

    def facts(self) -> Facts:
        """Ranges; a fault where lengths can hardly be metres."""
        lines, values, faults, warnings = [], {}, [], []
        unit = "m" if self._metric else "units of unknown size"
        for kind, found in self._ranges.items():
            if not found.count:
                continue
            values[kind] = found.spread()
            low, middle, high = values[kind].values()
            lines.append(f"{kind}: {low:.4g} to {high:.4g} {unit}, median {middle:.4g} {unit}")
            if self._metric:
                fault, warning = _doubts(kind, found)
                faults += [fault] if fault else []
                warnings += [warning] if warning else []
        return Facts(tuple(lines), values, tuple(faults), tuple(warnings))


def _doubts(kind: str, found: _Range) -> tuple[str, str]:
    """What is off with lengths that should be metres, and what is odd."""
    some, high, enough = found.some, found.high, found.count >= MIN_LABELS
    middle = np.median(some)
    if enough and middle > FAR_MEDIAN_M:
        return f"{kind}: the median is {middle:.4g} m; are these millimetres? Lengths must be in metres", ""
    if enough and middle > 20 and len(np.unique(some)) > 20 and (some == np.rint(some)).all():
        return f"{kind}: all lengths are whole numbers, up to {high:.4g}; are these millimetres?", ""
    if high > FAR_M:
        return "", f"{kind} above {FAR_M:g} m; are these millimetres? Lengths must be in metres"
    if kind == "depth" and enough and high <= 1:
        return "", "depth: nothing is farther than 1 m; are these shares of a range, or disparities?"
    return "", ""


class Cameras:
    """Fields of view, principal points, shapes of dense maps: whether all of them belong to the stored images."""

    def __init__(self):
        # fx, fy, cx, cy, width, height of each view.
        self._numbers = array.array("d")
        # width, height of each dense map and of its image.
        self._maps = array.array("d")

    def add(self, index: int, record: Record) -> None:
        """Takes its cameras."""
        for c in record.cameras:
            self._numbers.extend((c.fx, c.fy, c.cx, c.cy, c.width, c.height))
        for stored in record.depth_maps:
            c = record.cameras[stored.view]
            self._maps.extend((stored.width, stored.height, c.width, c.height))

    def facts(self) -> Facts:
        """Ranges; a fault where most principal points or maps tell of an image of another size or orientation."""
        if not self._numbers:
            return Facts()
        cameras = np.array(self._numbers).reshape(-1, 6)
        focal, centre, size = np.split(cameras, 3, axis=1)
        fov = np.degrees(2 * np.arctan(size / 2 / focal))
        middle = (size - 1) / 2
        values = {
            "views": len(size),
            "different_cameras": len(np.unique(cameras, axis=0)),
            "fov_across_deg": spread(fov[:, 0]),
            "fov_down_deg": spread(fov[:, 1]),
            "principal_point_off_by": float(np.abs((centre - middle) / size).max()),
            "fx_over_fy": spread(focal[:, 0] / focal[:, 1]),
        }
        across, down = values["fov_across_deg"], values["fov_down_deg"]
        line = (
            f"cameras: {values['different_cameras']:,} of {len(size):,} views, seeing {across['min']:.1f} to "
            f"{across['max']:.1f} degrees across, {down['min']:.1f} to {down['max']:.1f} down; principal points up to "
            f"{100 * values['principal_point_off_by']:.1f} % of the image off its middle"
        )
        faults = (*_other_images(centre, size), *_other_shapes(np.array(self._maps).reshape(-1, 2, 2)))
        return Facts((line,), values, faults, tuple(_odd_pixels(focal)))


def _other_images(centre: np.ndarray, size: np.ndarray) -> list[str]:
    """Faults of principal points [N, 2] that are far from the middle of images of `size` [N, 2]."""
    ratio = centre / (size / 2)
    off = (np.abs(ratio - 1) > 2 * OFF_CENTRE).any(1)
    if len(size) < MIN_VIEWS or off.mean() < 0.8:
        return []
    turned = (np.abs(centre / (size[:, ::-1] / 2) - 1) < OFF_CENTRE).all(1) & off
    if turned.mean() >= 0.8:
        return ["cameras: the principal points are those of images turned by 90 degrees"]
    # In a resized image both coordinates are off by the same factor.
    alike = np.abs(ratio[:, 0] / ratio[:, 1] - 1) < OFF_CENTRE
    if (alike & off).mean() >= 0.8:
        factor = np.median(ratio[off])
        return [
            f"cameras: the principal points lie at {factor:.3g} times the middle both across and down; the intrinsics "
            "are those of images of another size"
        ]
    outside = ((centre < 0) | (centre > size)).any(1)
    return ["cameras: the principal points lie outside the images"] if outside.mean() >= 0.8 else []


def _other_shapes(maps: np.ndarray) -> list[str]:
    """Faults of dense maps: [N, 2, 2], width and height of the map and of its image, which it has to cover."""
    stored, shown = np.moveaxis(maps[..., 0] / maps[..., 1], 1, 0)
    if not len(maps) or (np.abs(stored / shown - 1) > OTHER_SHAPE).mean() < 0.8:
        return []
    (width, height), (across, down) = maps[0].astype(int)
    text = f"cameras: dense maps have other proportions than their images ({width} x {height} for {across} x {down})"
    turned = (np.abs(stored * shown - 1) <= OTHER_SHAPE).mean() >= 0.8
    return [f"{text}; are they turned by 90 degrees?" if turned else f"{text}; a map has to show the whole image"]


def _odd_pixels(focal: np.ndarray) -> list[str]:
    ratio = np.median(focal[:, 0] / focal[:, 1])
    if abs(ratio - 1) < 0.1:
        return []
    return [f"cameras: fx is {ratio:.3g} times fy; were the images stretched, or another field read as fy?"]
