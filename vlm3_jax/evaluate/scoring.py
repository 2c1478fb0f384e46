"""From predictions on disk to scores: every answer is read once, and no model or data set is needed."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm3_jax import storage, tasks
from vlm3_jax.errors import UserError
from vlm3_jax.evaluate import outputs, statistics, swap
from vlm3_jax.evaluate.predictions import FILE, read_predictions
from vlm3_jax.evaluate.results import Entry, Results, Score


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
    """All answers of one variant to one task's questions about one component, in the order of predictions.jsonl.

    `rows` as they were read, what each prediction says (`Task.parse`), and `scores` (`Task.item_scores`).
    """

    rows: list[dict[str, Any]]
    parsed: list[Any | None]
    scores: np.ndarray

    @classmethod
    def of(cls, task: tasks.Task, rows: list[dict[str, Any]]) -> "Answers":
        """Of rows of one variant: what their texts say, or the `value` of one that is no text."""
        targets = [row["target"] for row in rows]
        parsed = [
            row["value"] if "value" in row else task.parse(row["prediction"], target)
            for row, target in zip(rows, targets, strict=True)
        ]
        return cls(rows, parsed, task.item_scores(parsed, targets))

    @property
    def targets(self) -> list[dict[str, Any]]:
        """What the questions' answers are scored against."""
        return [row["target"] for row in self.rows]

    @property
    def records(self) -> list[str]:
        """The record of each question: the cluster of intervals."""
        return [row["record"] for row in self.rows]


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """One task on one component: its answers by variant, all to the same questions in the same order.

    `folder`: where they, and pictures of their images, were read. `manifest`: the checksum of what a benchmark asks.
    """

    component: str
    task: tasks.Task
    variants: dict[str, Answers]
    folder: storage.AnyPath | None = None
    manifest: str = ""

    @property
    def model(self) -> Answers:
        """The answers that are judged; the other variants are what they must beat."""
        return self.variants["model"]


def read_cells(folder: storage.AnyPath) -> list[Cell]:
    """The answers in an evaluation's output folder, in the order of `tasks.TASKS`, then as written.

    Of a folder of benchmarks those of all. UserError if variants hold different questions, or if there are no answers.
    """
    if benches := list(outputs.benches(storage.path(folder))):
        cells = [
            dataclasses.replace(cell, manifest=bench.sha256) for bench in benches for cell in _read_cells(bench.folder)
        ]
        return sorted(cells, key=lambda cell: list(tasks.TASKS).index(cell.task.name))
    return _read_cells(folder)


def _read_cells(folder: storage.AnyPath) -> list[Cell]:
    found = collections.defaultdict(lambda: collections.defaultdict(list))
    for row in read_predictions(folder):
        found[row["task"], row["component"]][row["variant"]].append(row)
    cells = []
    for (task, component), variants in sorted(found.items(), key=lambda item: list(tasks.TASKS).index(item[0][0])):
        asked = {variant: [row["id"] for row in rows] for variant, rows in variants.items()}
        if any(ids != asked.get("model") for ids in asked.values()):
            raise UserError(
                f"{storage.path(folder) / FILE}: the variants of {task} on {component} must hold the same questions in "
                f"the same order, model among them; found {', '.join(f'{v}: {len(ids)}' for v, ids in asked.items())}"
            )
        if twice := [id for id, count in collections.Counter(asked["model"]).items() if count > 1]:
            raise UserError(
                f"{storage.path(folder) / FILE}: {len(twice)} questions of {task} on {component} stand there twice, "
                f"the first is {twice[0]!r}; keep one row of each"
            )
        judge = tasks.get(task)
        answers = {name: Answers.of(judge, rows) for name, rows in variants.items()}
        cells.append(Cell(component, judge, answers, storage.path(folder)))
    return cells


def rescore(folder: storage.AnyPath) -> Results:
    """Score the rows of `folder`/predictions.jsonl and write results.json beside them; no model is asked."""
    results = score(read_cells(folder))
    results.save(folder)
    return results


def score(cells: Sequence[Cell]) -> Results:
    """Scores of every task on every component: the variants, then the references, each compared with the model."""
    swapped = {cell.component: cell.model for cell in cells if cell.component.endswith(swap.SWAPPED)}
    return Results(tuple(_entry(cell, swapped.get(cell.component + swap.SWAPPED)) for cell in cells))


def before_after(before: Sequence[Cell], after: Sequence[Cell]) -> dict[tuple[str, str], tuple[float, float, float]]:
    """Paired difference after - before of the model's scores, by (component, task), over the questions of both runs.

    Questions of a benchmark are the same by their ids, however the models were asked. UserError if these are of two
    manifests.
    """
    return {
        key: statistics.paired_difference(own.scores[common], theirs, [own.records[i] for i in common])
        for key, own, common, theirs in _matched(before, after)
    }


def in_common(before: Sequence[Cell], after: Sequence[Cell]) -> dict[tuple[str, str], int]:
    """How many questions both runs answered, by (component, task), where either has answered others too."""
    asked = {(cell.component, cell.task.name): len(cell.model.rows) for cell in before}
    return {
        key: len(common)
        for key, own, common, _ in _matched(before, after)
        if not len(own.rows) == len(common) == asked[key]
    }


def _matched(before: Sequence[Cell], after: Sequence[Cell]):
    """(component, task), the answers after, the numbers of those that both gave, and the scores of these before."""
    earlier = {(cell.component, cell.task.name): cell for cell in before}
    for cell in after:
        key, own = (cell.component, cell.task.name), cell.model
        if key in earlier:
            other = earlier[key]
            if other.manifest != cell.manifest:
                raise UserError(
                    f"{other.folder} and {cell.folder}: asked by two manifests of {cell.component}, so their items "
                    "cannot be compared"
                )
            name = _id if cell.manifest else _question
            theirs = dict(zip(map(name, other.model.rows), other.model.scores, strict=True))
            common = [i for i, row in enumerate(own.rows) if name(row) in theirs]
            yield key, own, common, [theirs[name(own.rows[i])] for i in common]


def _question(row: dict[str, Any]) -> tuple[str, str]:
    return row["id"], row["question"]


def _id(row: dict[str, Any]) -> str:
    return row["id"]


def references(task: tasks.Task, targets: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Parsed answers that need no model, by name: the best constant, then what the task adds."""
    extra = {name.replace("_", " "): parsed for name, parsed in task.extra_references(targets).items()}
    return {"best constant": task.constant_answers(targets), **extra}


def _entry(cell: Cell, swapped: Answers | None = None) -> Entry:
    """Of a cell, and of pairs that were asked about the other way round too."""
    task, targets, records = cell.task, cell.model.targets, cell.model.records
    scores = {variant: answers.scores for variant, answers in cell.variants.items()}
    metrics = {variant: task.metrics(answers.parsed, targets) for variant, answers in cell.variants.items()}
    if swapped is not None:
        metrics["model"] |= swap.consistency(cell.model.parsed, targets, swapped.parsed, swapped.targets)
    for name, parsed in references(task, targets).items():
        scores[name] = task.item_scores(parsed, targets)
    return Entry(
        cell.component,
        task.name,
        task.headline,
        task.higher_is_better,
        len(set(records)),
        {name: _score(name, scores, metrics.get(name, {}), records) for name in scores},
    )


def _score(name: str, scores: Mapping[str, np.ndarray], metrics: dict[str, float], records: list[str]) -> Score:
    own = np.asarray(scores[name], np.float64)
    return Score(
        statistics.mean(own),
        *statistics.bootstrap_interval(own, records),
        count=int((~np.isnan(own)).sum()),
        answers=len(own),
        failures=int(metrics.get("parse_failures", 0)),
        metrics={k: v if isinstance(v, int) else float(v) for k, v in metrics.items()},
        gain=None if name == "model" else statistics.paired_difference(scores["model"], own, records),
    )
