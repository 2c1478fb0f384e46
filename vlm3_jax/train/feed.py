"""The training data of one process: batches of the loader, and what all processes must know of them."""

import dataclasses
import functools
import operator
import pathlib
import zlib

import jax
import numpy as np

from vlm3_jax.data.component import Component
from vlm3_jax.data.loader import Loader
from vlm3_jax.data.mixture import Mixture
from vlm3_jax.data.packing import fits
from vlm3_jax.data.quarantine import Quarantine
from vlm3_jax.data.schedule import Schedule, Scheduler, open_schedule
from vlm3_jax.model.flops import Lengths
from vlm3_jax.parallel import mesh as meshes
from vlm3_jax.parallel import processes
from vlm3_jax.setup import Setup
from vlm3_jax.train.goodput import Goodput
from vlm3_jax.train.window import COUNTS

# Of the loader's numbers those that add up over accumulated batches; the others are means. Counts are told of all
# processes' rows.
SUMMED = ("wait_s", *COUNTS)


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """What one step trains on.

    Of this process's rows: `arrays` (`packing.pack`, with a leading axis `accumulation` where that is above 1), what
    they hold (`lengths`), and the loader's `stats`, in which the counts (`window.COUNTS`) are of all processes. Of the
    global batch: the number of `samples`, and the `checksum` of their ids.
    """

    arrays: dict[str, np.ndarray]
    lengths: Lengths
    stats: dict[str, float]
    samples: int
    checksum: int


class Feed:
    """The training data of this process.

    `stop`: a list that becomes non-empty where this process is to stop. `goodput` is told how long `next` waits for
    data; the exchange behind that, which also waits for the step under way, is no part of it.
    """

    def __init__(self, setup: Setup, components: list[Component], saved: Schedule | None, goodput: Goodput):
        config, data = setup.config, setup.config.data
        lengths = {c.name: len(c) for c in components}
        schedule = open_schedule(lengths, setup.weights(components), data.rows, saved, config.seed)
        # Stream r fills row r, wherever it lies.
        self._mine = meshes.process_rows(setup.mesh, data.rows)
        self.stop: list = []
        self._goodput = goodput
        self._phases = schedule.phases
        self._accumulation = config.train.accumulation
        mixture = Mixture(components, config.seed, schedule.phases)
        self._loader = Loader(
            mixture,
            Scheduler(mixture.sample, lambda row: fits(row, setup.budget), data.rows),
            Schedule(schedule.cursors[self._mine], schedule.phases),
            setup.budget,
            setup.spec,
            workers=data.workers,
            prefetch=data.prefetch,
            worker_timeout_s=data.worker_timeout_s,
            quarantine=Quarantine(quarantine_file(setup.work.folder), data.max_bad_fraction),
        )
        self.schedule = schedule

    def next(self) -> Batch | None:
        """The next batch; `schedule` then lies behind it. None in all processes alike if some process is to stop."""
        if self.stop and jax.process_count() == 1:
            return None
        with self._goodput.spent_on("wait"):
            parts = [next(self._loader) for _ in range(self._accumulation)]
        arrays = parts[0].arrays
        if len(parts) > 1:
            arrays = {key: np.stack([part.arrays[key] for part in parts]) for key in arrays}
        held = functools.reduce(operator.add, [part.lengths for part in parts])
        stats = {key: [part.stats[key] for part in parts] for key in parts[0].stats}
        stats = {key: float((np.sum if key in SUMMED else np.mean)(values)) for key, values in stats.items()}
        ids = [[zlib.crc32("\n".join(row).encode()) for row in part.ids] for part in parts]
        # Last, since with several processes it waits for the step under way.
        found = processes.gather(
            {
                "rows": self._mine,
                "counts": np.array([stats[key] for key in COUNTS]),
                "cursors": parts[-1].state.cursors,
                "ids": np.array(ids, np.uint32).T,
                "samples": np.array([[len(row) for row in part.ids] for part in parts]).T,
                "stop": np.array(bool(self.stop)),
            }
        )
        if found["stop"].any():
            return None
        # In the order of the rows; a row that several processes bring counts once.
        _, order = np.unique(found["rows"], return_index=True)
        cursors, ids, samples = (np.concatenate(found[key])[order] for key in ("cursors", "ids", "samples"))
        self.schedule = Schedule(cursors, self._phases)
        stats |= dict(zip(COUNTS, processes.over_rows(found["rows"], found["counts"]).tolist(), strict=True))
        return Batch(arrays, held, stats, int(samples.sum()), zlib.crc32(ids.T.tobytes()))

    def close(self) -> None:
        """Stops the decoding threads."""
        self._loader.close()


def quarantine_file(folder: pathlib.Path) -> pathlib.Path:
    """Where this process notes what it sets aside; the first has the plain name."""
    number = jax.process_index()
    return folder / (f"quarantine-{number}.jsonl" if number else "quarantine.jsonl")
