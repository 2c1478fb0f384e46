"""The plan: which samples make up which row of which batch, computed without pixels and exactly repeatable.

Stream r of R (the rows of the global batch) takes mixture indices r, r + R, r + 2R, ... and adds samples until the next
one does not fit; that one opens the stream's next row. Streams never look at each other, so a host plans its own only,
and the whole state is one cursor a stream plus the list of phases.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from vlm3_jax.data.mixture import Phase, first_phase, next_phase
from vlm3_jax.data.samples import Sample
from vlm3_jax.errors import BadRecord, UserError

# So many records without a usable one: the data are broken, and the run must not spin on them.
MAX_FRUITLESS = 1000


@dataclasses.dataclass(frozen=True, eq=False)
class PlanState:
    """All that is needed to go on: the next mixture index of every stream, int64 [R], and the phases so far."""

    cursors: np.ndarray
    phases: tuple[Phase, ...]

    def to_tree(self) -> dict:
        """JSON-able apart from `cursors`, a numpy array."""
        return {"cursors": self.cursors, "phases": [dataclasses.asdict(phase) for phase in self.phases]}

    @classmethod
    def from_tree(cls, tree: Mapping) -> "PlanState":
        """The inverse of `to_tree`."""
        return cls(np.asarray(tree["cursors"], np.int64), tuple(Phase(**phase) for phase in tree["phases"]))


def open_state(
    lengths: Mapping[str, int], weights: Mapping[str, float], streams: int, saved: PlanState | None = None
) -> PlanState:
    """The state of `streams` streams that a run starts or goes on with.

    `lengths` and `weights` by component name. `saved` is the state of *all* streams; it is returned as it is unless the
    weights have changed: then a new phase begins behind every index taken so far. UserError if the number of streams,
    which is fixed for a run's life, or the length of a component has changed.
    """
    if saved is None:
        return PlanState(np.arange(streams), (first_phase(lengths, weights),))
    if len(saved.cursors) != streams:
        raise UserError(
            f"the saved run has {len(saved.cursors)} rows a batch and the configuration {streams}; "
            "the number of rows is fixed for a run's life"
        )
    last = saved.phases[-1]
    phase = next_phase(last, int(saved.cursors.max()), lengths, weights)
    if phase.weights == last.weights:
        return saved
    return PlanState(phase.start + np.arange(streams), (*saved.phases, phase))


def host_streams(streams: int, host: int, hosts: int) -> tuple[int, int]:
    """(first, end) of the streams that host number `host` plans; UserError if they do not divide."""
    if streams % hosts:
        raise UserError(f"{streams} rows a batch cannot be split over {hosts} hosts; make it a multiple")
    share = streams // hosts
    return host * share, (host + 1) * share


@dataclasses.dataclass(frozen=True)
class BadSample:
    """A sample that was set aside: its `id`, the file it came from and why."""

    id: str
    source: str
    file: str
    reason: str


@dataclasses.dataclass(frozen=True, eq=False)
class PlannedBatch:
    """One batch of a host's streams.

    `cursors` int64 [rows]: of these streams, after the batch. `bad`: passed over because of broken labels; `skipped`:
    number of records passed over because the component does not use them.
    """

    rows: list[list[Sample]]
    cursors: np.ndarray
    bad: list[BadSample]
    skipped: int

    @property
    def n_samples(self) -> int:
        """Samples in all rows."""
        return sum(map(len, self.rows))


@dataclasses.dataclass(frozen=True, eq=False)
class _Row:
    samples: list[Sample]
    cursor: int
    bad: list[BadSample]
    skipped: int


class Planner:
    """Plans batches of some of the streams; its only state is a cache, so `plan` is a function of the cursors.

    `sample(index)`: the sample at a mixture index, None if it is not to be used, BadRecord if it cannot be.
    `describe(index)`: (id, source, file) of it, for the quarantine. `fits(samples)`: whether they fit one row.
    """

    def __init__(
        self,
        sample: Callable[[int], Sample | None],
        describe: Callable[[int], tuple[str, str, str]],
        fits: Callable[[Sequence[Sample]], bool],
        stride: int,
    ):
        self._sample, self._describe, self._fits, self._stride = sample, describe, fits, stride
        # The sample that did not fit a stream's last row, by mixture index: it opens the next one.
        self._left_over: dict[int, Sample] = {}

    def plan(self, cursors: np.ndarray, map_rows: Callable = map) -> PlannedBatch:
        """One row for each cursor; `map_rows` may be a pool's map, for rows do not depend on each other."""
        rows = list(map_rows(self._row, [int(cursor) for cursor in cursors]))
        return PlannedBatch(
            rows=[row.samples for row in rows],
            cursors=np.array([row.cursor for row in rows], np.int64),
            bad=[bad for row in rows for bad in row.bad],
            skipped=sum(row.skipped for row in rows),
        )

    def _row(self, cursor: int) -> _Row:
        samples, bad, skipped, fruitless = [], [], 0, 0
        while True:
            sample = self._left_over.pop(cursor, None)
            try:
                sample = sample or self._sample(cursor)
                skipped += sample is None
            except BadRecord as error:
                bad.append(BadSample(*self._describe(cursor), str(error)))
            if sample is None:
                fruitless += 1
                if fruitless >= MAX_FRUITLESS:
                    why = bad[-1].reason if bad else "covisibility_min leaves every pair out"
                    raise UserError(f"{fruitless} records in a row without a usable one, the last because: {why}")
            elif self._fits([*samples, sample]):
                samples.append(sample)
                fruitless = 0
            else:
                self._left_over[cursor] = sample
                return _Row(samples, cursor, bad, skipped)
            cursor += self._stride
