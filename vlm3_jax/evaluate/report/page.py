"""One HTML file that shows an evaluation: what ran, scores with their references, loss curves and pictures.

Everything is inside the file (styles, pictures as data URLs) and it needs no script. All text is escaped: answers come
from a model and names from data files.
"""

import base64
import dataclasses
import html
import importlib.metadata
import json
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vlm3_jax.errors import UserError
from vlm3_jax.evaluate import published, run
from vlm3_jax.evaluate.results import (
    Entry,
    Results,
    Score,
    arrow,
    gain_text,
    interval,
    load_results,
    number,
    unreadable,
)

if TYPE_CHECKING:
    from vlm3_jax.evaluate.items import Item
    from vlm3_jax.tasks.base import Task

# Encoded pictures beyond this are left out and counted, so that the file stays below 3 MB.
PICTURE_BYTES = 2_000_000
PACKAGES = ("vlm3-jax", "jax", "flax", "optax", "numpy", "transformers")

_MEANING = {
    "model": "the model, images as they are",
    "blind": "the model, every image grey",
    "shuffled": "the model, another record's image",
    "best constant": "one fixed answer, the best for these items",
}

_STYLE = """
body { font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; color: #1f2933;
  background: #f7f8fa; margin: 0; }
main { max-width: 1020px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 38px 0 8px; }
h3 { font-size: 15px; margin: 0 0 8px; } p { margin: 6px 0; max-width: 78ch; } .soft { color: #616e7c; }
section.card { background: #fff; border: 1px solid #e4e7eb; border-radius: 8px; padding: 14px 16px; margin: 12px 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13.5px; } th { text-align: left; font-weight: 600; color: #52606d; }
th, td { padding: 4px 12px 4px 0; border-bottom: 1px solid #e4e7eb; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.main td { font-weight: 600; } pre, code { font: 12.5px/1.45 ui-monospace, Menlo, Consolas, monospace; }
pre { background: #fff; border: 1px solid #e4e7eb; border-radius: 8px; padding: 10px 12px; white-space: pre-wrap;
  overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; } figure { margin: 14px 0 20px; } figcaption { font-size: 13px; color: #52606d; }
figcaption li { overflow-wrap: anywhere; } details summary { cursor: pointer; color: #2458a6; margin: 8px 0 4px; }
.note { background: #fff8e6; border: 1px solid #f2d98d; border-radius: 8px; padding: 8px 12px; }
"""


def write_report(
    out_html: pathlib.Path,
    runs: Mapping[str, pathlib.Path],
    *,
    title: str = "VLM3 in JAX: evaluation",
    metrics: pathlib.Path | None = None,
    summary: Mapping[str, str] | None = None,
    commands: Sequence[str] = (),
    items: Sequence["Item"] = (),
    tasks: Mapping[str, "Task"] | None = None,
    pictures_per_task: int = 6,
) -> pathlib.Path:
    """Write the report of one or more evaluations and return its path.

    `runs`: label -> output folder of `evaluate`, in order, for example {"before training": ..., "after training": ...};
    the last one is the subject, the others are rows to compare with. `metrics`: the trainer's metrics.jsonl.
    `summary`: what was run, as shown (model, data, steps, hardware, ...). `items`: the evaluated items; without them
    there are no pictures of images. UserError if a folder lacks results, metrics are broken or matplotlib is missing.
    """
    from vlm3_jax.evaluate.report import panels

    results = {label: load_results(folder) for label, folder in runs.items()}
    label, folder = list(runs.items())[-1]
    gains = {other: run.before_after(runs[other], folder, tasks) for other in runs if other != label}
    album = _Album()
    parts = [_what_was_run(summary or {}, commands), _scores(results, label, gains, album)]
    parts.append(_published(sorted({e.task for e in results[label].entries})))
    if metrics is not None:
        parts.append(_curves(panels.curves(read_metrics(metrics)), album))
    found = panels.panels(run.read_predictions(folder), items, tasks, pictures_per_task)
    parts.append(_pictures(found, album))
    out_html = pathlib.Path(out_html)
    out_html.parent.mkdir(parents=True, exist_ok=True)
    aside = out_html.with_name(out_html.name + ".part")
    aside.write_text(_page(title, parts), encoding="utf-8")
    aside.rename(out_html)
    return out_html


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl by step. Rows of one step are merged; after a resume the later row wins."""
    path = pathlib.Path(path)
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


class _Album:
    """Turns pictures into tags while the file has room for them."""

    def __init__(self):
        self.room, self.left_out = PICTURE_BYTES, 0

    def image(self, data: bytes, alt: str) -> str:
        """An img tag, or "" if the picture no longer fits."""
        if len(data) > self.room:
            self.left_out += 1
            return ""
        self.room -= len(data)
        kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
        return f'<img alt="{_text(alt)}" src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'


def _page(title: str, parts: Sequence[str]) -> str:
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{_text(title)}</title>'
        f"<style>{_STYLE}</style></head><body><main><h1>{_text(title)}</h1>\n"
        + "\n".join(parts)
        + "\n</main></body></html>\n"
    )


def _what_was_run(summary: Mapping[str, str], commands: Sequence[str]) -> str:
    versions = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    rows = [*summary.items(), ("versions", ", ".join(versions))]
    table = _table([], [[k, v] for k, v in rows])
    shown = f"<pre>{_text(chr(10).join(commands))}</pre>" if commands else ""
    return f'<h2>What was run</h2><section class="card scroll">{table}</section>{shown}'


def _scores(results: Mapping[str, Results], label: str, gains: Mapping[str, Mapping], album: _Album) -> str:
    out = [
        "<h2>Scores</h2><p>↑ higher is better, ↓ lower is better. Brackets are 95 % intervals (bootstrap over images). "
        f"“{_text(label)} − this” is the paired difference on the same items: if its interval holds 0, the "
        "evaluation cannot tell the two apart. Unreadable answers count as wrong (a match as if it were the image "
        "centre). For pose, pairs are scored and not answers.</p>"
    ]
    for entry in results[label].entries:
        rows = _score_rows(entry, results, label, gains)
        out.append(_score_card(entry, rows, label, album))
    return "\n".join(out)


def _score_rows(entry: Entry, results, label: str, gains) -> list[tuple[str, str, Score]]:
    """(name, meaning, score): the subject, the other runs' models, then the subject's variants and references."""
    rows = [(label, _MEANING["model"], entry.scores["model"])]
    for other, gain in gains.items():
        theirs = results[other].entry(entry.source, entry.task)
        if theirs is not None:
            score = theirs.scores["model"]
            rows.append(
                (other, _MEANING["model"], dataclasses.replace(score, gain=gain.get((entry.source, entry.task))))
            )
    rows += [(name, _MEANING.get(name, ""), score) for name, score in entry.scores.items() if name != "model"]
    return rows


def _score_card(entry: Entry, rows: list[tuple[str, str, Score]], label: str, album: _Album) -> str:
    from vlm3_jax.evaluate.report import pictures

    headline = f"{entry.headline} {arrow(entry)}"
    header = ["answers by", "", headline, f"{label} − this", "unreadable", "scored"]
    cells = [
        [name, meaning, interval(s.value, s.low, s.high), gain_text(s), unreadable(s), str(s.count)]
        for name, meaning, s in rows
    ]
    chart = pictures.intervals(
        [name for name, _, _ in rows],
        *([getattr(s, k) for _, _, s in rows] for k in ("value", "low", "high")),
        headline,
    )
    named = [(name, s) for name, _, s in rows if s.metrics]
    keys = list(dict.fromkeys(key for _, s in named for key in s.metrics))
    every = _table(
        ["metric", *(name for name, _ in named)],
        [[key, *(number(s.metrics[key]) if key in s.metrics else "–" for _, s in named)] for key in keys],
        numbers_from=1,
    )
    return (
        f'<section class="card"><h3>{_text(entry.task)} on {_text(entry.source)} '
        f'<span class="soft">({entry.records} images or pairs)</span></h3>'
        f'<div class="scroll">{_table(header, cells, numbers_from=2, main=True)}</div>'
        f"{album.image(chart, f'{entry.task} on {entry.source}: {headline} with intervals')}"
        f'<details><summary>all metrics</summary><div class="scroll">{every}</div></details></section>'
    )


def _published(tasks: Sequence[str]) -> str:
    tables = [table for task in tasks for table in published.table(task)]
    if not tables:
        return ""
    out = [
        "<h2>Published results, for context</h2>"
        '<p class="note">Not comparable with the scores above unless those are of the same public benchmark: a small '
        "model on its own or synthetic data answers easier questions about other images. Two published means do not "
        "follow from their entries, so the plain mean of the entries stands beside each.</p>"
    ]
    for table in tables:
        header, *rows = table.cells()
        mark = "↑" if table.higher_is_better else "↓"
        caption = f"{table.task}: {table.metric} {mark} ({table.source})"
        out.append(
            f"<details open><summary>{_text(caption)}</summary>"
            f'<div class="scroll">{_table(header, rows, numbers_from=1)}</div></details>'
        )
    return "\n".join(out)


def _curves(data: bytes | None, album: _Album) -> str:
    if data is None:
        return ""
    return (
        "<h2>Loss</h2><p>Dashed: what a language model loses that knows the other answers and sees no image. A loss "
        "that stays there has learnt nothing from the images.</p>"
        f"<figure>{album.image(data, 'loss against step')}</figure>"
    )


def _pictures(found, album: _Album) -> str:
    """`found`: task -> panels (see panels.Panel)."""
    out = []
    for task, shown in found.items():
        figures = []
        for panel in shown:
            tag = album.image(panel.picture, panel.title)
            if tag:
                lines = "".join(f"<li>{_text(line)}</li>" for line in panel.lines)
                figures.append(
                    f"<figure>{tag}<figcaption>{_text(panel.title)}<ul>{lines}</ul></figcaption></figure>"
                    if lines
                    else f"<figure>{tag}<figcaption>{_text(panel.title)}</figcaption></figure>"
                )
        if figures:
            out.append(f'<section class="card"><h3>{_text(task)}</h3>{"".join(figures)}</section>')
    if album.left_out:
        out.append(f'<p class="soft">{album.left_out} pictures left out to keep this file small.</p>')
    return "<h2>Pictures</h2>" + "".join(out) if out else ""


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers_from: int = 99, main: bool = False) -> str:
    """A table; columns from `numbers_from` on are right-aligned, `main` marks the first row."""

    def cell(tag, column, text):
        mark = ' class="n"' if column >= numbers_from else ""
        return f"<{tag}{mark}>{_text(text)}</{tag}>"

    head = f"<tr>{''.join(cell('th', k, text) for k, text in enumerate(header))}</tr>" if header else ""
    body = ""
    for k, row in enumerate(rows):
        mark = ' class="main"' if main and k == 0 else ""
        body += f"<tr{mark}>{''.join(cell('td', c, text) for c, text in enumerate(row))}</tr>"
    return f"<table>{head}{body}</table>"


def _text(value: Any) -> str:
    return html.escape(str(value), quote=True)
