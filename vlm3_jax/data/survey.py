"""What a mixture will do in training, from a draw of its samples and no pixels: `vlm3 data mix` as plain functions."""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import rich.box
import rich.table
import rich.text

from vlm3_jax.data.component import Component, SampleSettings
from vlm3_jax.data.mixture import Mixture, build_components, first_phase
from vlm3_jax.data.packing import FIELDS, RowBudget, batch_stats, fits, lengths, needs
from vlm3_jax.data.quarantine import Quarantine
from vlm3_jax.data.samples import Bad, PassedOver, Sample
from vlm3_jax.errors import UserError

UNBOUNDED = RowBudget(2**30, 2**30, 2**30)
STREAMS = 8
# Proposals for samples of about 8 blocks or more list the pairs of blocks that see each other.
PAIR_BLOCK = 128


@dataclasses.dataclass(frozen=True)
class Run:
    """What the report says of a run: `samples` it is long (0: unknown), `rows` a step (all accumulated batches), and
    the `batch` it is meant to have (samples a step on average; 0: no wish).
    """

    samples: int = 0
    rows: int = 0
    batch: int = 0


@dataclasses.dataclass(frozen=True)
class RowFill:
    """How rows of `budget` come out: samples a row, and the figures of `packing.batch_stats`."""

    budget: RowBudget
    samples: float
    token_fill: float
    patch_fill: float
    text_work: float
    vision_work: float

    def rows_for(self, batch: int) -> int:
        """The rows a step that hold `batch` samples on average."""
        return max(1, round(batch / self.samples))


@dataclasses.dataclass(frozen=True, eq=False)
class Share:
    """A component: its `share` of the draws as asked and of the samples as `drawn`.

    `epochs`: how often the run sees each of its `records` (None if its length is unknown). `questions`: of a sample, on
    average. `lost`: the part of its draws that gave no sample. `sizes` int64 [N, 3]: tokens, patches and supervised
    tokens of the samples drawn.
    """

    name: str
    records: int
    share: float
    drawn: float
    epochs: float | None
    questions: float
    lost: float
    sizes: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class MixReport:
    """The report on a draw of `samples` samples, of which `oversize` are larger than a configured row.

    `longest`: what the largest sample needs of the lists of blocks that the configuration uses, by field of `data`.
    `bad` records are broken, those `passed_over` give no sample for another reason (`Component.sample`).
    """

    shares: list[Share]
    samples: int
    oversize: int
    longest: dict[str, int]
    passed_over: int
    bad: list[Bad]
    configured: RowFill
    proposed: list[RowFill]
    run: Run

    @property
    def samples_per_step(self) -> float:
        """Mean number of samples in a step of the configured rows."""
        return self.configured.samples * self.run.rows

    def sentences(self) -> list[str]:
        """What the tables leave out."""
        n = f"{self.samples} samples drawn; {self.passed_over} records passed over, {len(self.bad)} bad"
        if self.oversize:
            n += f"; {self.oversize} samples are larger than a configured row (data.oversize)"
        lines = [n, *(f"  bad: {item.id}: {item.reason}" for item in self.bad[:5]), *self._worst()]
        for name, most in self.longest.items():
            lines.append(f"data.{name} = {getattr(self.configured.budget, name):,}; the largest sample needs {most:,}")
        if self.run.rows:
            line = f"samples per step: mean {self.samples_per_step:,.1f}"
            if self.run.batch:
                off = self.samples_per_step / self.run.batch - 1
                line += f" of {self.run.batch:,} asked ({off:+.1%})"
                if abs(off) > 0.02:
                    best = self.configured.rows_for(self.run.batch)
                    line += f"; {best} rows a step (data.rows x train.accumulation) come closest"
            if self.run.samples:
                steps = math.ceil(self.run.samples / self.samples_per_step)
                line += f"; {steps:,} steps for {self.run.samples:,} samples"
            lines.append(line)
        return lines

    @property
    def questions(self) -> float:
        """Questions of a sample of the mixture, on average."""
        return sum(part.drawn * part.questions for part in self.shares)

    def _worst(self) -> list[str]:
        """The questions of the run, the component that it repeats most, and the one that loses most of its draws."""
        asked = f"questions: {self.questions:.1f} a sample"
        lines = [asked + (f", {self.questions * self.run.samples:,.0f} in the run" if self.run.samples else "")]
        if self.run.samples:
            most = max(self.shares, key=lambda part: part.epochs)
            lines.append(f"repeated most: {most.name}, {most.epochs:,.2f} epochs")
        most = max(self.shares, key=lambda part: part.lost)
        if most.lost:
            lines.append(f"lost most: {most.name}, {most.lost:.1%} of its draws give no sample")
        return lines

    def __rich_console__(self, console, options) -> Iterator:
        yield self._shares_table()
        yield self._sizes_table()
        yield self._rows_table()
        for line in self.sentences():
            yield rich.text.Text(line)

    def _shares_table(self) -> rich.table.Table:
        table = _table("component", "records", "share", "drawn", "epochs", "questions", "lost")
        for part in self.shares:
            epochs = "-" if part.epochs is None else f"{part.epochs:,.2f}"
            shares = f"{part.share:.1%}", f"{part.drawn:.1%}"
            table.add_row(part.name, f"{part.records:,}", *shares, epochs, f"{part.questions:.1f}", f"{part.lost:.1%}")
        table.caption = "questions: of a sample; lost: draws without one"
        if self.run.samples:
            table.caption += f"; epochs in {self.run.samples:,} samples"
        return table

    def _sizes_table(self) -> rich.table.Table:
        table = _table("component", "tokens", "patches", "answers")
        for part in self.shares:
            sizes = [f"{mean:,.0f} / {top:,}" for mean, top in _mean_and_largest(part.sizes)] or ["-"] * 3
            table.add_row(part.name, *sizes)
        table.caption = "tokens, patches and supervised tokens (answers) of a sample: mean / largest"
        return table

    def _rows_table(self) -> rich.table.Table:
        fills = [self.configured, *self.proposed]
        table = _table("rows", "configured", *["proposed"] * len(self.proposed))

        def line(name, value, form=""):
            table.add_row(name, *(f"{value(fill):{form}}" for fill in fills))

        for field, name in FIELDS.items():
            line(f"data.{name}", lambda fill, field=field: getattr(fill.budget, field), ",")
        line("samples a row", lambda fill: fill.samples, ".2f")
        line("tokens filled", lambda fill: fill.token_fill, ".1%")
        line("patches filled", lambda fill: fill.patch_fill, ".1%")
        line("attention work, text", lambda fill: f"{fill.text_work:.2f}x")
        line("attention work, vision", lambda fill: f"{fill.vision_work:.2f}x")
        if self.run.batch:
            line(f"rows for {self.run.batch:,} samples", lambda fill: fill.rows_for(self.run.batch), ",")
        table.caption = "attention work: pairs looked at, over pairs that see each other"
        return table

    def to_json(self) -> dict[str, Any]:
        """All figures as plain numbers, text and lists."""
        shares = {}
        for part in self.shares:
            pairs = _mean_and_largest(part.sizes)
            sizes = dict(zip(("tokens", "patches", "answers"), ({"mean": m, "largest": t} for m, t in pairs)))
            names = ("records", "share", "drawn", "epochs", "questions", "lost")
            fields = {name: getattr(part, name) for name in names}
            shares[part.name] = fields | sizes
        step = {"mean_samples": self.samples_per_step, "asked": self.run.batch} if self.run.rows else None
        return {
            "shares": shares,
            "samples": self.samples,
            "questions": self.questions,
            "oversize": self.oversize,
            "longest": self.longest,
            "passed_over": self.passed_over,
            "bad": [item.row() for item in self.bad],
            "configured": dataclasses.asdict(self.configured),
            "proposed": [dataclasses.asdict(fill) for fill in self.proposed],
            "run": dataclasses.asdict(self.run),
            "step": step,
        }


def _table(first: str, *numbers: str) -> rich.table.Table:
    """A table with a column of names and columns of numbers."""
    table = rich.table.Table(first, box=rich.box.SIMPLE_HEAD)
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def _mean_and_largest(sizes: np.ndarray) -> list[tuple[float, int]]:
    """(mean, largest) of each column; nothing where there are no rows."""
    return list(zip(sizes.mean(0).tolist(), sizes.max(0).tolist())) if len(sizes) else []


def mix_report(
    table: Mapping[str, Mapping],
    settings: SampleSettings,
    seed: int = 0,
    samples: int = 1000,
    max_bad_fraction: float = 0.01,
    run: Run | None = None,
    weigh: Callable[[Sequence[Component]], Mapping[str, float]] | None = None,
) -> MixReport:
    """Draws `samples` samples of a mixture table, uncropped, and proposes row sizes with few empty tokens.

    `weigh(components)`: their weights by name (None: those of the table). UserError if none can be drawn, or too many
    records are broken.
    """
    run = run or Run()
    components = build_components(table, dataclasses.replace(settings, budget=UNBOUNDED), max_bad_fraction)
    weights = weigh(components) if weigh else {c.name: c.fields.weight for c in components}
    mixture = Mixture(components, seed, [first_phase({c.name: len(c) for c in components}, weights)])
    drawn, questions, bad, passed_over, index = [], [], [], 0, 0
    draws = collections.Counter()
    while len(drawn) < samples and index < 2 * samples + 1000:
        found = mixture.sample(index)
        draws[components[mixture.draw(index).component].name] += 1
        if isinstance(found, Bad):
            bad.append(found)
        elif isinstance(found, PassedOver):
            passed_over += 1
        else:
            drawn.append(_lengths_only(found))
            questions.append(len(found.examples))
        index += 1
    quarantine = Quarantine(max_bad_fraction=max_bad_fraction)
    quarantine.add(index, bad)
    quarantine.check(final=True)
    if not drawn:
        raise UserError(f"none of {index} draws gave a sample; the last: {found.reason}")
    return MixReport(
        shares=_shares(components, weights, drawn, questions, draws, run.samples * index / len(drawn)),
        samples=len(drawn),
        oversize=sum(not fits([s], settings.budget) for s in drawn),
        longest=_longest(drawn, settings.budget),
        passed_over=passed_over,
        bad=bad,
        configured=row_fill(in_rows(drawn, settings.budget), settings.budget),
        proposed=propose(drawn, settings.vision.merge_size**2),
        run=run,
    )


def _lengths_only(sample: Sample) -> Sample:
    """The sample without what would fill the memory and no length depends on: encoded images, labels, positions."""
    layouts = (dataclasses.replace(layout, ref=dataclasses.replace(layout.ref, data=b"")) for layout in sample.images)
    empty = {"record": None, "examples": (), "positions": np.zeros((3, 0), np.int32)}
    return dataclasses.replace(sample, images=tuple(layouts), **empty)


def _longest(samples: Sequence[Sample], budget: RowBudget) -> dict[str, int]:
    """The most that one of the samples needs of each list of blocks that `budget` has."""
    names = ["pairs", "patch_pairs"] if budget.pair_block else []
    taken = [needs([sample], budget) for sample in samples] if names else []
    return {name: max(getattr(t, name) for t in taken) for name in names}


def _shares(
    components: Sequence[Component],
    weights: Mapping[str, float],
    drawn: Sequence[Sample],
    questions: Sequence[int],
    draws: Mapping[str, int],
    run_draws: float,
) -> list[Share]:
    """`questions`: of each of the `drawn` samples. `draws`: how many, those without a sample too, it took by component;
    `run_draws`: how many the run takes.
    """
    sizes, number = _sizes(drawn), np.array([s.component for s in drawn])
    questions, total = np.array(questions), sum(weights.values())
    parts = []
    for c in components:
        share, here = weights[c.name] / total, number == c.number
        own = int(here.sum())
        parts.append(
            Share(
                name=c.name,
                records=len(c),
                share=share,
                drawn=own / len(drawn),
                epochs=run_draws * share / len(c) if run_draws else None,
                questions=float(questions[here].mean()) if own else 0.0,
                lost=1 - own / draws[c.name] if draws[c.name] else 0.0,
                sizes=sizes[here],
            )
        )
    return parts


def _sizes(samples: Sequence[Sample]) -> np.ndarray:
    """Tokens, patches and supervised tokens of each, int64 [N, 3]."""
    return np.array([[len(s.tokens), s.n_patches, len(s.target_tokens)] for s in samples], np.int64).reshape(-1, 3)


def propose(samples: Sequence[Sample], merge_area: int, count: int = 3) -> list[RowFill]:
    """Row sizes for these samples, the best filled first.

    A row holds at least the largest sample and at most four of them; patches and answers are chosen so that they stop a
    row in one of 200 cases only. Long samples get lists of pairs of blocks as long as the fullest row needs.
    """
    sizes = _sizes(samples)
    largest = sizes.max(0)
    unit = max(16, 2 ** int(np.log2(max(1, largest[0])) - 3))
    found = []
    for tokens in range(int(-(-largest[0] // unit) * unit), int(4 * largest[0]) + unit, unit):
        sums = _sums(sizes, np.array([tokens, 2**30, 2**30]))
        patches, targets = np.maximum(np.quantile(sums[:, 1:], 0.995, axis=0), largest[1:]).astype(int)
        patch_unit = -(-4 * unit // merge_area) * merge_area
        limit = np.array([tokens, -(-patches // patch_unit) * patch_unit, -(-targets // 16) * 16])
        found.append((-round(_sums(sizes, limit)[:, 0].mean() / tokens, 2), *limit.tolist()))
    proposed = []
    for _, *limit in sorted(found)[:count]:
        rows = in_rows(samples, budget := RowBudget(*limit))
        proposed.append(row_fill(rows, _with_lists(rows, budget) if unit >= PAIR_BLOCK else budget))
    return proposed


def _sums(sizes: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """Tokens, patches and supervised tokens of full rows, int64 [M, 3], if nothing else limits them."""
    rows = _members(len(sizes), lambda row: (sizes[row].sum(0) <= limit).all())
    return np.array([sizes[row].sum(0) for row in rows])


def _with_lists(rows: Sequence[Sequence[Sample]], budget: RowBudget) -> RowBudget:
    """The budget with lists of pairs of blocks that any of its rows fits."""
    counting = dataclasses.replace(budget, pair_block=PAIR_BLOCK)
    taken = [needs(row, counting) for row in rows]
    longest = [max(getattr(t, name) for t in taken) for name in ("pairs", "patch_pairs")]
    pairs, patch_pairs = (-(-n // 64) * 64 for n in longest)
    return dataclasses.replace(counting, pairs=pairs, patch_pairs=patch_pairs)


def in_rows(samples: Sequence[Sample], budget: RowBudget) -> list[list[Sample]]:
    """The samples of each full row; one that is too large fills a row alone."""
    rows = _members(len(samples), lambda row: fits([samples[i] for i in row], budget))
    return [[samples[i] for i in row] for row in rows]


def row_fill(rows: Sequence[Sequence[Sample]], budget: RowBudget) -> RowFill:
    """How full these rows of `budget` are, and what they cost."""
    stats = batch_stats(rows, lengths(rows), budget)
    # Larger samples will be cropped to a full row.
    limit = np.array([budget.tokens, budget.patches, budget.targets])
    filled = np.array([np.minimum(_sizes(row).sum(0), limit) for row in rows]).mean(0) / np.maximum(limit, 1)
    return RowFill(
        budget=budget,
        samples=sum(map(len, rows)) / len(rows),
        token_fill=float(filled[0]),
        patch_fill=float(filled[1]),
        text_work=stats["text_work"],
        vision_work=stats["vision_work"],
    )


def _members(count: int, fit: Callable[[list[int]], bool]) -> list[list[int]]:
    """Numbers of the samples in each full row, made as the schedule does; `fit(numbers)`: whether they fit."""
    full = []
    for stream in range(min(STREAMS, count)):
        row, since = [], len(full)
        for number in range(stream, count, STREAMS):
            if row and not fit([*row, number]):
                full.append(row)
                row = []
            row.append(number)
        # Too few samples to fill one row: what there is stands for it.
        full += [row] if len(full) == since else []
    return full
