"""The loader: scheduled rows become fixed-shape arrays, read and decoded by threads and handed over in order.

Decoding and resizing release the interpreter lock, so threads suffice (docs/benchmarks.md). The order never depends on
them: one thread schedules, the workers read and fill, and results are put together in that order. Each batch carries
the state behind itself, so batches that were prepared but not used are prepared again after a restart.
"""

import collections
import dataclasses
import queue
import threading
import time
from collections.abc import Callable

import numpy as np

from vlm3_jax.data.mixture import Mixture
from vlm3_jax.data.packing import RowBudget, batch_stats, fits, lengths, pack
from vlm3_jax.data.quarantine import Quarantine, bad_lines
from vlm3_jax.data.samples import Sample
from vlm3_jax.data.schedule import Bad, Schedule, ScheduledBatch, Scheduler
from vlm3_jax.data.workers import Workers
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.model.flops import Lengths
from vlm3_jax.processor.image import VisionSpec
from vlm3_jax.storage import Unreadable


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
    """Iterates over batches without end; close it (or use `with`) to stop its threads.

    `state`: cursors of this loader's streams (all, or a host's share of the `total_streams`) and the phases.
    `workers`: reading and decoding threads; 0 does all work in the caller's thread. `prefetch`: batches prepared ahead.
    `worker_timeout_s`: reading a record, or the pixels of a sample, that fails or takes longer is reported and tried
    again, then set aside. UserError for settings out of range; from `next` if the data are broken: see `Quarantine`.
    """

    def __init__(
        self,
        mixture: Mixture,
        state: Schedule,
        total_streams: int,
        budget: RowBudget,
        spec: VisionSpec,
        *,
        workers: int = 4,
        prefetch: int = 2,
        worker_timeout_s: float = 120.0,
        quarantine: Quarantine | None = None,
    ):
        self._scheduler = Scheduler(mixture.sample, mixture.describe, lambda row: fits(row, budget), total_streams)
        self._mixture, self._state, self._budget, self._spec = mixture, state, budget, spec
        self._quarantine = quarantine or Quarantine()
        for component in mixture.components:
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
        ready = self._wait() if self._ahead else self._assemble(*self._begin(self._state.cursors))
        scheduled, bad, stats = ready.scheduled, ready.bad, dict(ready.stats)
        self._state = dataclasses.replace(self._state, cursors=scheduled.cursors)
        self._quarantine.add(scheduled.n_samples + len(scheduled.bad), scheduled.bad + bad)
        self._quarantine.check()
        stats |= {
            "wait_s": time.perf_counter() - start,
            "bad": len(scheduled.bad) + len(bad),
            "passed_over": scheduled.passed_over,
        }
        ids = [[sample.id for sample in row] for row in scheduled.rows]
        return LoadedBatch(ready.arrays, ids, scheduled.n_samples, ready.lengths, self._state, stats)

    def close(self) -> None:
        """Stops the threads; batches that were prepared are dropped."""
        self._stop.set()
        if self._producer is not None:
            self._producer.join()
        self._workers.close()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _wait(self) -> "_Ready":
        """The next prepared batch; what went wrong in the threads is raised here."""
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
                while len(pending) < self._prefetch:
                    pending.append(self._begin(cursors))
                    cursors = pending[-1][0].cursors
                self._put(self._assemble(*pending.popleft()))
        except BaseException as error:
            self._put(error)

    def _put(self, item) -> None:
        while not self._stop.is_set():
            try:
                return self._ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def _begin(self, cursors: np.ndarray) -> tuple[ScheduledBatch, list[list[Callable]]]:
        """The rows behind `cursors`, and what waits for the pixels of its samples."""
        scheduled = self._scheduler.batch(cursors, self._start_reading)
        fills = [[self._workers.submit(self._fill, s, lambda s=s: s.id) for s in row] for row in scheduled.rows]
        return scheduled, fills

    def _start_reading(self, sample: Callable, index: int) -> Callable:
        return self._workers.submit(sample, index, lambda: self._mixture.describe(index)[0])

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
        return Bad(sample.id, self._mixture.components[sample.component].name, file, str(error))

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
