"""Held-out loss: rows of the held-out components, and what a model that sees no image would lose on their answers.

Which samples make up which row is found once, without pixels. The rows are then read and decoded anew at each
evaluation, as those of training are, so that no more of them is in memory than the loader has prepared.
"""

import collections
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np

from vlm3_jax.data.component import Component
from vlm3_jax.data.loader import Loader
from vlm3_jax.data.packing import fits
from vlm3_jax.data.quarantine import Quarantine, bad_lines, left_out, left_out_untold
from vlm3_jax.data.samples import Bad, PassedOver, Sample
from vlm3_jax.data.schedule import Listed, Schedule
from vlm3_jax.errors import UserError
from vlm3_jax.parallel import mesh as meshes
from vlm3_jax.parallel import processes
from vlm3_jax.setup import Setup


class HeldOut:
    """This process's rows of at most `eval.loss_batches` batches of a component's first records.

    The same records give the same questions every time, so losses of different steps can be compared. What is broken
    goes to `quarantine`: lines and labels at once (all processes meet them; the first notes them), and samples of this
    process's rows with an image that cannot be read, which are masked, when they are first met. `entropy`: see
    `answer_entropy`. UserError if no record gives a sample.
    """

    def __init__(self, setup: Setup, component: Component, quarantine: Quarantine):
        self.components, self.quarantine = [component], quarantine
        self._setup, self._seen = setup, set()
        first, size = jax.process_index() == 0, setup.config.data.rows
        quarantine.write(bad_lines(component) if first else [])
        rows, answers, row = [], [], []
        for index in range(len(component)):
            sample = self.sample(index)
            if isinstance(sample, PassedOver):
                continue
            if isinstance(sample, Bad):
                quarantine.add(1, [sample] if first else [])
                continue
            if not rows or not fits([*row, sample], setup.budget):
                if len(rows) == setup.config.eval.loss_batches * size:
                    break
                rows.append([])
                row = []
            row.append(sample)
            rows[-1].append(index)
            answers += answer_tokens(sample)
            quarantine.add(1, [])
            quarantine.write(left_out(component, sample.record.id) if first else [])
        if not rows:
            raise UserError(
                f"eval.components.{component.name}: none of its records gives a sample; check its path and task"
            )
        quarantine.write(left_out_untold(component) if first else [])
        self.entropy = answer_entropy(answers)
        rows += [[] for _ in range(-len(rows) % size)]
        mine = meshes.process_rows(setup.mesh, size)
        self._rows = [[rows[start + i] for i in mine] for start in range(0, len(rows), size)]

    def sample(self, index: int) -> Sample | PassedOver | Bad:
        """What record `index` gives, asked as in evaluation."""
        component, key = self.components[0], (self._setup.config.seed, index)
        return component.sample(index, key, f"{component.name}/{index}", training=False)

    def describe(self, index: int) -> tuple[str, str, str]:
        """(sample id, component name, file) of record `index`."""
        component = self.components[0]
        return f"{component.name}/{index}", component.name, str(component.source.path)

    def batches(self) -> Iterator[dict[str, np.ndarray]]:
        """The rows as arrays (`packing.pack`), read and decoded ahead by the loader's threads; each time the same."""
        data = self._setup.config.data
        loader = Loader(
            self, Listed(self.sample, self._rows), Schedule(np.zeros(1, np.int64), ()), self._setup.budget,
            self._setup.spec, workers=data.workers, prefetch=data.prefetch, worker_timeout_s=data.worker_timeout_s,
            quarantine=_Once(self.quarantine, self._seen),
        )  # fmt: skip
        with loader:
            for batch in loader:
                yield batch.arrays

    def loss(self, evaluate: Callable[[dict], dict]) -> float:
        """Nats a supervised token; `evaluate(arrays)` gives the sums `loss` and `tokens` by group of a batch.

        UserError if no image can be read.
        """
        sums, running = [], []
        for arrays in self.batches():
            running.append(evaluate(arrays))
            # No more than two batches wait on the devices.
            sums += _fetched(running, keep=1)
        sums += _fetched(running, keep=0)
        loss, tokens = np.sum(sums, 0, np.float64)
        if not tokens:
            name = self.components[0].name
            raise UserError(f"eval.components.{name}: none of its images can be read; {self.quarantine.path} says why")
        return float(loss / tokens)


def _fetched(running: list[dict], keep: int) -> list[list]:
    """The sums of the batches that are under way, but for the last `keep`, which are waited for."""
    found = []
    while len(running) > keep:
        batch = jax.device_get(running.pop(0))
        found.append([batch["loss"].sum(), batch["tokens"].sum()])
    return found


class _Once:
    """The quarantine of samples that were counted when their rows were made: each is noted when it is first met."""

    def __init__(self, quarantine: Quarantine, seen: set[str]):
        self._quarantine, self._seen = quarantine, seen

    def write(self, bad: Iterable[Bad]) -> None:
        """Nothing: the lines were noted when the rows were made."""

    def add(self, samples: int, bad: Iterable[Bad]) -> None:
        """Counts and notes those that are new."""
        new = [item for item in bad if item.id not in self._seen]
        self._seen.update(item.id for item in new)
        self._quarantine.add(0, new)

    def check(self) -> None:
        """Nothing: held-out data are judged as a whole (`count_in_all`)."""


def count_in_all(quarantine: Quarantine, setup: Setup) -> int:
    """How many of their held-out samples all processes have set aside in `quarantine`. UserError if too many."""
    rows = meshes.process_rows(setup.mesh, setup.config.data.rows)
    found = processes.gather({"rows": rows, "bad": np.array(quarantine.bad)})
    bad = int(processes.over_rows(found["rows"], found["bad"]))
    # A process that has set none aside cannot name one, and is ended by those that can.
    if quarantine.bad:
        quarantine.check(bad=bad)
    return bad


def answer_tokens(sample: Sample) -> list[list[int]]:
    """The supervised tokens of each answer of a sample."""
    cuts = np.flatnonzero(np.diff(sample.target_slot) != 1) + 1
    return [part.tolist() for part in np.split(sample.target_tokens, cuts)]


def answer_entropy(answers: Sequence[Sequence[int]]) -> float:
    """Nats per supervised token that a language model loses which knows all other answers and sees nothing else.

    `answers` holds each answer's supervised tokens, the end included. A token's probability is its share among the
    other answers that begin alike, mixed with its share at that place of all other answers (as one answer more), since
    of few answers nearly every one begins in a way of its own. With many answers this is their entropy by the chain
    rule. A training loss at this value has learnt nothing from the images. NaN with fewer than two answers.
    """
    by_prefix, by_place = collections.defaultdict(collections.Counter), collections.defaultdict(collections.Counter)
    for tokens in answers:
        for k, token in enumerate(tokens):
            by_prefix[tuple(tokens[:k])][token] += 1
            by_place[k][token] += 1
    total, nats = 0, 0.0
    if len(answers) > 1:
        for prefix, counter in by_prefix.items():
            size, place = counter.total(), by_place[len(prefix)]
            for token, count in counter.items():
                # A token that no other answer has at this place is given one share more of all that occur there.
                elsewhere = (place[token] - 1 + 1 / len(place)) / place.total()
                nats -= count * math.log((count - 1 + elsewhere) / size)
            total += size
    return nats / total if total else math.nan
