"""Anybody's answers against a manifest: predictions and scores in the form that a model's own have.

Whatever the answers are (texts, numbers, depth maps, matches, poses), each question of the manifest gets what they say
about it, so that they stand in the same tables and are compared item by item.
"""

import dataclasses
import json
import pathlib
import typing
from collections.abc import Iterator
from typing import Any

from vlm3_jax import records, storage, tasks
from vlm3_jax.camera import AsIs
from vlm3_jax.errors import UserError
from vlm3_jax.evaluate import benchmarks, manifest, outputs, tables
from vlm3_jax.evaluate.foreign.maps import DepthMaps
from vlm3_jax.evaluate.foreign.matches import MatchFiles
from vlm3_jax.evaluate.foreign.poses import NOT_ASKED, read_poses
from vlm3_jax.evaluate.foreign.rows import Rows
from vlm3_jax.evaluate.foreign.shown import write_pictures
from vlm3_jax.evaluate.frozen import examples
from vlm3_jax.evaluate.manifest import Manifest
from vlm3_jax.evaluate.predictions import FILE
from vlm3_jax.evaluate.scoring import Answers, rescore
from vlm3_jax.files import Fields, write_text
from vlm3_jax.tasks.protocol import RELEASE, Protocol


class Source(typing.Protocol):
    """Who gives the answers."""

    def answers(self, row: manifest.Row, examples: list) -> list | None:
        """One a question of the row, None where there is none; None if there is nothing about the row."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What the files do not tell. `kind`, `scale`: of depth maps; `pose`, `metric`: of poses; `protocol`, `rules`: of
    texts, how they were asked (None: as the release asks) and how they are read.
    """

    kind: str = ""
    scale: float | None = None
    pose: str = ""
    metric: bool = False
    protocol: Protocol | None = None
    rules: str = "vlm3"


def find_manifest(text: str, task: str) -> Manifest | None:
    """The manifest that a text stands for: NAME.jsonl or NAME.json of one, a built folder, or a benchmark's name.

    None for any other file, and for what is not there. UserError if it is of another task, if the folder has several
    for this one, or has none.
    """
    path = storage.path(text)
    if path.suffix in (".json", ".jsonl") and path.is_file():
        head = path.with_suffix(".json")
        return _opened([head], task) if head.is_file() and _benchmark(head) else None
    for folder in (path / manifest.FOLDER, path):
        if folder.name == manifest.FOLDER and folder.is_dir():
            return _opened(sorted(folder.glob("*.json")), task)
    if benchmarks.of_key(text) is None:
        if path.is_dir():
            raise UserError(f"{text}: no folder that vlm3 data build has made of a benchmark: it has no manifests")
        return None
    if path.is_file():
        return None
    (asked,) = benchmarks.find([text])
    if asked.benchmark.task != task:
        raise UserError(f"{text}: a benchmark of {asked.benchmark.task}, not of {task}")
    return manifest.read(asked)


def score(found: Manifest, answers: str, options: Options, out: storage.AnyPath | None = None, name: str = ""):
    """The metrics of answers to a manifest's questions, with how many records have none.

    With `out` predictions, results and pictures are written there as those of `name`, and its tables.
    """
    source = _source(found, answers, options)
    rows, missing = _rows(found, source, options)
    task = tasks.get(found.asked.benchmark.task)
    if isinstance(source, Rows):
        source.unused()
    if missing == len(found):
        raise UserError(
            f"{answers}: nothing in it about any of the {len(found)} records of {found.name}; the first is called "
            f"{found[0].id!r}, of {', '.join(found[0].images)}"
        )
    told = {"missing_records": missing, **(source.told() if isinstance(source, DepthMaps) else {})}
    if out is None:
        read = Answers.of(task, rows)
        return {**task.metrics(read.parsed, read.targets), **told}
    who = name or pathlib.PurePath(answers).name
    # Nobody shall take them for answers that were read as all others in the tables are.
    who += " (release's rules)" if options.rules == "release" and isinstance(source, Rows) else ""
    outputs.claim(out, {"answers_by": who, "from": "vlm3 score"})
    folder = out / found.asked.key
    folder.mkdir(parents=True, exist_ok=True)
    outputs.retract(folder, found)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_text(folder / FILE, lines, errors="backslashreplace")
    results = rescore(folder)
    write_pictures(found, folder)
    outputs.write_bench(folder, found)
    tables.write(out)
    return {**results.entries[0].scores["model"].metrics, **told}


def _benchmark(head: storage.AnyPath) -> str:
    try:
        tree = json.loads(head.read_text())
    except (OSError, ValueError):
        return ""
    return tree.get("benchmark", "") if isinstance(tree, dict) else ""


def _opened(heads, task: str) -> Manifest:
    of_task = []
    for head in heads:
        fields = Fields.read(head)
        end = "-depthlm" if fields.text("rules", "") == "depthlm" else ""
        asked = benchmarks.of_key(fields.text("benchmark", "") + end)
        if asked is not None and asked.benchmark.task == task:
            of_task.append((asked, head))
    if len(of_task) != 1:
        names = ", ".join(str(head) for head in heads) or "none"
        raise UserError(f"expected one manifest of {task}, found {len(of_task)} among: {names}")
    return manifest.open_files(*of_task[0])


def _source(found: Manifest, answers: str, options: Options) -> Source:
    path, task = storage.path(answers), found.asked.benchmark.task
    if not path.exists():
        raise UserError(f"{answers}: no such file or folder")
    if task == "pose" and not _is_rows(path):
        rows = [found[number] for number in range(len(found))]
        return read_poses(storage.local_path(answers), rows, options.pose, options.metric)
    if path.is_file():
        _refuse(options, path, found)
        return Rows.read(path, found.asked.key, options.rules)
    if task == "depth":
        return DepthMaps(storage.local_path(answers), options.kind, options.scale)
    if task == "correspondence":
        return MatchFiles(storage.local_path(answers))
    raise UserError(f"{answers}: answers to {task} are texts or numbers in a .jsonl file, not a folder")


def _refuse(options: Options, path: storage.AnyPath, found: Manifest) -> None:
    """UserError for an option that says how files of numbers are to be taken, beside rows."""
    labels = f"; a number in it is compared with the label as it is, here {found[0].fields.text('kind', '')}"
    for name, of in (("kind", "depth maps"), ("scale", "depth maps"), ("pose", "matrices"), ("metric", "poses")):
        if getattr(options, name) not in ("", None, False):
            why = labels if name in ("kind", "scale") else ""
            raise UserError(f"--{name}: is of {of} only, {path} holds texts and numbers{why}")


def _is_rows(path: storage.AnyPath) -> bool:
    """Whether a file holds predictions, not poses."""
    if path.suffix != ".jsonl" or not path.is_file():
        return False
    with path.open(encoding="utf-8-sig", errors="replace") as lines:
        return '"prediction"' in next((line for line in lines if line.strip()), "")


def _rows(found: Manifest, source: Source, options: Options) -> tuple[list[dict[str, Any]], int]:
    missing, rows = 0, []
    for number in range(len(found)):
        row = found[number]
        asked = _examples(row, options.protocol)
        given = source.answers(row, asked)
        missing += given is None
        spreads = source.spreads(row, len(asked)) if isinstance(source, Rows) else [None] * len(asked)
        given = [None] * len(asked) if given is None else given
        rows += _predictions(found.asked.key, row, asked, given, spreads)
    return rows, missing


def _examples(row: manifest.Row, protocol: Protocol | None = None) -> list:
    """The questions with coordinates of the stored images: others were shown these at sizes of their own."""
    protocol = dataclasses.replace(protocol or RELEASE[row.task], resize=AsIs())
    return examples(row, records.unify(row.record, protocol.resize), protocol)


def _predictions(key: str, row: manifest.Row, asked: list, given: list, spreads: list) -> Iterator[dict[str, Any]]:
    for number, (example, answer, spread) in enumerate(zip(asked, given, spreads, strict=True)):
        if answer is NOT_ASKED:
            continue
        is_text = isinstance(answer, str)
        yield {
            "id": f"{key}/{row.id}/{number}",
            "component": key,
            "record": row.id,
            "task": row.task,
            "variant": "model",
            "question": example.question,
            "answer": example.answer,
            "prediction": answer if is_text else "" if answer is None else _written(answer),
            "target": example.target,
            **({"scene": row.scene} if row.scene else {}),
            **({} if spread is None else {"spread": spread}),
            **({} if is_text else {"value": answer}),
        }


def _written(answer) -> str:
    """A value as people like to read it; what is scored is `value`, with all its digits."""
    if isinstance(answer, list | tuple):
        return f"[{', '.join(map(_written, answer))}]"
    return f"{answer:.4f}" if isinstance(answer, float) and abs(answer) < 1e4 else json.dumps(answer)
