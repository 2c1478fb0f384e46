"""Pairs: whether poses, cameras and depth agree with each other, or would if they were read in another way.

A pair is judged by matches that were stored (how far they are from each other's epipolar lines) and by dense depth of
both views (the share of pixels that, carried into the other view, meet a surface at their depth; both ways); without
either by matches that are found in the photos (the share near their epipolar lines). The same points are judged under
the wrong readings of `readings.py`: where one fits much better, the data are wrong in that way. The absolute unit shows
nowhere; whether depth and poses have the same does.
"""

import dataclasses

import numpy as np

from vlm3_jax.data.checks import features, readings
from vlm3_jax.data.checks.base import Facts, Thinning, dense_depths, dense_maps, spread
from vlm3_jax.errors import BadRecord
from vlm3_jax.pose import check_pose
from vlm3_jax.records import Record

# Fewer matches, or pixels with depth, say little of a pair; fewer pairs say little of a set.
MIN_MATCHES, MIN_PIXELS, MIN_PAIRS = 8, 100, 4
# Matches fit if their median is within this share of the image's diagonal (3 px of 1024 x 768), or is rounding.
FITS, ROUNDING_PX, EXACT_PX = 0.0025, 0.5, 0.01
# Another reading is better if it is so many times better, in so many of the pairs.
BETTER, AGREED = 2.0, 0.8
# Of two overlapping views so much meets; what overlaps less is judged by no one.
MEETS = 0.05
# Photos are matched in so many pairs; so many matches, of which so many fit in some way, make one that can be judged.
PHOTO_PAIRS, PHOTO_MATCHES, PHOTO_FIT = 24, 16, 0.4


@dataclasses.dataclass(frozen=True)
class _Judged:
    """The errors of pairs by reading, the one told first; a pair without a reading has NaN."""

    names: tuple[str, ...]
    errors: np.ndarray

    def better(self) -> str | None:
        """The reading that is much better than the one told in most pairs that it applies to, the best of them."""
        told, found = self.errors[:, 0], []
        for k in range(1, len(self.names)):
            there = np.isfinite(self.errors[:, k])
            wins = self.errors[there, k] * BETTER < told[there]
            if there.sum() >= MIN_PAIRS and wins.mean() >= AGREED:
                found.append((float(np.median(self.errors[there, k])), self.names[k]))
        return min(found)[1] if found else None

    def median(self, name: str) -> float:
        """The median error of the pairs under a reading."""
        return float(np.nanmedian(self.errors[:, self.names.index(name)]))


class Pairs:
    """Judges every pair under every reading, and the set by what most of its pairs say."""

    def __init__(self):
        # One dict a pair: by reading, the distance of its matches (px); the share of its depth that is not met.
        self._matches: list[dict[str, float]] = []
        self._allowed_px: list[float] = []
        self._depth: list[dict[str, float]] = []
        self._photos: list[dict[str, float]] = []
        self._looked = 0
        self._waiting: Record | None = None
        self._last = -1
        self._thinning = Thinning()

    def add(self, index: int, record: Record) -> None:
        """Judges the pair before this one, which may be its neighbour."""
        record = record if self._thinning.takes(index) and _sound(record) else None
        self._judge(record if index == self._last + 1 else None)
        self._waiting, self._last = record, index

    def facts(self) -> Facts:
        """How well the pairs fit as told; a fault if that is badly, or another reading fits much better."""
        self._judge(None)
        ways = (self._by_matches, self._matches), (self._by_depth, self._depth), (self._by_photos, self._photos)
        parts = [judge(found) for judge, found in ways if found]
        lines, faults = (tuple(text for part in parts for text in getattr(part, name)) for name in ("lines", "faults"))
        return Facts(lines, {name: value for part in parts for name, value in part.values.items()}, faults)

    def _judge(self, neighbour: Record | None) -> None:
        record, self._waiting = self._waiting, None
        if record is None:
            return
        ways = list(readings.readings(record, neighbour))
        dense = {0, 1} <= {stored.view for stored in record.depth_maps}
        if record.matches is not None and len(record.matches.points0_px) >= MIN_MATCHES:
            diagonal = np.mean([np.hypot(c.width, c.height) for c in record.cameras])
            found = _epipolar(record.matches.points0_px, record.matches.points1_px, ways)
            if found:
                self._allowed_px.append(max(FITS * float(diagonal), ROUNDING_PX))
                self._matches.append({name: float(np.nanmedian(off)) for name, off in found.items()})
        if dense and (shares := _met(record, ways)):
            self._depth.append(shares)
        if record.matches is None and not dense and self._looked < PHOTO_PAIRS:
            self._looked += 1
            found = _photographed(record, ways)
            if found and max(found.values()) >= PHOTO_FIT:
                self._photos.append(found)

    def _by_matches(self, found: list[dict[str, float]]) -> Facts:
        judged = _table(found)
        told, better = judged.median(readings.TOLD), judged.better()
        fits = float(np.mean(judged.errors[:, 0] <= self._allowed_px))
        values = {"pairs": len(found), "epipolar_px": spread(judged.errors[:, 0]), "fit": fits, "better": better}
        line = f"pairs: matches are {told:.2g} px off epipolar lines (median of {len(found):,} pairs), {fits:.0%} fit"
        faults = []
        # What is that near differs by the digits of floats only.
        if better and told > EXACT_PX:
            faults.append(
                f"pairs: matches fit with {better} ({judged.median(better):.2g} px), not as told ({told:.2g} px)"
            )
        elif len(found) >= MIN_PAIRS and fits < 1 - AGREED:
            faults.append(f"pairs: matches are {told:.2g} px from their epipolar lines; poses or intrinsics are wrong")
        return Facts((line,), {"matches": values}, tuple(faults))

    def _by_depth(self, found: list[dict[str, float]]) -> Facts:
        told, better, best = _shares(found)
        values = {"pairs": len(found), "met": spread([pair[readings.TOLD] for pair in found]), "better": better}
        line = f"pairs: {told:.0%} of the dense depth of a view is met in the other (median of {len(found):,} pairs)"
        faults = []
        if better and best >= 2 * MEETS:
            faults.append(f"pairs: dense depth is met with {better} ({best:.0%}), not as told ({told:.0%})")
        elif len(found) >= MIN_PAIRS and told < MEETS:
            faults.append(f"pairs: only {told:.0%} of the dense depth is met; poses, intrinsics or depth are wrong")
        return Facts((line,), {"dense_depth": values}, tuple(faults))

    def _by_photos(self, found: list[dict[str, float]]) -> Facts:
        told, better, best = _shares(found)
        values = {"pairs": len(found), "of": self._looked, "fit": spread([pair[readings.TOLD] for pair in found])}
        line = (
            f"pairs: {told:.0%} of the matches found in photos are near epipolar lines (median of {len(found)} pairs "
            f"of {self._looked}; the others have too few)"
        )
        fault = f"pairs: matches found in the photos fit with {better} ({best:.0%}), not as told ({told:.0%})"
        return Facts((line,), {"photos": {**values, "better": better}}, (fault,) if better else ())


def _shares(found: list[dict[str, float]]) -> tuple[float, str | None, float]:
    """The median share that fits as told, the reading that fits much more in most pairs, and its share."""
    judged = _table([{name: 1 / max(share, 1e-3) for name, share in pair.items()} for pair in found])
    better = judged.better()
    return 1 / judged.median(readings.TOLD), better, 1 / judged.median(better) if better else 0.0


def _epipolar(points0_px, points1_px, ways) -> dict[str, np.ndarray]:
    """How far matches are from their lines, by reading; nothing if the cameras stand at one place as told."""
    ends = [np.asarray(points, np.float64) for points in (points0_px, points1_px)]
    found = {name: readings.epipolar_px(*ends, way) for name, way in ways if "depth" not in name}
    there = {name: off for name, off in found.items() if off is not None}
    return there if readings.TOLD in there else {}


def _met(record: Record, ways) -> dict[str, float]:
    """The share of dense depth that is met, both ways, by reading; nothing if there is too little of it."""
    maps = {stored.view: (stored, values) for stored, values in dense_maps(record)}
    labels = {found.view: found for found in dense_depths(record)}
    if min(len(labels[view].depth_m) for view in (0, 1)) < MIN_PIXELS:
        return {}

    def share(view: int, way) -> float:
        stored, values = maps[1 - view]
        return readings.met(labels[view], values, stored.kind, way)

    return {name: (share(0, way) + share(1, way)) / 2 for name, way in ways}


def _photographed(record: Record, ways) -> dict[str, float]:
    """The share of matches found in the photos that are near their lines, by reading; nothing if there are few."""
    ends = features.match(*(view.image.load() for view in record.views))
    if len(ends[0]) < PHOTO_MATCHES:
        return {}
    near = max(2.0, 2 * max(max(c.width, c.height) for c in record.cameras) / features.SIDE)
    return {name: float(np.mean(off <= near)) for name, off in _epipolar(*ends, ways).items()}


def _table(found: list[dict[str, float]]) -> _Judged:
    names = tuple(dict.fromkeys([readings.TOLD, *(name for pair in found for name in pair)]))
    return _Judged(names, np.array([[pair.get(name, np.nan) for name in names] for pair in found]))


def _sound(record: Record) -> bool:
    """Whether the record is a pair with two sound poses; those that are not are counted by `poses.py`."""
    if len(record.views) != 2 or any(view.world_T_cam is None for view in record.views):
        return False
    try:
        return all(check_pose(view.world_T_cam, record.id) is not None for view in record.views)
    except BadRecord:
        return False
