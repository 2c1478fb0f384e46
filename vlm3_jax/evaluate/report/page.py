"""One HTML file that shows an evaluation: what ran, and task by task its tables, charts and pictures.

Everything is inside the file (styles, pictures as data URLs) and it needs no script. The template (page.html) escapes
all text: answers come from a model and names from data files.
"""

import importlib.metadata
import json
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from vlm3_jax import storage
from vlm3_jax.errors import UserError
from vlm3_jax.evaluate import outputs
from vlm3_jax.evaluate.compare import Compared
from vlm3_jax.evaluate.report import panels, section
from vlm3_jax.evaluate.report.album import Album
from vlm3_jax.evaluate.results import arrow, gain_text, interval, number, unreadable
from vlm3_jax.files import write_text

PACKAGES = ("vlm3-jax", "jax", "flax", "optax", "numpy", "transformers")

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
    already. UserError if a folder lacks predictions or metrics are broken.
    """
    compared = compared or Compared.read(runs)
    label = list(runs)[-1]
    album = Album()
    text = (
        _environment()
        .get_template(_TEMPLATE.name)
        .render(
            title=title,
            label=label,
            summary=[*(summary or _told(runs)).items(), ("page made by", _versions())],
            untouched=compared.tables.untouched,
            commands=commands,
            sections=[section.of_task(task, compared, runs[label], album) for task in section.tasks(compared)],
            curves=metrics and album.add("loss against step", panels.curves(read_metrics(metrics))),
            left_out=album.left_out,
        )
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


def _told(runs: Mapping[str, storage.AnyPath]) -> dict[str, str]:
    """Where the answers are, and what their folders tell of whoever gave them."""
    told = {}
    for label, folder in runs.items():
        about = outputs.told(storage.path(folder))
        parts = [f"{name} {about[name]}" for name in ("from", "dtype", "max_new_tokens") if name in about]
        told[label] = ", ".join([str(folder), *parts])
    return told


def _versions() -> str:
    versions = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(versions)
