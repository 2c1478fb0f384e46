"""Poses one by one: rotations that are none, left-handed ones, and where up is in the world."""

import collections

import numpy as np

from vlm3_jax.data.checks.base import Facts
from vlm3_jax.errors import BadRecord
from vlm3_jax.pose import check_pose
from vlm3_jax.records import Record

AXES = ("+x", "+y", "+z", "-x", "-y", "-z")
# Cameras are held upright: on average their up leans less than this from the world's, or there is no such axis.
UPRIGHT = 0.8
MIN_VIEWS = 5


class Poses:
    """Counts poses that are no rigid motions, and finds the axis of the world that cameras have up."""

    def __init__(self):
        self._views = 0
        self._bad = collections.Counter()
        self._example = ""
        self._up = []
        self._pairs = self._same = 0

    def add(self, index: int, record: Record) -> None:
        """Looks at the pose of every view."""
        poses = []
        for number, view in enumerate(record.views):
            if view.world_T_cam is None:
                continue
            self._views += 1
            try:
                poses.append(check_pose(view.world_T_cam, f"record {record.id}, view {number}"))
                self._up.append(-poses[-1][:3, 1])
            except BadRecord as error:
                self._bad[_kind(view.world_T_cam)] += 1
                self._example = self._example or str(error)
        if len(poses) >= 2:
            self._pairs += 1
            self._same += bool(np.array_equal(poses[0], poses[1]))

    def facts(self) -> Facts:
        """How many poses there are, and up; a fault for poses that are none."""
        if not self._views:
            return Facts()
        up = up_axis(self._up)
        values = {"views": self._views, "bad": dict(self._bad), "up": up}
        line = f"poses: {self._views:,}, up is {up or 'no axis of the world'}"
        faults = [f"poses: {n:,} of {self._views:,} {kind} ({self._example})" for kind, n in self._bad.items()]
        if self._same and self._same == self._pairs >= MIN_VIEWS:
            faults.append("poses: both views of every pair have the same pose")
        return Facts((line,), values, tuple(faults))


def up_axis(ups) -> str | None:
    """The axis of the world that is up for cameras held upright; None if there is none, or there are too few."""
    if len(ups) < MIN_VIEWS:
        return None
    mean = np.mean(ups, axis=0)
    both = np.concatenate([mean, -mean])
    return AXES[int(both.argmax())] if both.max() >= UPRIGHT else None


def _kind(pose) -> str:
    pose = np.asarray(pose, np.float64)
    if pose.shape != (4, 4) or not np.isfinite(pose).all():
        return "are not finite"
    if np.abs(pose[3] - [0, 0, 0, 1]).max() > 1e-6:
        return "do not end with the row 0 0 0 1 (transposed?)"
    if np.linalg.det(pose[:3, :3]) < 0:
        return "are left-handed (determinant -1): an axis of camera or world has to be turned around"
    return "are scaled or sheared"
