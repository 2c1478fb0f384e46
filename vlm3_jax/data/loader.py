"""The loader: planned rows become fixed-shape arrays, read and decoded by threads and handed over in plan order.

Decoding and resizing release the interpreter lock, so threads suffice (docs/benchmarks.md). The order never depends on
them: one thread plans, the workers read and fill, and results are put together in the order planned. Each batch carries
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
from vlm3_jax.data.schedule import BadSample, PlannedBatch, Planner, PlanState
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
    skipped.
    """

    arrays: dict[str, np.ndarray]
    ids: list[list[str]]
    samples: int
    lengths: Lengths
    state: PlanState
    stats: dict[str, float]


@dataclasses.dataclass(frozen=True, eq=False)
class _Ready:
    """A packed batch, from the planning thread."""

    arrays: dict[str, np.ndarray]
    planned: PlannedBatch
    bad: list[BadSample]
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
        state: PlanState,
        total_streams: int,
        budget: RowBudget,
        spec: VisionSpec,
        *,
        workers: int = 4,
        prefetch: int = 2,
        worker_timeout_s: float = 120.0,
        quarantine: Quarantine | None = None,
    ):
        self._planner = Planner(mixture.sample, mixture.describe, lambda row: fits(row, budget), total_streams)
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
        planned, bad, stats = ready.planned, ready.bad, dict(ready.stats)
        self._state = dataclasses.replace(self._state, cursors=planned.cursors)
        self._quarantine.add(planned.n_samples + len(planned.bad), planned.bad + bad)
        self._quarantine.check()
        stats |= {"wait_s": time.perf_counter() - start, "bad": len(planned.bad) + len(bad), "skipped": planned.skipped}
        ids = [[sample.id for sample in row] for row in planned.rows]
        return LoadedBatch(ready.arrays, ids, planned.n_samples, ready.lengths, self._state, stats)

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
            self._producer = threading.Thread(target=self._produce, name="vlm3-plan", daemon=True)
            self._producer.start()
        prepared = self._next_ready()
        if not isinstance(prepared, BaseException):
            return prepared
        self.close()
        if isinstance(prepared, UserError):
            raise prepared
        raise RuntimeError(f"the data loader failed: {type(prepared).__name__}: {prepared}") from prepared

    def _next_ready(self):
        """What the planning thread has put, or an error if it is gone."""
        while True:
            alive = self._producer.is_alive()
            try:
                return self._ready.get(timeout=0.5)
            except queue.Empty:
                if not alive:
                    return RuntimeError("the planning thread has ended")

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

    def _begin(self, cursors: np.ndarray) -> tuple[PlannedBatch, list[list[Callable]]]:
        """The plan behind `cursors`, and what waits for the pixels of its samples."""
        planned = self._planner.plan(cursors, self._start_reading)
        fills = [[self._workers.submit(self._fill, s, lambda s=s: s.id) for s in row] for row in planned.rows]
        return planned, fills

    def _start_reading(self, sample: Callable, index: int) -> Callable:
        return self._workers.submit(sample, index, lambda: self._mixture.describe(index)[0])

    def _fill(self, sample: Sample) -> tuple[list[np.ndarray | None], list[BadSample]]:
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

    def _filled(self, sample: Sample, fill: Callable) -> tuple[list[np.ndarray | None], list[BadSample]]:
        """What `_fill` has returned; None for all images if it was given up."""
        try:
            return fill()
        except BadRecord as error:
            names = ", ".join(layout.ref.name for layout in sample.images)
            return [None] * len(sample.images), [self._set_aside(sample, names, error)]

    def _set_aside(self, sample: Sample, file: str, error: BadRecord) -> BadSample:
        return BadSample(sample.id, self._mixture.components[sample.group].name, file, str(error))

    def _assemble(self, planned: PlannedBatch, fills: list[list[Callable]]) -> "_Ready":
        filled = [
            [self._filled(sample, fill) for sample, fill in zip(row, row_fills, strict=True)]
            for row, row_fills in zip(planned.rows, fills, strict=True)
        ]
        arrays = pack(planned.rows, [[patches for patches, _ in row] for row in filled], self._budget, self._spec)
        held = lengths(planned.rows)
        # Those with broken pixels have their targets masked.
        held = dataclasses.replace(held, targets=int((arrays["target_weight"] > 0).sum()))
        bad = [item for row in filled for _, bad in row for item in bad]
        return _Ready(arrays, planned, bad, held, batch_stats(planned.rows, held, self._budget))
