"""Held-out loss: rows of the held-out components, and what a model that sees no image would lose on their answers."""

import collections
import math
from collections.abc import Sequence

import jax
import numpy as np

from vlm3_jax.data.component import Component
from vlm3_jax.data.packing import fits, pack
from vlm3_jax.data.quarantine import Quarantine, bad_lines
from vlm3_jax.data.samples import Sample
from vlm3_jax.data.schedule import Bad
from vlm3_jax.errors import BadRecord
from vlm3_jax.parallel import mesh as meshes
from vlm3_jax.parallel import processes
from vlm3_jax.processor.image import VisionSpec
from vlm3_jax.setup import Setup


def held_out_batches(
    setup: Setup, component: Component, batches: int, quarantine: Quarantine
) -> tuple[list[dict], list[list[int]]]:
    """This process's rows of at most `batches` batches of a component's first records, and the tokens of all answers.

    The same records give the same questions every time, so losses of different steps can be compared. What is broken
    goes to `quarantine`: lines and labels that all processes meet (the first notes them), and samples of this process's
    rows with an image that cannot be read, which are masked.
    """
    first = jax.process_index() == 0
    quarantine.write(bad_lines(component) if first else [])
    rows: list[list[Sample]] = []
    for index in range(len(component)):
        try:
            sample = component.sample(index, (setup.config.seed, index), f"{component.name}/{index}")
        except BadRecord as error:
            bad = Bad(f"{component.name}/{index}", component.name, str(component.source.path), str(error))
            quarantine.add(1, [bad] if first else [])
            continue
        if sample is None:
            continue
        if not rows or not fits([*rows[-1], sample], setup.budget):
            if len(rows) == batches * setup.config.data.rows:
                break
            rows.append([])
        rows[-1].append(sample)
        quarantine.add(1, [])
    answers = [answer for row in rows for sample in row for answer in answer_tokens(sample)]
    size = setup.config.data.rows
    rows += [[] for _ in range(-len(rows) % size)]
    mine = meshes.process_rows(setup.mesh, size)
    packed = []
    for start in range(0, len(rows), size):
        own = [rows[start + i] for i in mine]
        pixels = [[_pixels(sample, component.name, setup.spec, quarantine) for sample in row] for row in own]
        packed.append(pack(own, pixels, setup.budget, setup.spec))
    return packed, answers


def count_in_all(aside: Quarantine, setup: Setup) -> None:
    """Makes `aside` count what all processes have set aside of their held-out rows. UserError if too much."""
    own, rows = aside.bad, meshes.process_rows(setup.mesh, setup.config.data.rows)
    found = processes.gather({"rows": rows, "bad": np.array(own)})
    aside.bad = int(processes.over_rows(found["rows"], found["bad"]))
    # A process that has set none aside cannot name one, and is ended by those that can.
    if own:
        aside.check()


def _pixels(sample: Sample, source: str, spec: VisionSpec, quarantine: Quarantine) -> list[np.ndarray | None]:
    """The patches of a sample's images; None, which masks the sample, for one that cannot be read."""
    pixels, bad = [], []
    for layout in sample.images:
        try:
            pixels.append(layout.load(spec))
        except BadRecord as error:
            pixels.append(None)
            bad.append(Bad(sample.id, source, layout.ref.name, str(error)))
    quarantine.add(0, bad[:1])
    return pixels


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
