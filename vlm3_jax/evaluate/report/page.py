"""One HTML file that shows an evaluation: what ran, scores with their references, loss curves and pictures.

Everything is inside the file (styles, pictures as data URLs) and it needs no script. The template (page.html) escapes
all text: answers come from a model and names from data files.
"""

import base64
import dataclasses
import importlib.metadata
import json
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from vlm3_jax import storage
from vlm3_jax.errors import UserError
from vlm3_jax.evaluate import published
from vlm3_jax.evaluate.compare import Compared
from vlm3_jax.evaluate.report import panels, pictures
from vlm3_jax.evaluate.results import Entry, Results, Score, arrow, gain_text, interval, number, unreadable
from vlm3_jax.files import write_text

# Encoded pictures beyond this are left out and counted, so that the file stays below 3 MB.
PICTURE_BYTES = 2_000_000
PACKAGES = ("vlm3-jax", "jax", "flax", "optax", "numpy", "transformers")

_MEANING = {
    "model": "the model, images as they are",
    "blind": "the model, every image grey",
    "shuffled": "the model, another record's image",
    "best constant": "one fixed answer, the best for these questions",
}
_TEMPLATE = pathlib.Path(__file__).with_name("page.html")


def write_report(
    out_html: storage.AnyPath,
    runs: Mapping[str, storage.AnyPath],
    *,
    title: str = "VLM3 in JAX: evaluation",
    metrics: storage.AnyPath | None = None,
    summary: Mapping[str, str] | None = None,
    commands: Sequence[str] = (),
    compared: Compared | None = None,
) -> storage.AnyPath:
    """Write the report of one or more evaluations and return its path; their answers are scored anew.

    `runs`: label -> output folder of `evaluate`, in order, for example {"before training": ..., "after training": ...};
    the last one is the subject, the others are rows to compare with. `metrics`: the trainer's metrics.jsonl.
    `summary`: what was run, as shown (model, data, steps, hardware, ...). `compared`: of the runs, if they were read
    already. UserError if a folder lacks predictions or
    metrics are broken.
    """
    compared = compared or Compared.read(runs)
    cells, results, gains = compared.cells, compared.results, compared.gains
    label, folder = list(runs.items())[-1]
    album, entries = _Album(), results[label].entries
    beside = {block.task for block in compared.tables.blocks}
    alone = [task for task in dict.fromkeys(entry.task for entry in entries) if task not in beside]
    page = _environment().get_template(_TEMPLATE.name)
    text = page.render(
        title=title,
        label=label,
        summary=[*(summary or {}).items(), ("versions", _versions())],
        commands=commands,
        entries=[_entry(entry, _score_rows(entry, results, label, gains), album) for entry in entries],
        benchmarks=[
            (block.title, block.cells(), (*block.details, *block.notes), len(block.lines))
            for block in compared.tables.blocks
        ],
        published=[table for task in alone for table in published.table(task)],
        curves=metrics and album.add("loss against step", panels.curves(read_metrics(metrics))),
        panels=_pictures(panels.panels(folder, cells[label]), album),
        left_out=album.left_out,
    )
    out_html = storage.path(out_html)
    out_html.parent.mkdir(parents=True, exist_ok=True)
    # Half of a surrogate pair, which JSON may hold, is no text that a file can.
    write_text(out_html, text, errors="replace")
    return out_html


def read_metrics(path: storage.AnyPath) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl by step. Rows of one step are merged; after a resume the later row wins."""
    path = storage.path(path)
    rows: dict[int, dict[str, Any]] = {}
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: no such metrics file; give the trainer's metrics.jsonl or leave it out") from None
    for line_number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows.setdefault(int(row["step"]), {}).update(row)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}, line {line_number}: not a row with a step ({error}); remove the line") from None
    return [rows[step] for step in sorted(rows)]


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture inside the page."""

    alt: str
    src: str


class _Album:
    """Takes pictures in while the file has room for them."""

    def __init__(self):
        self.room, self.left_out = PICTURE_BYTES, 0

    def add(self, alt: str, data: bytes | None) -> Picture | None:
        """The picture as a data URL; None if there is none or it no longer fits."""
        if data is None:
            return None
        if len(data) > self.room:
            self.left_out += 1
            return None
        self.room -= len(data)
        kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
        return Picture(alt, f"data:image/{kind};base64,{base64.b64encode(data).decode()}")


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATE.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(arrow=arrow, number=number, gain=gain_text, unreadable=unreadable)
    environment.filters["interval"] = lambda score: interval(score.value, score.low, score.high)
    return environment


def _versions() -> str:
    versions = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(versions)


def _score_rows(entry: Entry, results: Mapping[str, Results], label: str, gains) -> list[tuple[str, str, Score]]:
    """(name, meaning, score): the subject, the other runs' models, then the subject's variants and references."""
    rows = [(label, _MEANING["model"], entry.scores["model"])]
    for other, gain in gains.items():
        theirs = results[other].entry(entry.component, entry.task)
        if theirs is not None:
            score = theirs.scores["model"]
            rows.append(
                (other, _MEANING["model"], dataclasses.replace(score, gain=gain.get((entry.component, entry.task))))
            )
    rows += [(name, _MEANING.get(name, ""), score) for name, score in entry.scores.items() if name != "model"]
    return rows


def _entry(entry: Entry, rows: list[tuple[str, str, Score]], album: _Album) -> dict[str, Any]:
    """What the template shows of one task on one component."""
    headline = f"{entry.headline} {arrow(entry)}"
    chart = pictures.intervals(
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


def _pictures(found: Mapping[str, Sequence[panels.Panel]], album: _Album) -> dict[str, list[dict[str, Any]]]:
    """By task, the panels that there is room for."""
    shown = {}
    for task, of_task in found.items():
        placed = [(album.add(panel.title, panel.picture), panel) for panel in of_task]
        shown[task] = [(picture, panel) for picture, panel in placed if picture]
    return {task: placed for task, placed in shown.items() if placed}
