"""Lengths and their units, and cameras that are not those of their images."""

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
# Fewer labels, or views, say little.
MIN_LABELS, MIN_VIEWS = 50, 5


class Lengths:
    """Depths, distances of objects and baselines: their range, and whether they can be metres."""

    def __init__(self):
        self._values = collections.defaultdict(list)
        self._metric = True

    def add(self, index: int, record: Record) -> None:
        """Takes its lengths; those that cannot be used are counted elsewhere."""
        for found in depths(record):
            self._values["depth"].append(found.depth_m)
        for name in LABELS:
            if name != "depth":
                labels = (label for label in record.labels if isinstance(label, LABELS[name]))
                self._values[name] += [label.metres() for label in labels]
        poses = [view.world_T_cam for view in record.views[:2] if view.world_T_cam is not None]
        if len(poses) == 2:
            self._values["baseline"].append(np.linalg.norm(poses[1][:3, 3] - poses[0][:3, 3], keepdims=True))
        self._metric &= record.metric

    def facts(self) -> Facts:
        """Ranges; a fault where lengths can hardly be metres."""
        lines, values, faults, warnings = [], {}, [], []
        unit = "m" if self._metric else "units of unknown size"
        for kind, parts in self._values.items():
            found = np.concatenate([np.zeros(0), *parts])
            found = found[np.isfinite(found)]
            if not len(found):
                continue
            values[kind] = spread(found)
            low, middle, high = values[kind].values()
            lines.append(f"{kind}: {low:.4g} to {high:.4g} {unit}, median {middle:.4g} {unit}")
            if self._metric:
                fault, warning = _doubts(kind, found)
                faults += [fault] if fault else []
                warnings += [warning] if warning else []
        return Facts(tuple(lines), values, tuple(faults), tuple(warnings))


def _doubts(kind: str, found: np.ndarray) -> tuple[str, str]:
    """What is off with lengths that should be metres, and what is odd."""
    middle, high = np.median(found), found.max()
    if len(found) >= MIN_LABELS and middle > FAR_MEDIAN_M:
        return f"{kind}: the median is {middle:.4g} m; are these millimetres? Lengths must be in metres", ""
    if len(found) >= MIN_LABELS and middle > 20 and len(np.unique(found)) > 20 and (found == np.rint(found)).all():
        return f"{kind}: all lengths are whole numbers, up to {high:.4g}; are these millimetres?", ""
    if high > FAR_M:
        return "", f"{kind} above {FAR_M:g} m; are these millimetres? Lengths must be in metres"
    if kind == "depth" and len(found) >= MIN_LABELS and high <= 1:
        return "", "depth: nothing is farther than 1 m; are these shares of a range, or disparities?"
    return "", ""


class Cameras:
    """Fields of view and principal points: whether the intrinsics are those of the stored images."""

    def __init__(self):
        # fx, fy, cx, cy, width, height of each view.
        self._cameras = []

    def add(self, index: int, record: Record) -> None:
        """Takes its cameras."""
        self._cameras += [(c.fx, c.fy, c.cx, c.cy, c.width, c.height) for c in record.cameras]

    def facts(self) -> Facts:
        """Ranges; a fault where most principal points tell of an image of another size or orientation."""
        if not self._cameras:
            return Facts()
        focal, centre, size = np.split(np.array(self._cameras, np.float64), 3, axis=1)
        fov = np.degrees(2 * np.arctan(size / 2 / focal))
        middle = (size - 1) / 2
        values = {
            "views": len(size),
            "different_cameras": len(set(self._cameras)),
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
        return Facts((line,), values, tuple(_other_images(centre, size)), tuple(_odd_pixels(focal)))


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


def _odd_pixels(focal: np.ndarray) -> list[str]:
    ratio = np.median(focal[:, 0] / focal[:, 1])
    if abs(ratio - 1) < 0.1:
        return []
    return [f"cameras: fx is {ratio:.3g} times fy; were the images stretched, or another field read as fy?"]
