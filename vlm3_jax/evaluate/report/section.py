"""What the page says of one task: tables, scores, where the errors are, and pictures."""

import dataclasses
import math
from typing import Any

from vlm3_jax import storage
from vlm3_jax.evaluate import published
from vlm3_jax.evaluate.compare import Compared
from vlm3_jax.evaluate.report import charts, groups, panels
from vlm3_jax.evaluate.report.album import Album
from vlm3_jax.evaluate.results import Entry, Score, arrow, interval
from vlm3_jax.evaluate.scoring import Cell
from vlm3_jax.evaluate.swap import SWAPPED
from vlm3_jax.tasks import TASKS

_MEANING = {
    "model": "the model, images as they are",
    "blind": "the model, every image grey",
    "shuffled": "the model, another record's image",
    "best constant": "one fixed answer, the best for these questions",
    "copy query": "the pixel that was asked about",
}
# Of many scenes a chart shows so many of the worst, and of the best.
_WORST, _BEST = 12, 6
# Besides the subject, so many runs and variants are drawn against depth.
_LINES = 4


def tasks(compared: Compared) -> list[str]:
    """The tasks that the subject was asked, or that a table has rows of, depth first."""
    asked = {entry.task for entry in compared.results[compared.subject].entries}
    asked |= {block.task for block in compared.tables.blocks}
    return [task for task in TASKS if task in asked]


def of_task(task: str, compared: Compared, folder: storage.AnyPath, album: Album) -> dict[str, Any]:
    """All that the template shows of a task; `folder`: the subject's output. Pictures go to the album."""
    subject, results = compared.subject, compared.results
    cells = [cell for cell in compared.cells[subject] if cell.task.name == task]
    blocks = [block for block in compared.tables.blocks if block.task == task]
    entries = [entry for entry in results[subject].entries if entry.task == task]
    return {
        "task": task,
        "benchmarks": [
            (block.title, block.cells(), (*block.details, *block.notes), len(block.lines)) for block in blocks
        ],
        "entries": [_entry(entry, _score_rows(entry, compared), album) for entry in entries],
        "depths": [_by_depth(cell, compared, album) for cell in cells if task == "depth"],
        "scenes": [found for cell in cells if (found := _by_scene(cell, album))],
        "spreads": [found for cell in cells if task == "depth" and (found := _reliability(cell, album))],
        "worst": [_placed(panel, album) for panel in panels.worst(folder, cells)],
        "examples": [
            placed for panel in panels.examples(folder, cells) if (placed := _placed(panel, album))["picture"]
        ],
        "published": [] if blocks else published.table(task),
    }


def _score_rows(entry: Entry, compared: Compared) -> list[tuple[str, str, Score]]:
    """(name, meaning, score): the subject, the other runs' models, then the subject's variants and references."""
    rows = [(compared.subject, _MEANING["model"], entry.scores["model"])]
    key = entry.component, entry.task
    for other, gain in compared.gains.items():
        theirs = compared.results[other].entry(*key)
        if theirs is not None:
            common = compared.common.get(other, {}).get(key)
            meaning = _MEANING["model"] if common is None else f"{_MEANING['model']}; {common:,} questions in common"
            rows.append((other, meaning, dataclasses.replace(theirs.scores["model"], gain=gain.get(key))))
    rows += [(name, _MEANING.get(name, ""), score) for name, score in entry.scores.items() if name != "model"]
    return rows


def _entry(entry: Entry, rows: list[tuple[str, str, Score]], album: Album) -> dict[str, Any]:
    """What the template shows of one task on one component."""
    headline = f"{entry.headline} {arrow(entry)}"
    chart = charts.intervals(
        [name for name, _, _ in rows],
        *([getattr(score, end) for _, _, score in rows] for end in ("value", "low", "high")),
        headline,
    )
    named = [(name, score) for name, _, score in rows if score.metrics]
    return {
        "title": f"{entry.task} on {entry.component}",
        "records": entry.records,
        "headline": headline,
        "rows": rows,
        "chart": album.add(f"{entry.task} on {entry.component}: {headline} with intervals", chart),
        "named": named,
        "metrics": list(dict.fromkeys(key for _, score in named for key in score.metrics)),
    }


def _by_depth(cell: Cell, compared: Compared, album: Album) -> dict[str, Any]:
    """The scatter, and a chart and a table of the errors in groups of true depth."""
    bins = groups.by_depth(cell.model)
    others = {name: groups.by_depth(answers) for name, answers in cell.variants.items() if name != "model"}
    for label in compared.gains:
        for one in compared.cells[label]:
            if (one.component, one.task) == (cell.component, cell.task):
                others[label] = groups.by_depth(one.model)
    drawn = dict(list(others.items())[-_LINES:])
    points = f"{cell.component}: {len(cell.model.rows)} points"
    true_m, predicted_m = groups.depths(cell.model)
    scatter = charts.depth_scatter(true_m, predicted_m) if (predicted_m > 0).any() else None
    return {
        "title": points,
        "chart": album.add(f"error against depth, {points}", charts.by_depth(bins, drawn, compared.subject)),
        "scatter": album.add(f"answers against true depth, {points}", scatter),
        "bins": [(one, interval(one.delta1, one.low, one.high)) for one in bins],
    }


def _by_scene(cell: Cell, album: Album) -> dict[str, Any] | None:
    """A chart and a table of the scores of scenes, the worst first; None without scenes."""
    scenes = groups.by_scene(cell.model, cell.task.higher_is_better)
    if cell.component.endswith(SWAPPED) or not scenes:
        return None
    shown = scenes if len(scenes) <= _WORST + _BEST else scenes[:_WORST] + scenes[-_BEST:]
    headline = f"{cell.task.headline} {'↑' if cell.task.higher_is_better else '↓'}"
    values = [
        [one.value if math.isnan(getattr(one, end)) else getattr(one, end) for one in shown]
        for end in ("value", "low", "high")
    ]
    chart = charts.intervals([one.name[-40:] for one in shown], *values, headline, guide=False)
    left = len(scenes) - len(shown)
    return {
        "title": f"{cell.component}: {len(scenes)} scenes" + (f", {left} between not drawn" if left else ""),
        "headline": headline,
        "chart": album.add(f"{cell.component} by scene: {headline}", chart),
        "rows": [(one, interval(one.value, one.low, one.high)) for one in scenes],
    }


def _reliability(cell: Cell, album: Album) -> dict[str, Any] | None:
    """Whether the spreads that were told with depths are true; None where none were told."""
    found = groups.reliability(cell.model)
    if found is None:
        return None
    title = f"{cell.component}: {found.count} answers with a spread"
    chart = charts.reliability(found.spread_m, found.error_m)
    return {"title": title, "chart": album.add(f"errors against spreads, {title}", chart), "found": found}


def _placed(panel: panels.Panel, album: Album) -> dict[str, Any]:
    return {"title": panel.title, "picture": album.add(panel.title, panel.picture), "lines": panel.lines}
