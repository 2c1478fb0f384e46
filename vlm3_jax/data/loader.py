"""The loader: planned rows become fixed-shape arrays, decoded by threads and handed over in plan order.

Decoding and resizing release the interpreter lock, so threads suffice. The order never depends on them: one thread
plans, the pool fills, and results are put together in the order planned. Each batch carries the state behind itself, so
batches that were prepared but not used are prepared again after a restart.
"""

import collections
import dataclasses
import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from vlm3_jax.data.image import VisionSpec
from vlm3_jax.data.mixture import Mixture
from vlm3_jax.data.packing import RowBudget, batch_stats, fits, pack
from vlm3_jax.data.plan import BadSample, PlannedBatch, Planner, PlanState
from vlm3_jax.data.quarantine import Quarantine, bad_lines
from vlm3_jax.data.samples import Sample
from vlm3_jax.errors import BadRecord, UserError


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedBatch:
    """One batch of this host's rows.

    `arrays`: see `packing.pack`. `ids`: sample ids, row by row. `samples`: their number, those with broken pixels
    (masked) included. `state`: go on from here after this batch; its cursors are those of this loader's streams.
    `stats`: token_fill, patch_fill (shares of the row), wait_s (time the caller waited for it), bad, skipped.
    """

    arrays: dict[str, np.ndarray]
    ids: list[list[str]]
    samples: int
    state: PlanState
    stats: dict[str, float]


class Loader:
    """Iterates over batches without end; close it (or use `with`) to stop its threads.

    `state`: cursors of this loader's streams (all, or a host's share of the `total_streams`) and the phases.
    `workers`: decoding threads; 0 does all work in the caller's thread. `prefetch`: batches prepared ahead.
    UserError from `next` if the data are broken: see `Quarantine`.
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
        quarantine: Quarantine | None = None,
    ):
        self._planner = Planner(mixture.sample, mixture.describe, lambda row: fits(row, budget), total_streams)
        self._mixture, self._state, self._budget, self._spec = mixture, state, budget, spec
        self._quarantine = quarantine or Quarantine()
        for component in mixture.components:
            self._quarantine.write(bad_lines(component))
        self._prefetch = max(1, prefetch)
        self._pool = ThreadPoolExecutor(workers, "vlm3-data") if workers else None
        self._ready: queue.Queue = queue.Queue(self._prefetch)
        self._stop = threading.Event()
        self._producer: threading.Thread | None = None

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> LoadedBatch:
        start = time.perf_counter()
        if self._pool is None:
            planned = self._planner.plan(self._state.cursors)
            prepared = self._assemble(planned, [self._fill(s) for row in planned.rows for s in row])
        else:
            prepared = self._wait()
        arrays, planned, bad = prepared
        self._state = dataclasses.replace(self._state, cursors=planned.cursors)
        self._quarantine.add(planned.n_samples + len(planned.bad), planned.bad + bad)
        self._quarantine.check()
        stats = batch_stats(planned.rows, self._budget)
        stats |= {"wait_s": time.perf_counter() - start, "bad": len(planned.bad) + len(bad), "skipped": planned.skipped}
        ids = [[sample.id for sample in row] for row in planned.rows]
        return LoadedBatch(arrays, ids, planned.n_samples, self._state, stats)

    def close(self) -> None:
        """Stops the threads; batches that were prepared are dropped."""
        self._stop.set()
        if self._producer is not None:
            while not self._ready.empty():
                self._ready.get_nowait()
            self._producer.join()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _wait(self):
        """The next prepared batch; what went wrong in the threads is raised here."""
        if self._stop.is_set():
            raise RuntimeError("the loader is closed")
        if self._producer is None:
            self._producer = threading.Thread(target=self._produce, name="vlm3-plan", daemon=True)
            self._producer.start()
        prepared = self._ready.get()
        if not isinstance(prepared, Exception):
            return prepared
        self.close()
        if isinstance(prepared, UserError):
            raise prepared
        raise RuntimeError(f"the data loader failed: {type(prepared).__name__}: {prepared}") from prepared

    def _produce(self) -> None:
        try:
            pending: collections.deque = collections.deque()
            cursors = self._state.cursors
            while not self._stop.is_set():
                while len(pending) < self._prefetch:
                    planned = self._planner.plan(cursors, self._pool.map)
                    cursors = planned.cursors
                    pending.append((planned, [self._pool.submit(self._fill, s) for row in planned.rows for s in row]))
                planned, filled = pending.popleft()
                self._put(self._assemble(planned, [future.result() for future in filled]))
        except Exception as error:
            self._put(error)

    def _put(self, item) -> None:
        while not self._stop.is_set():
            try:
                return self._ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def _fill(self, sample: Sample) -> tuple[list[np.ndarray | None], list[BadSample]]:
        """The sample's patches; None and a reason for an image that cannot be read."""
        patches, bad = [], []
        for plan in sample.images:
            try:
                patches.append(plan.load(self._spec))
            except BadRecord as error:
                patches.append(None)
                name = self._mixture.components[sample.group].name
                bad.append(BadSample(sample.id, name, plan.ref.name, str(error)))
        return patches, bad[:1]

    def _assemble(self, planned: PlannedBatch, filled: list) -> tuple[dict, PlannedBatch, list[BadSample]]:
        results = iter(filled)
        rows = [[next(results) for _ in row] for row in planned.rows]
        arrays = pack(planned.rows, [[patches for patches, _ in row] for row in rows], self._budget, self._spec)
        return arrays, planned, [item for row in rows for _, bad in row for item in bad]
