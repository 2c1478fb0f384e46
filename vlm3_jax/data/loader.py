"""The loader: scheduled rows become fixed-shape arrays, read and decoded by threads and handed over in order.

Decoding and resizing release the interpreter lock, so threads suffice (docs/benchmarks.md). The order never depends on
them: one thread schedules, the workers read and fill, and results are put together in that order. Each batch carries
the state behind itself, so batches that were prepared but not used are prepared again after a restart.
"""

import collections
import dataclasses
import itertools
import queue
import threading
import time
import typing
from collections.abc import Callable, Sequence

import numpy as np

from vlm3_jax.data.component import Component
from vlm3_jax.data.packing import RowBudget, batch_stats, lengths, pack
from vlm3_jax.data.quarantine import Quarantine, bad_lines, left_out, left_out_untold
from vlm3_jax.data.samples import Bad, PassedOver, Sample
from vlm3_jax.data.schedule import Listed, Schedule, ScheduledBatch, Scheduler
from vlm3_jax.data.workers import Workers
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.model.flops import Lengths
from vlm3_jax.processor.image import VisionSpec
from vlm3_jax.storage import Unreadable


class Draws(typing.Protocol):
    """What the indices of a schedule stand for: a `Mixture`, or held-out records."""

    components: Sequence[Component]

    def sample(self, index: int) -> Sample | PassedOver | Bad:
        """What index `index` gives (`Component.sample`)."""

    def describe(self, index: int) -> tuple[str, str, str]:
        """(sample id, component name, file) of it."""


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedBatch:
    """One batch of this host's rows.

    `arrays`: see `packing.pack`. `ids`: sample ids, row by row. `samples`: their number, those with broken pixels
    (masked) included. `lengths`: what they hold. `state`: go on from here after this batch; its cursors are those of
    this loader's streams. `stats`: those of `packing.batch_stats`, wait_s (time the caller waited for the batch), bad,
    passed_over.
    """

    arrays: dict[str, np.ndarray]
    ids: list[list[str]]
    samples: int
    lengths: Lengths
    state: Schedule
    stats: dict[str, float]


@dataclasses.dataclass(frozen=True, eq=False)
class _Ready:
    """A packed batch, from the scheduling thread."""

    arrays: dict[str, np.ndarray]
    scheduled: ScheduledBatch
    bad: list[Bad]
    lengths: Lengths
    stats: dict[str, float]


class Loader:
    """Iterates over the batches of a schedule; close it (or use `with`) to stop its threads.

    `scheduler` makes rows of `draws`, without end or until they have all been listed; `state`: cursors of this loader's
    streams (all, or a host's share) and the phases.
    `workers`: reading and decoding threads; 0 does all work in the caller's thread. `prefetch`: batches prepared ahead.
    `worker_timeout_s`: reading a record, or the pixels of a sample, that fails or takes longer is reported and tried
    again, then set aside. UserError for settings out of range; from `next` if the data are broken: see `Quarantine`.
    """

    def __init__(
        self,
        draws: Draws,
        scheduler: Scheduler | Listed,
        state: Schedule,
        budget: RowBudget,
        spec: VisionSpec,
        *,
        workers: int = 4,
        prefetch: int = 2,
        worker_timeout_s: float = 120.0,
        quarantine: Quarantine | None = None,
    ):
        self._draws, self._scheduler, self._state = draws, scheduler, state
        self._budget, self._spec = budget, spec
        # By their place in the table, where those without a weight have one too.
        self._names = {component.number: component.name for component in draws.components}
        self._quarantine = quarantine or Quarantine()
        for component in draws.components:
            self._quarantine.write(bad_lines(component))
        self._ahead = bool(workers)
        self._prefetch = max(1, prefetch)
        self._ready: queue.Queue = queue.Queue(self._prefetch)
        self._stop = threading.Event()
        self._workers = Workers(workers, worker_timeout_s, self._stop)
        self._producer: threading.Thread | None = None

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> LoadedBatch:
        start = time.perf_counter()
        ready = self._wait() if self._ahead else self._now()
        if ready is None:
            raise StopIteration
        scheduled, bad, stats = ready.scheduled, ready.bad, dict(ready.stats)
        self._state = dataclasses.replace(self._state, cursors=scheduled.cursors)
        self._quarantine.add(scheduled.n_samples + len(scheduled.bad), scheduled.bad + bad)
        self._quarantine.check()
        self._note_left_out(scheduled)
        stats |= {
            "wait_s": time.perf_counter() - start,
            "bad": len(scheduled.bad) + len(bad),
            "passed_over": scheduled.passed_over,
        }
        ids = [[sample.id for sample in row] for row in scheduled.rows]
        return LoadedBatch(ready.arrays, ids, scheduled.n_samples, ready.lengths, self._state, stats)

    def _note_left_out(self, scheduled: ScheduledBatch) -> None:
        """Notes what labels the records of a batch had that are unusable."""
        components = {component.number: component for component in self._draws.components}
        for sample in itertools.chain(*scheduled.rows):
            self._quarantine.write(left_out(components[sample.component], sample.record.id))

    def close(self) -> None:
        """Stops the threads; batches that were prepared are dropped."""
        for component in self._draws.components:
            self._quarantine.write(left_out_untold(component))
        self._stop.set()
        if self._producer is not None:
            self._producer.join()
        self._workers.close()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _now(self) -> "_Ready | None":
        begun = self._begin(self._state.cursors)
        return begun and self._assemble(*begun)

    def _wait(self) -> "_Ready | None":
        """The next prepared batch, None behind the last; what went wrong in the threads is raised here."""
        if self._stop.is_set():
            raise RuntimeError("the loader is closed")
        if self._producer is None:
            self._producer = threading.Thread(target=self._produce, name="vlm3-schedule", daemon=True)
            self._producer.start()
        prepared = self._next_ready()
        if not isinstance(prepared, BaseException):
            return prepared
        self.close()
        if isinstance(prepared, UserError):
            raise prepared
        raise RuntimeError(f"the data loader failed: {type(prepared).__name__}: {prepared}") from prepared

    def _next_ready(self):
        """What the scheduling thread has put, or an error if it is gone."""
        while True:
            alive = self._producer.is_alive()
            try:
                return self._ready.get(timeout=0.5)
            except queue.Empty:
                if not alive:
                    return RuntimeError("the scheduling thread has ended")

    def _produce(self) -> None:
        try:
            pending: collections.deque = collections.deque()
            cursors = self._state.cursors
            while not self._stop.is_set():
                while cursors is not None and len(pending) < self._prefetch:
                    begun = self._begin(cursors)
                    cursors = begun and begun[0].cursors
                    pending.append(begun)
                begun = pending.popleft()
                self._put(begun and self._assemble(*begun))
                if begun is None:
                    return
        except BaseException as error:
            self._put(error)

    def _put(self, item) -> None:
        while not self._stop.is_set():
            try:
                return self._ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def _begin(self, cursors: np.ndarray) -> tuple[ScheduledBatch, list[list[Callable]]] | None:
        """The rows behind `cursors`, and what waits for the pixels of their samples; None behind the last."""
        scheduled = self._scheduler.batch(cursors, self._start_reading)
        if scheduled is None:
            return None
        fills = [[self._workers.submit(self._fill, s, lambda s=s: s.id) for s in row] for row in scheduled.rows]
        return scheduled, fills

    def _start_reading(self, index: int) -> Callable[[], Sample | PassedOver | Bad]:
        reading = self._workers.submit(self._read, index, lambda: self._draws.describe(index)[0])

        def wait() -> Sample | PassedOver | Bad:
            try:
                return reading()
            except BadRecord as error:
                return Bad(*self._draws.describe(index), str(error))

        return wait

    def _read(self, index: int) -> Sample | PassedOver | Bad:
        found = self._draws.sample(index)
        if isinstance(found, Bad) and isinstance(found.error, Unreadable):
            # The workers count these: many in a row are no fault of the records.
            raise found.error
        return found

    def _fill(self, sample: Sample) -> tuple[list[np.ndarray | None], list[Bad]]:
        """The sample's patches; None and a reason for an image that cannot be read."""
        patches, bad = [], []
        for layout in sample.images:
            try:
                patches.append(layout.load(self._spec))
            except Unreadable:
                # The workers count these: many in a row are no fault of the images.
                raise
            except BadRecord as error:
                patches.append(None)
                bad.append(self._set_aside(sample, layout.ref.name, error))
        return patches, bad[:1]

    def _filled(self, sample: Sample, fill: Callable) -> tuple[list[np.ndarray | None], list[Bad]]:
        """What `_fill` has returned; None for all images if it was given up."""
        try:
            return fill()
        except BadRecord as error:
            names = ", ".join(layout.ref.name for layout in sample.images)
            return [None] * len(sample.images), [self._set_aside(sample, names, error)]

    def _set_aside(self, sample: Sample, file: str, error: BadRecord) -> Bad:
        return Bad(sample.id, self._names[sample.component], file, str(error))

    def _assemble(self, scheduled: ScheduledBatch, fills: list[list[Callable]]) -> "_Ready":
        filled = [
            [self._filled(sample, fill) for sample, fill in zip(row, row_fills, strict=True)]
            for row, row_fills in zip(scheduled.rows, fills, strict=True)
        ]
        arrays = pack(scheduled.rows, [[patches for patches, _ in row] for row in filled], self._budget, self._spec)
        held = lengths(scheduled.rows)
        # Those with broken pixels have their targets masked.
        held = dataclasses.replace(held, targets=int((arrays["target_weight"] > 0).sum()))
        bad = [item for row in filled for _, bad in row for item in bad]
        return _Ready(arrays, scheduled, bad, held, batch_stats(scheduled.rows, held, self._budget))
