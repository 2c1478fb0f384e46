"""The numbers of training between two logged steps: speed, MFU, fill, and losses by task, component and turn."""

import time
from collections.abc import Mapping

import jax
import numpy as np

from vlm3_jax.model.flops import Lengths

# Of the loader's numbers those that are counts, and their names in a row of metrics.
COUNTS = {"bad": "records_bad", "passed_over": "records_passed_over"}


class Window:
    """Sums since the last logged step.

    `names`: target group -> (component, task). `peak`: FLOP/s of one device. `share`: of the batch's rows those that
    this host brings; where the tensor axis crosses hosts, several bring the same, and shares are more than one in all.
    """

    def __init__(self, names: Mapping[int, tuple[str, str]], peak: float, share: float = 1.0):
        self.names, self.peak, self.share = names, peak, share
        self.restart()

    def restart(self) -> None:
        """Forgets what was added; the next window begins now."""
        self.start, self.steps, self.samples, self.useful, self.wait = time.perf_counter(), 0, 0, 0.0, 0.0
        self.tokens = self.patches = 0
        self.stats, self.groups = [], None

    def add(self, samples: int, lengths: Lengths, useful: float, stats: dict, groups: dict | None) -> None:
        """One step: its samples over all hosts, what this host's rows hold, their useful FLOPs, the loader's `stats`
        and the loss sums by group (None for a skipped step).
        """
        self.steps += 1
        self.samples += samples
        self.useful += useful
        self.tokens += lengths.tokens
        self.patches += lengths.patches
        self.wait += stats["wait_s"]
        self.stats.append(stats)
        if groups is not None:
            self.groups = groups if self.groups is None else jax.tree.map(np.add, self.groups, groups)

    def leave_out(self, seconds: float) -> None:
        """Time since the window's start that was not spent on steps."""
        self.start += seconds

    def summary(self) -> dict[str, float]:
        """The row of numbers (docs/training.md says what each is); starts the next window."""
        seconds = time.perf_counter() - self.start
        # Samples are those of all hosts; the rest is what this host's rows hold, and taken for their share.
        each = self.share * seconds * jax.device_count()
        row = {
            "samples_per_s": self.samples / seconds,
            "samples_per_s_device": self.samples / seconds / jax.device_count(),
            "tokens_per_s_device": self.tokens / each,
            "patches_per_s_device": self.patches / each,
            "step_s": seconds / self.steps,
            "mfu": self.useful / each / self.peak,
            "data_wait": self.wait / seconds,
        }
        of = {name: [stats[name] for stats in self.stats] for name in self.stats[0] if name != "wait_s"}
        row |= {name: float(np.mean(values)) for name, values in of.items() if name not in COUNTS}
        row |= {COUNTS[name]: float(np.sum(values)) for name, values in of.items() if name in COUNTS}
        if self.groups:
            row |= _losses(self.groups, self.names)
        self.restart()
        return row


def _losses(groups: dict, names: Mapping[int, tuple[str, str]]) -> dict[str, float]:
    """Mean loss of each task, and of each component in first and in later turns, where there were any."""
    sums: dict[str, np.ndarray] = {}
    for group, (name, task) in names.items():
        for later, turn in enumerate(("first", "later")):
            number = 2 * group + later
            both = np.array([groups["loss"][number], groups["tokens"][number]], np.float64)
            for key in (f"loss/{name}/{turn}", f"task_loss/{task}"):
                sums[key] = sums.get(key, 0) + both
    return {key: float(loss / tokens) for key, (loss, tokens) in sums.items() if tokens}
