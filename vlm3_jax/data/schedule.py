"""The schedule: which samples make up which row of which batch, computed without pixels and exactly repeatable.

Stream r of R (the rows of the global batch) takes mixture indices r, r + R, r + 2R, ... and adds samples until the next
one does not fit; that one opens the stream's next row. Streams never look at each other, so a host schedules its own
only, and the whole state is one cursor a stream plus the list of phases.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from vlm3_jax.data.mixture import Phase, first_phase, next_phase
from vlm3_jax.data.samples import Bad, PassedOver, Sample
from vlm3_jax.errors import UserError

# So many records without a usable one: the data are broken, and the run must not spin on them.
MAX_FRUITLESS = 1000


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """All that is needed to go on: the next mixture index of every stream, int64 [R], and the phases so far."""

    cursors: np.ndarray
    phases: tuple[Phase, ...]

    def to_tree(self) -> dict:
        """JSON-able apart from `cursors`, a numpy array."""
        return {"cursors": self.cursors, "phases": [dataclasses.asdict(phase) for phase in self.phases]}

    @classmethod
    def from_tree(cls, tree: Mapping) -> "Schedule":
        """The inverse of `to_tree`."""
        return cls(np.asarray(tree["cursors"], np.int64), tuple(Phase(**phase) for phase in tree["phases"]))


def open_schedule(
    lengths: Mapping[str, int],
    weights: Mapping[str, float],
    streams: int,
    saved: Schedule | None = None,
    seed: int = 0,
) -> Schedule:
    """The state of `streams` streams that a run starts or goes on with.

    `lengths` and `weights` by component name. `saved` is the state of *all* streams; it is returned as it is unless the
    weights have changed: then a new phase begins where the foremost stream is. `seed` is that of the mixture. UserError
    if the number of streams, which is fixed for a run's life, or the length of a component has changed.
    """
    if saved is None:
        return Schedule(np.arange(streams), (first_phase(lengths, weights),))
    if len(saved.cursors) != streams:
        raise UserError(
            f"the saved run has {len(saved.cursors)} rows a batch and the configuration {streams}; "
            "the number of rows is fixed for a run's life"
        )
    last, number = saved.phases[-1], len(saved.phases) - 1
    # A stream may still be behind the start of the last phase.
    start = max(last.start, int(saved.cursors.max()))
    phase = next_phase(last, (seed, number), start, lengths, weights)
    if phase.weights == last.weights:
        return saved
    return Schedule(saved.cursors, (*saved.phases, phase))


@dataclasses.dataclass(frozen=True, eq=False)
class ScheduledBatch:
    """One batch of a host's streams.

    `cursors` int64 [rows]: of these streams, after the batch. `bad`: set aside because of broken labels;
    `passed_over`: number of records that give no sample for another reason (`Component.sample`).
    """

    rows: list[list[Sample]]
    cursors: np.ndarray
    bad: list[Bad]
    passed_over: int

    @property
    def n_samples(self) -> int:
        """Samples in all rows."""
        return sum(map(len, self.rows))


@dataclasses.dataclass(eq=False)
class _Row:
    """A row that is being filled; `fruitless`: records without a usable one since the last sample."""

    cursor: int
    samples: list[Sample] = dataclasses.field(default_factory=list)
    bad: list[Bad] = dataclasses.field(default_factory=list)
    passed_over: int = 0
    fruitless: int = 0
    full: bool = False


class Scheduler:
    """Makes rows of some of the streams; its only state is a cache, so `batch` is a function of the cursors.

    `sample(index)`: what mixture index `index` gives (`Mixture.sample`). `fits(samples)`: whether they fit one row.
    """

    def __init__(
        self,
        sample: Callable[[int], Sample | PassedOver | Bad],
        fits: Callable[[Sequence[Sample]], bool],
        stride: int,
    ):
        self._sample, self._fits, self._stride = sample, fits, stride
        # The sample that did not fit a stream's last row, by mixture index: it opens the next one.
        self._left_over: dict[int, Sample] = {}

    def batch(self, cursors: np.ndarray, start: Callable | None = None) -> ScheduledBatch:
        """One row for each cursor.

        Rows do not depend on each other, so all that are not full yet read a record at a time, together.
        `start(index)` starts a reading and returns what waits for its result; None: read when it is waited for.
        """
        start = start or (lambda index: functools.partial(self._sample, index))
        rows = [_Row(int(cursor)) for cursor in cursors]
        unfilled = rows
        while unfilled:
            readings = [self._start(row.cursor, start) for row in unfilled]
            for row, reading in zip(unfilled, readings, strict=True):
                self._take(row, reading)
            unfilled = [row for row in unfilled if not row.full]
        return ScheduledBatch(
            rows=[row.samples for row in rows],
            cursors=np.array([row.cursor for row in rows], np.int64),
            bad=[bad for row in rows for bad in row.bad],
            passed_over=sum(row.passed_over for row in rows),
        )

    def _start(self, index: int, start: Callable) -> Callable[[], Sample | PassedOver | Bad]:
        known = self._left_over.pop(index, None)
        return start(index) if known is None else lambda: known

    def _take(self, row: _Row, reading: Callable[[], Sample | PassedOver | Bad]) -> None:
        """The next sample of a row, unless it does not fit any more."""
        found = reading()
        if isinstance(found, PassedOver | Bad):
            if isinstance(found, Bad):
                row.bad.append(found)
            else:
                row.passed_over += 1
            row.fruitless += 1
            if row.fruitless >= MAX_FRUITLESS:
                raise UserError(f"{row.fruitless} records in a row without a usable one; the last: {found.reason}")
        elif self._fits([*row.samples, found]):
            row.samples.append(found)
            row.fruitless = 0
        else:
            self._left_over[row.cursor] = found
            row.full = True
            return
        row.cursor += self._stride


class Listed:
    """Rows that are known: the indices of their samples, `batches[batch][row]`. The one cursor is a batch's number."""

    def __init__(self, sample: Callable[[int], Sample | PassedOver | Bad], batches: Sequence[Sequence[Sequence[int]]]):
        self._sample, self._batches = sample, batches

    def batch(self, cursors: np.ndarray, start: Callable | None = None) -> ScheduledBatch | None:
        """As `Scheduler.batch`; None behind the last. A sample that cannot be read any more leaves its place empty."""
        number = int(cursors[0])
        if number >= len(self._batches):
            return None
        start = start or (lambda index: functools.partial(self._sample, index))
        readings = [[start(index) for index in row] for row in self._batches[number]]
        found = [[reading() for reading in row] for row in readings]
        return ScheduledBatch(
            rows=[[item for item in row if not isinstance(item, PassedOver | Bad)] for row in found],
            cursors=np.array([number + 1], np.int64),
            bad=[item for row in found for item in row if isinstance(item, Bad)],
            passed_over=sum(isinstance(item, PassedOver) for row in found for item in row),
        )
