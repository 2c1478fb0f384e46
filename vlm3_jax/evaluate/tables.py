"""Tables of benchmarks: own rows under those of every system with published results, with differences.

A mean is given only over the columns that the published mean covers; where some of them were not run it is marked as
partial, and every system's mean over the columns that were run stands beside it.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from vlm3_jax import storage
from vlm3_jax.evaluate import outputs, published
from vlm3_jax.evaluate.benchmarks import BENCHMARKS, RULES, Benchmark
from vlm3_jax.evaluate.results import Results, load_results
from vlm3_jax.files import write_text

FILE = "benchmarks"


@dataclasses.dataclass(frozen=True)
class Source:
    """Where an own entry of a published column comes from: a benchmark's metric, times `factor`."""

    benchmark: str
    metric: str
    factor: float = 1.0


def _sources(task: str, factor: float = 1.0) -> tuple[Source, ...]:
    return tuple(Source(b.name, b.metric, factor) for b in BENCHMARKS.values() if b.task == task and b.published)


def _of(benchmark: str, *metrics: str, factor: float = 1.0) -> tuple[Source, ...]:
    return tuple(Source(benchmark, metric, factor) for metric in metrics)


_GROUPS = ("below_above", "left_right", "big_small", "tall_short", "wide_thin", "behind_front")
_SIZES = ("direct", "horizontal", "vertical", "width", "height")
# By task, for each of its published tables: the sources of its columns, and of its last where that is no mean of them.
SOURCES: dict[str, tuple[tuple[tuple[Source, ...], Source | None], ...]] = {
    "depth": ((_sources("depth"), None),),
    "objects": (
        (
            _of("spatialrgpt_qualitative", *_GROUPS, factor=100),
            Source("spatialrgpt_qualitative", "qualitative", 100),
        ),
        (
            _of("spatialrgpt_quantitative", *(f"{name}_success" for name in (*_SIZES, "direction")), factor=100),
            Source("spatialrgpt_quantitative", "quantitative", 100),
        ),
        (
            _of("spatialrgpt_quantitative", *(f"{name}_abs_rel" for name in _SIZES), "direction_error_deg"),
            Source("spatialrgpt_quantitative", "abs_rel"),
        ),
    ),
    "correspondence": ((_sources("correspondence"), None),),
    "pose": ((_sources("pose", 100), None),),
}
# What else is told of each benchmark under its table: the metric, and how it is written.
DETAILS = {
    "depth": {"abs_rel": "AbsRel {:.3f}", "scale_bias": "median of answer / truth {:.3f}"},
    "objects": {},
    "correspondence": {
        "epe_parsed": "EPE of those read {:.2f} px",
        "above_1px": "above 1 px {:.1%}",
        "above_2px": "2 px {:.1%}",
        "above_5px": "5 px {:.1%}",
    },
    "pose": {
        **{f"auc{n}": f"AUC@{n} {{:.1%}}" for n in (3, 5, 15)},
        **{f"auc{n}_signed": f"signed @{n} {{:.1%}}" for n in (3, 5, 15, 30)},
        "swap_rotation_deg": "both ways differ by {:.1f} deg in rotation",
        "swap_direction_deg": "{:.1f} deg in direction",
    },
}
_DEPTHLM_LABELS = "published numbers are of DepthLM's labels (--rules=depthlm), of SUN RGB-D and NYUv2 0.8 x metres"


@dataclasses.dataclass(frozen=True)
class Own:
    """What one output folder holds: by (benchmark, rules) the metrics, the headline's interval, and what is partial."""

    label: str
    found: Mapping[tuple[str, str], tuple[Mapping[str, float], tuple[float, float], str]]

    @classmethod
    def read(cls, label: str, out: storage.AnyPath) -> "Own":
        """Of the results that stand in an output folder."""
        found = [entry for bench in outputs.benches(out) for entry in load_results(bench.folder).entries]
        return cls.of(label, Results(tuple(found)), out)

    @classmethod
    def of(cls, label: str, results: Results, out: storage.AnyPath) -> "Own":
        """Of results of the benchmarks in an output folder."""
        found = {}
        for bench in outputs.benches(out):
            one = bench.asked
            entry = results.entry(one.key, one.benchmark.task)
            if entry is not None:
                score = entry.scores["model"]
                interval = (score.low, score.high) if entry.headline == one.benchmark.metric else (math.nan, math.nan)
                found[one.benchmark.name, one.rules] = score.metrics, interval, bench.partial
        return cls(label, found)

    def value(self, source: Source, rules: str) -> float | None:
        """An entry; None if it was not run, or has no value."""
        metrics = self.found.get((source.benchmark, rules), ({},))[0]
        value = metrics.get(source.metric, math.nan)
        return None if math.isnan(value) else source.factor * value

    def interval(self, source: Source, rules: str) -> tuple[float, float] | None:
        """The 95 % interval of an entry, where it is its benchmark's headline."""
        _, (low, high), _ = self.found.get((source.benchmark, rules), ({}, (math.nan, math.nan), ""))
        headline = source.metric == BENCHMARKS[source.benchmark].metric
        return None if math.isnan(low) or not headline else (source.factor * low, source.factor * high)


@dataclasses.dataclass(frozen=True)
class Line:
    """A row: its entries, the mean or overall value (as published, or of all columns), and that of the columns run."""

    name: str
    values: tuple[float | None, ...]
    overall: float | None
    shared: float | None
    intervals: tuple[tuple[float, float] | None, ...] = ()


@dataclasses.dataclass(frozen=True)
class Block:
    """One table: `lines` published, then `own`; `run`: the columns of the mean that all own rows have.

    `partial`: whether the mean covers more columns than were run. `pooled`: the last column is no mean of the others.
    """

    task: str
    metric: str
    rules: str
    higher_is_better: bool
    digits: int
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    own: tuple[Line, ...]
    run: tuple[str, ...]
    partial: bool
    pooled: bool
    overall: str
    notes: tuple[str, ...]
    details: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What it shows."""
        labels = " on DepthLM's labels" if self.rules == "depthlm" else ""
        return f"{self.task}: {self.metric}{labels} {'↑' if self.higher_is_better else '↓'}"

    def differences(self, line: Line) -> tuple[float | None, ...]:
        """The last own row minus a published one: each entry, the overall value, and the mean of the columns run."""
        mine = self.own[-1]
        pairs = zip((*mine.values, mine.overall, mine.shared), (*line.values, line.overall, line.shared), strict=True)
        return tuple(None if None in pair else pair[0] - pair[1] for pair in pairs)

    def cells(self) -> list[list[str]]:
        """As text: a header, published rows with "value (own - this)", then of each own row values and intervals."""
        header = ["answers by", *self.columns, f"{self.overall} as published"]
        last = [] if self.pooled or not self.run else [f"mean of {len(self.run)} run" if self.partial else "mean here"]
        rows = [header + last]
        for line in self.lines:
            shown = zip((*line.values, line.overall, line.shared), self.differences(line), strict=True)
            rows.append([line.name, *(self._with(*pair) for pair in shown)][: len(rows[0])])
        for line in self.own:
            overall = "partial" if line.overall is None and self.partial else self._text(line.overall)
            rows.append([line.name, *map(self._text, line.values), overall, self._text(line.shared)][: len(rows[0])])
            spans = ["" if one is None else f"{self._text(one[0])} to {self._text(one[1])}" for one in line.intervals]
            if any(spans):
                rows.append(["  95 % interval", *spans, "", ""][: len(rows[0])])
        return rows

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        tree = dataclasses.asdict(self) | {"title": self.title}
        tree["differences"] = {line.name: self.differences(line) for line in self.lines}
        return tree

    def _text(self, value: float | None) -> str:
        return "–" if value is None else f"{value:.{self.digits}f}"

    def _with(self, value: float | None, difference: float | None) -> str:
        return self._text(value) + ("" if difference is None else f" ({difference:+.{self.digits}f})")


@dataclasses.dataclass(frozen=True)
class Tables:
    """All tables of some output folders; `missing`: by benchmark why it was not run."""

    blocks: tuple[Block, ...]
    missing: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def untouched(self) -> tuple[str, ...]:
        """Tasks with published tables of which nothing was run; () where no benchmark was."""
        run = {block.task for block in self.blocks}
        return tuple(task for task in SOURCES if run and task not in run)

    @property
    def _untouched(self) -> str:
        return f"no benchmark of {', '.join(self.untouched)}"

    def markdown(self) -> str:
        """For a file, or another's report."""
        parts = []
        for block in self.blocks:
            header, *rows = block.cells()
            lines = [f"## {block.title}", "", _row(header), _row(["---"] * len(header)), *map(_row, rows), ""]
            told = (*block.details, *block.notes)
            parts.append("\n".join([*lines, *(f"- {note}" for note in told), ""]))
        left = [self._untouched] if self.untouched else []
        left += [f"{name}: {why}" for name, why in self.missing.items()]
        if left:
            parts.append("\n".join(["## Not run", "", *(f"- {line}" for line in left), ""]))
        return "\n".join(parts)

    def rich(self):
        """For the terminal."""
        import rich.box
        import rich.console
        import rich.table

        found: list = []
        for block in self.blocks:
            header, *rows = block.cells()
            table = rich.table.Table(title=block.title, box=rich.box.SIMPLE_HEAD, title_justify="left")
            for number, name in enumerate(header):
                table.add_column(name, justify="right" if number else "left", overflow="fold")
            for number, row in enumerate(rows):
                own = number >= len(block.lines)
                table.add_row(*row, style="bold" if own else None, end_section=number == len(block.lines) - 1)
            found += [table, *(f"  {note}" for note in (*block.details, *block.notes))]
        found += [f"not run: {self._untouched}"] if self.untouched else []
        found += [f"not run: {name}: {why}" for name, why in self.missing.items()]
        return rich.console.Group(*found)

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "blocks": [block.to_json() for block in self.blocks],
            "not_run": dict(self.missing),
            "untouched": self.untouched,
        }


def read(out: storage.AnyPath, missing: Mapping[str, str] = {}) -> Tables:
    """The tables of an output folder."""
    return of([Own.read(outputs.answers_by(out) or out.name, out)], missing)


def write(out: storage.AnyPath, missing: Mapping[str, str] = {}) -> Tables:
    """The tables of an output folder, also as benchmarks.json and benchmarks.md in it."""
    found = read(out, missing)
    write_text(out / f"{FILE}.json", json.dumps(found.to_json(), indent=1) + "\n")
    # A name from the command line need not be text.
    write_text(out / f"{FILE}.md", found.markdown(), errors="backslashreplace")
    return found


def of(owns: Sequence[Own], missing: Mapping[str, str] = {}) -> Tables:
    """The tables of all tasks that one of the rows has results of."""
    blocks = []
    for rules in RULES:
        for task, layout in SOURCES.items():
            for table, (sources, overall) in zip(published.table(task), layout, strict=True):
                blocks.append(_block(table, sources, overall, owns, rules, missing))
    return Tables(tuple(block for block in blocks if block is not None), missing)


def _block(table: published.Table, sources, overall, owns: Sequence[Own], rules: str, missing) -> Block | None:
    """One table; None if none of the own rows has an entry of it."""
    extra = _extra(table, owns, rules)
    every = (*sources, *(Source(b.name, b.metric, sources[0].factor) for b in extra))
    values = [[own.value(source, rules) for source in every] for own in owns]
    if not any(value is not None for row in values for value in row):
        return None
    run = [c for c in table.averaged if all(row[c] is not None for row in values)]
    partial = len(run) < len(table.averaged)

    def line(name, entries, whole, intervals=()) -> Line:
        shared = None if overall or not run or any(entries[c] is None for c in run) else _mean(entries[c] for c in run)
        return Line(name, tuple(entries), whole, shared, tuple(intervals))

    lines = [line(row.model, [*row.values, *[None] * len(extra)], row.published) for row in table.rows]
    own = []
    for one, row in zip(owns, values, strict=True):
        mean = None if partial else _mean(row[c] for c in table.averaged)
        whole = one.value(overall, rules) if overall else mean
        own.append(line(one.label, row, whole, [one.interval(source, rules) for source in every]))
    return Block(
        task=table.task,
        metric=table.metric,
        rules=rules,
        higher_is_better=table.higher_is_better,
        digits=table.digits,
        columns=(*table.columns, *(f"{one.title} *" for one in extra)),
        lines=tuple(lines),
        own=tuple(own),
        run=tuple(table.columns[c] for c in run),
        partial=partial and not overall,
        pooled=overall is not None,
        overall=table.overall,
        notes=tuple(_notes(table, every, extra, owns, rules, values)),
        details=tuple(_details(every, owns, rules)),
    )


def _details(sources, owns: Sequence[Own], rules: str) -> list[str]:
    """A line for each benchmark of each own row: further metrics, and how many answers could not be read."""
    lines = []
    for own in owns:
        whose = f"{own.label}, " if len(owns) > 1 else ""
        for name in dict.fromkeys(source.benchmark for source in sources):
            metrics = own.found.get((name, rules), ({},))[0]
            if metrics:
                known = DETAILS[BENCHMARKS[name].task].items()
                told = [form.format(metrics[key]) for key, form in known if math.isfinite(metrics.get(key, math.nan))]
                told.append(f"{metrics['parse_failures']:,} of {metrics['count']:,} answers unread")
                lines.append(f"{whose}{name}: {', '.join(told)}")
    return lines


def _extra(table: published.Table, owns, rules: str) -> list[Benchmark]:
    """Benchmarks of the task that no published table has a column for, and that were run."""
    run = {name for own in owns for name, labels in own.found if labels == rules}
    return [b for b in BENCHMARKS.values() if b.task == table.task and b.name in run and not b.published]


def _notes(table: published.Table, sources, extra, owns, rules: str, values) -> list[str]:
    notes = []
    titles = (*table.columns, *(one.title for one in extra))
    for own in owns:
        whose = f"{own.label}: " if len(owns) > 1 else ""
        for title, source in zip(titles, sources, strict=True):
            partial = own.found.get((source.benchmark, rules), ({}, (), ""))[2]
            if partial and f"{whose}{title}: {partial}" not in notes:
                notes.append(f"{whose}{title}: {partial}")
    if notes:
        notes.append("means are over these parts of the sets")
    if len(owns) > 1:
        notes.append(f"in brackets: {owns[-1].label} minus the published value")
    left = [title for c, title in enumerate(table.columns) if all(row[c] is None for row in values)]
    if left:
        notes.append(f"not run: {', '.join(left)}")
    if extra:
        notes.append("* no published column")
    if table.task == "depth" and rules == "metres":
        notes.append(_DEPTHLM_LABELS)
    return notes


def _mean(values) -> float:
    found = list(values)
    return sum(found) / len(found)


def _row(cells) -> str:
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"
