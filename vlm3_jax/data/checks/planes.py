"""Which kind of depth labels are: rooms and streets are full of planes, and only with the right kind are they flat.

Under z a label's point is depth times (x, y, 1), under distance depth times the unit ray. Planes through three random
points are tried under both, the same three; the kind under which the best planes hold more points is the right one.
Depths along a ray are compared, so that far and near points count alike.
"""

import numpy as np

from vlm3_jax.data.checks.base import Depths, Facts, Thinning, depths
from vlm3_jax.records import Record

KINDS = ("z", "distance")
# A point is on a plane if its depth is that of the plane up to this share.
TOLERANCE = 0.003
TRIALS, PLANES, POINTS = 600, 3, 300
# A view with fewer points, or a narrower spread of rays, cannot tell; cos of 10 degrees differs by 1.5 %.
MIN_POINTS, MIN_ANGLE_DEG = 30, 10.0
# A view votes if the kinds differ by so many points, and by so much of the larger count.
MIN_LEAD, MIN_LEAD_SHARE = 4, 0.1
# A verdict needs so many votes, one of them so one-sided as fair coins hardly are: 8 of 8, 10 of 11, 35 of 50.
MIN_VOTES, CHANCE = 8, 0.01


class DepthKind:
    """Counts points on planes under both kinds of depth, and compares with the kind told."""

    def __init__(self):
        self._told = set()
        # Points on planes as z and as distance, one row a view.
        self._counts = []
        self._thinning = Thinning()

    def add(self, index: int, record: Record) -> None:
        """Fits planes to the points of each of its views."""
        if not self._thinning.takes(index):
            return
        for labels in depths(record):
            self._told.add(labels.kind)
            counts = count(labels)
            if counts is not None:
                self._counts.append(counts)

    def facts(self) -> Facts:
        """Both counts, and the kind found if there is enough evidence; a fault if it is not the one told."""
        if not self._told:
            return Facts()
        told = " and ".join(sorted(self._told))
        counts = np.array(self._counts, np.int64).reshape(-1, 2)
        found, votes = verdict(counts)
        z, distance = (int(n) for n in counts.sum(0))
        values = {"told": told, "found": found, "views": len(counts), "on_planes": {"z": z, "distance": distance}}
        values["votes"] = dict(zip(KINDS, votes))
        line = (
            f"kind of depth: told {told}; planes hold {z:,} points as z, {distance:,} as distance; {votes[0]} views "
            f"speak for z, {votes[1]} for distance: {f'found {found}' if found else 'too little to say'}"
        )
        fault = f"depth is told to be {told}, but its planes are flat only as {found}"
        return Facts((line,), values, (fault,) if found and self._told != {found} else ())


def verdict(counts: np.ndarray) -> tuple[str | None, tuple[int, int]]:
    """The kind that points on planes [views, 2] (as z, as distance) speak for, None if too few do; the votes."""
    lead = counts[:, 0] - counts[:, 1]
    votes = np.abs(lead) >= np.maximum(MIN_LEAD, MIN_LEAD_SHARE * counts.max(1, initial=0))
    z, distance = int((votes & (lead > 0)).sum()), int((votes & (lead < 0)).sum())
    few, many = sorted((z, distance))
    if (
        few + many < MIN_VOTES
        or _chance(many, few + many) > CHANCE
        or abs(lead.sum()) < MIN_LEAD_SHARE * counts.sum() / 2
    ):
        return None, (z, distance)
    return KINDS[int(distance > z)], (z, distance)


def _chance(many: int, votes: int) -> float:
    """How probable it is that at least `many` of fair votes fall on one side."""
    ways = np.cumprod([1.0] + [(votes - k) / (k + 1) for k in range(votes)])
    return float(min(1.0, 2 * ways[many:].sum() / 2.0**votes))


def count(labels: Depths) -> tuple[int, int] | None:
    """How many points the best planes hold as z and as distance; None if the labels cannot tell."""
    rays, depth = labels.camera.rays(labels.points_px), labels.depth_m
    # Depths cut off at a largest value lie on a plane, or a sphere, of their own.
    good = np.isfinite(depth) & (depth > 0)
    if (depth[good] == depth[good].max(initial=0)).sum() > 2:
        good &= depth < depth[good].max()
    rays, depth = rays[good], depth[good]
    rng = np.random.default_rng(0)
    if len(depth) > POINTS:
        chosen = rng.choice(len(depth), POINTS, replace=False)
        rays, depth = rays[chosen], depth[chosen]
    if len(depth) < MIN_POINTS or np.ptp(np.degrees(np.arctan(np.hypot(*rays[:, :2].T)))) < MIN_ANGLE_DEG:
        return None
    triples = _triples(rng, rays)
    unit = rays / np.linalg.norm(rays, axis=-1, keepdims=True)
    return tuple(_on_planes(directions, depth, triples) for directions in (rays, unit))


def _triples(rng, rays: np.ndarray) -> np.ndarray:
    """Numbers of three points each [TRIALS, 3]: of near ones, which are on one plane more often, and of any."""
    first = rng.integers(0, len(rays), TRIALS)
    near = np.argsort(((rays[first, None] - rays[None]) ** 2).sum(-1), axis=1)
    reach = np.where(np.arange(TRIALS) % 2, max(4, len(rays) // 8), len(rays) - 1)
    second, third = (1 + (rng.random(TRIALS) * reach).astype(int) for _ in range(2))
    third = np.where(third == second, third % (len(rays) - 1) + 1, third)
    rows = np.arange(TRIALS)
    return np.stack([first, near[rows, second], near[rows, third]], -1)


def _on_planes(directions: np.ndarray, depth: np.ndarray, triples: np.ndarray) -> int:
    """How many points [N] lie on the `PLANES` best planes, each point counted once."""
    a, b, c = (directions[triples[:, k]] * depth[triples[:, k], None] for k in range(3))
    normals = np.cross(b - a, c - a)
    with np.errstate(divide="ignore", invalid="ignore"):
        # depth * direction . normal = offset, for the points of the plane.
        expected = (normals * a).sum(-1)[:, None] / (normals @ directions.T)
        on_plane = np.abs(expected / depth - 1) < TOLERANCE
    total = 0
    for _ in range(PLANES):
        sizes = on_plane.sum(1)
        best = int(sizes.argmax())
        # Three points make a plane; with one more it is chance still.
        if sizes[best] < 6:
            break
        total += int(sizes[best])
        on_plane &= ~on_plane[best]
    return total
