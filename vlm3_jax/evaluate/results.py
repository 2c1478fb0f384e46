"""What an evaluation found: scores of the model and of its references, as values, JSON and a terminal table."""

import dataclasses
import json
import math
from typing import Any

import rich.box
import rich.table

from vlm3_jax import storage
from vlm3_jax.errors import UserError
from vlm3_jax.files import write_text

FILE = "results.json"


@dataclasses.dataclass(frozen=True)
class Score:
    """Headline `value` of one answerer with its 95 % interval, over `count` scored units (items; for pose pairs).

    `failures` of its `answers` could not be read. `metrics`: all metrics of the task; empty for a reference that gives
    values instead of text. `gain`: model - this one on the same items, as (difference, low, high); None for the model.
    """

    value: float
    low: float
    high: float
    count: int
    answers: int
    failures: int = 0
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    gain: tuple[float, float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Entry:
    """One task on one component. `scores` in order: model, then what it must beat; `records`: images or pairs."""

    component: str
    task: str
    headline: str
    higher_is_better: bool
    records: int
    scores: dict[str, Score]


@dataclasses.dataclass(frozen=True)
class Results:
    """All entries of an evaluation."""

    entries: tuple[Entry, ...]

    def entry(self, component: str, task: str) -> Entry | None:
        """The entry of one component and task, None if it was not evaluated."""
        return next((e for e in self.entries if (e.component, e.task) == (component, task)), None)

    def table(self) -> rich.table.Table:
        """For the terminal: a block of rows an entry, the model first."""
        table = rich.table.Table(title="Scores with 95 % intervals (images resampled)", box=rich.box.SIMPLE_HEAD)
        table.add_column("answers by", overflow="fold")
        for column in ("value", "model - this", "unread"):
            table.add_column(column, justify="right", no_wrap=True)
        for entry in self.entries:
            table.add_row(f"{entry.task} on {entry.component}", f"{entry.headline} {arrow(entry)}", style="bold")
            for name, score in entry.scores.items():
                last = name == list(entry.scores)[-1]
                cells = [interval(score.value, score.low, score.high), gain_text(score), unreadable(score)]
                table.add_row(name, *cells, end_section=last)
        return table

    def save(self, folder: storage.AnyPath) -> None:
        """Write results.json into `folder`; numbers that JSON lacks become the strings "nan" and "inf"."""
        write_text(storage.path(folder) / FILE, as_json(dataclasses.asdict(self), 1) + "\n")


def load_results(folder: storage.AnyPath) -> Results:
    """Read results.json of an evaluation's output folder. UserError if it is missing or not ours."""
    path = storage.path(folder) / FILE
    try:
        tree = json.loads(path.read_text())
        return Results(tuple(_entry(e) for e in tree["entries"]))
    except FileNotFoundError:
        raise UserError(f"{path}: no results here; run `vlm3 eval` with this output folder first") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a results file of vlm3 ({type(error).__name__}: {error})") from None


def arrow(entry: Entry) -> str:
    """How to read the headline: ↑ higher is better, ↓ lower is."""
    return "↑" if entry.higher_is_better else "↓"


def number(value: float, sign: str = "") -> str:
    """Counts whole, measures with four digits or so: shares, pixels and percent share a column."""
    if isinstance(value, int):
        return str(value)
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "∞"
    digits = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1
    return f"{value:{sign}.{digits}f}"


def interval(value: float, low: float, high: float, sign: str = "") -> str:
    """`value [low, high]`; the value alone where there is no interval."""
    text = number(value, sign)
    return text if math.isnan(low) else f"{text} [{number(low, sign)}, {number(high, sign)}]"


def gain_text(score: Score) -> str:
    """The paired difference model - this one, empty for the model."""
    return "" if score.gain is None else interval(*score.gain, sign="+")


def unreadable(score: Score) -> str:
    """Parse failures out of all answers; empty for a reference, which gives values and not text."""
    return f"{score.failures}/{score.answers}" if score.metrics else ""


def _entry(tree: dict[str, Any]) -> Entry:
    return Entry(**{**tree, "scores": {name: _score(s) for name, s in tree["scores"].items()}})


def _score(tree: dict[str, Any]) -> Score:
    metrics = {name: float(v) if isinstance(v, str) else v for name, v in tree["metrics"].items()}
    gain = None if tree["gain"] is None else tuple(map(float, tree["gain"]))
    floats = {name: float(tree[name]) for name in ("value", "low", "high")}
    return Score(**{**tree, **floats, "metrics": metrics, "gain": gain})


def as_json(tree, indent: int = 2) -> str:
    """JSON that every reader takes: numbers that it lacks become the strings "nan" and "inf"."""
    return json.dumps(_plain(tree), indent=indent, allow_nan=False)


def _plain(tree):
    if isinstance(tree, dict):
        return {k: _plain(v) for k, v in tree.items()}
    if isinstance(tree, list | tuple):
        return [_plain(v) for v in tree]
    return str(tree) if isinstance(tree, float) and not math.isfinite(tree) else tree
