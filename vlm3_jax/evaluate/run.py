"""Evaluation: items in, answers by whoever answers, predictions on disk, scores out.

The same items are asked three ways: as they are ("model"), with grey images ("blind") and with the images of another
record ("shuffled"). What the model gains over the last two is what it reads from the image; a score alone does not
tell, since question texts and label statistics go a long way.
"""

import collections
import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.progress

import vlm3_jax.tasks
from vlm3_jax.checkpoint import hf
from vlm3_jax.data.quarantine import Quarantine
from vlm3_jax.errors import UserError
from vlm3_jax.evaluate import statistics
from vlm3_jax.evaluate.items import Item, evaluation_items
from vlm3_jax.evaluate.results import Entry, Results, Score
from vlm3_jax.infer.engine import Engine
from vlm3_jax.setup import Setup

if TYPE_CHECKING:
    from vlm3_jax.evaluate.items import Item
    from vlm3_jax.processor.image import ImageLayout
    from vlm3_jax.tasks.base import Task

VARIANTS = ("model", "blind", "shuffled")
FILE = "predictions.jsonl"


class Answerer(Protocol):
    """Whoever answers: the inference engine, another model, a test."""

    def answer(self, images: list[tuple["ImageLayout", ...]], questions: list[list[str]]) -> list[list[str]]:
        """One answer a question; `questions[i]` are all about `images[i]` and independent of each other."""


@dataclasses.dataclass(frozen=True)
class Group:
    """All items of one record, hence about the same images; `items` are their indices."""

    source: str
    record: str
    images: tuple["ImageLayout", ...]
    items: list[int]


def evaluate(
    answerer: Answerer,
    items: Sequence["Item"],
    tasks: Mapping[str, "Task"] | None,
    out_dir: pathlib.Path,
    *,
    variants: Sequence[str] = VARIANTS,
    seed: int = 0,
    progress: bool = True,
    records_per_call: int = 64,
) -> Results:
    """Ask every item in every variant, write predictions.jsonl and results.json into `out_dir`, return the results.

    `tasks` maps names to tasks (None: those of `vlm3_jax.tasks`); `seed` draws the other record of "shuffled".
    Prediction rows gather in predictions.jsonl.part and are renamed when all are there. UserError if there is nothing
    to ask or a source has too few records to shuffle.
    """
    if not items:
        raise UserError("nothing to evaluate: the evaluation sources gave no questions; check their task and limit")
    if "model" not in variants or not set(variants) <= set(VARIANTS):
        raise UserError(f"variants: choose from {', '.join(VARIANTS)} and include model; got {', '.join(variants)}")
    groups = group_items(items)
    asked = {variant: variant_images(groups, variant, seed) for variant in variants}
    out_dir = pathlib.Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    aside = out_dir / (FILE + ".part")
    with aside.open("w", encoding="utf-8") as file:
        for variant in variants:
            answers = _ask(answerer, items, groups, asked[variant], variant, records_per_call, progress)
            for row in _rows(items, answers, variant):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    aside.rename(out_dir / FILE)
    return rescore(out_dir, tasks)


def rescore(out_dir: pathlib.Path, tasks: Mapping[str, "Task"] | None = None) -> Results:
    """Score the rows of `out_dir`/predictions.jsonl again and write results.json; no model is asked."""
    cells = collections.defaultdict(lambda: collections.defaultdict(list))
    for row in read_predictions(out_dir):
        cells[row["source"], row["task"]][row["variant"]].append(row)
    for (source, task), by_variant in cells.items():
        asked = {variant: [row["id"] for row in rows] for variant, rows in by_variant.items()}
        if any(ids != asked.get("model") for ids in asked.values()):
            raise UserError(
                f"{pathlib.Path(out_dir) / FILE}: the variants of {task} on {source} must hold the same items in the "
                f"same order, model among them; found {', '.join(f'{v}: {len(ids)}' for v, ids in asked.items())}"
            )
    results = Results(
        tuple(
            _score_entry(tasks[task] if tasks else vlm3_jax.tasks.get(task), source, by_variant)
            for (source, task), by_variant in cells.items()
        )
    )
    results.save(pathlib.Path(out_dir))
    return results


def read_predictions(out_dir: pathlib.Path) -> Iterator[dict[str, Any]]:
    """The rows that `evaluate` wrote: id, source, task, variant, question, answer, prediction, target."""
    path = pathlib.Path(out_dir) / FILE
    if not path.is_file():
        raise UserError(f"{path}: no predictions here; run `vlm3 eval` with this output folder first")
    needed = ("id", "source", "task", "variant", "question", "answer", "prediction", "target")
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                missing = [k for k in needed if k not in row]
            except (ValueError, TypeError) as error:
                raise UserError(f"{path}, line {number}: not a JSON object ({error})") from None
            if missing:
                raise UserError(f"{path}, line {number}: the row lacks {', '.join(missing)}")
            yield row


def before_after(
    before_dir: pathlib.Path, after_dir: pathlib.Path, tasks: Mapping[str, "Task"] | None = None
) -> dict[tuple[str, str], tuple[float, float, float]]:
    """Paired difference after - before of the model's item scores, by (source, task), over the items of both runs."""
    before, after = (_model_scores(folder, tasks) for folder in (before_dir, after_dir))
    gains = {}
    for cell in before.keys() & after.keys():
        common = [key for key in after[cell] if key in before[cell]]
        a, b = ([scores[cell][key] for key in common] for scores in (after, before))
        gains[cell] = statistics.paired_difference(a, b, [record_id(key[0]) for key in common])
    return gains


def _model_scores(folder, tasks) -> dict[tuple[str, str], dict[tuple[str, str], float]]:
    """(source, task) -> (id, question) -> score of the variant "model"."""
    cells = collections.defaultdict(list)
    for row in read_predictions(folder):
        if row["variant"] == "model":
            cells[row["source"], row["task"]].append(row)
    found = {}
    for (source, name), rows in cells.items():
        task = tasks[name] if tasks else vlm3_jax.tasks.get(name)
        targets = [row["target"] for row in rows]
        parsed = [task.parse(row["prediction"], target) for row, target in zip(rows, targets, strict=True)]
        scores = task.item_scores(parsed, targets)
        found[source, name] = {(row["id"], row["question"]): s for row, s in zip(rows, scores.tolist(), strict=True)}
    return found


def group_items(items: Sequence["Item"]) -> list[Group]:
    """Items by record, in order of first appearance, so that the engine reads each image once."""
    groups: dict[tuple[str, str], Group] = {}
    for index, item in enumerate(items):
        key = item.source, record_id(item.id)
        groups.setdefault(key, Group(*key, item.images, [])).items.append(index)
    return list(groups.values())


def record_id(item_id: str) -> str:
    """The record of an item: its id (SOURCE/RECORD/NUMBER) without the number; the cluster of statistics."""
    return item_id.rpartition("/")[0] or item_id


def variant_images(groups: Sequence[Group], variant: str, seed: int) -> list[tuple["ImageLayout", ...]]:
    """The images that each group is shown: its own ("model"), grey ("blind") or another record's ("shuffled").

    A shuffled group keeps its sizes and takes the pixels of a record of the same source; records are permuted in one
    cycle, so none gets its own.
    """
    if variant == "model":
        return [group.images for group in groups]
    if variant == "blind":
        return [tuple(dataclasses.replace(layout, blank=True) for layout in group.images) for group in groups]
    donors = _donors(groups, seed)
    return [
        tuple(dataclasses.replace(p, ref=d.ref, flip=d.flip) for p, d in zip(group.images, donor.images, strict=True))
        for group, donor in zip(groups, donors, strict=True)
    ]


def _donors(groups: Sequence[Group], seed: int) -> list[Group]:
    """For each group one of another record of its source with as many images."""
    rng = np.random.default_rng(seed)
    pools = collections.defaultdict(list)
    for index, group in enumerate(groups):
        pools[group.source, len(group.images)].append(index)
    donors = list(groups)
    for (source, _), pool in pools.items():
        if len(pool) < 2:
            raise UserError(
                f"source {source}: a single record cannot be shuffled; evaluate more of them or leave the variant "
                "shuffled out"
            )
        order = rng.permutation(pool)
        for receiving, giving in zip(order, np.roll(order, 1), strict=True):
            donors[receiving] = groups[giving]
    return donors


def _ask(answerer, items, groups, images, variant: str, records_per_call: int, progress: bool) -> list[str]:
    """Answers in the order of `items`."""
    answers: list[str] = [""] * len(items)
    console = rich.console.Console(stderr=True)
    with rich.progress.Progress(
        *rich.progress.Progress.get_default_columns(),
        rich.progress.MofNCompleteColumn(),
        console=console,
        disable=not progress,
    ) as bar:
        job = bar.add_task(f"answers ({variant})", total=len(items))
        for start in range(0, len(groups), records_per_call):
            chunk = groups[start : start + records_per_call]
            questions = [[items[i].question for i in group.items] for group in chunk]
            texts = answerer.answer(images[start : start + records_per_call], questions)
            for group, group_texts in zip(chunk, texts, strict=True):
                for index, text in zip(group.items, group_texts, strict=True):
                    answers[index] = text
                bar.advance(job, len(group.items))
    return answers


def _rows(items, answers, variant: str) -> Iterator[dict[str, Any]]:
    for item, answer in zip(items, answers, strict=True):
        yield {
            "id": item.id,
            "source": item.source,
            "task": item.task,
            "variant": variant,
            "question": item.question,
            "answer": item.answer,
            "prediction": answer,
            "target": item.target,
        }


def _score_entry(task: "Task", source: str, by_variant: Mapping[str, list[dict[str, Any]]]) -> Entry:
    """Scores of one task on one source: the variants, then the references, each compared with the model."""
    model = by_variant["model"]
    targets = [row["target"] for row in model]
    clusters = [record_id(row["id"]) for row in model]
    scores, metrics = {}, {}
    for variant, rows in by_variant.items():
        texts = [row["prediction"] for row in rows]
        parsed = [task.parse(text, target) for text, target in zip(texts, targets, strict=True)]
        scores[variant] = task.item_scores(parsed, targets)
        metrics[variant] = task.score(texts, targets)
    for name, parsed in references(task, targets).items():
        scores[name] = task.item_scores(parsed, targets)
    return Entry(
        source,
        task.name,
        task.headline,
        task.higher_is_better,
        len(set(clusters)),
        {name: _score(name, scores, metrics.get(name, {}), clusters) for name in scores},
    )


def _score(name: str, scores: Mapping[str, np.ndarray], metrics: dict[str, float], clusters: list[str]) -> Score:
    own = np.asarray(scores[name], np.float64)
    return Score(
        statistics.mean(own),
        *statistics.bootstrap_interval(own, clusters),
        count=int((~np.isnan(own)).sum()),
        answers=len(own),
        failures=int(metrics.get("parse_failures", 0)),
        metrics={k: v if isinstance(v, int) else float(v) for k, v in metrics.items()},
        gain=None if name == "model" else statistics.paired_difference(scores["model"], own, clusters),
    )


def references(task: "Task", targets: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Parsed answers that need no model, by name: the best constant, then what the task adds."""
    extra = {name.replace("_", " "): parsed for name, parsed in task.extra_references(targets).items()}
    return {"best constant": task.constant_answers(targets), **extra}


def make_engine(setup: Setup, dtype=jnp.float32) -> Engine:
    """An engine with the weights of the setup's model directory."""
    evaluation = setup.config.eval
    params = jax.tree.map(jnp.asarray, hf.load(setup.model_dir)[1])
    return Engine(
        setup.cfg,
        params,
        setup.chat,
        setup.spec,
        dtype,
        image_sets=evaluation.image_sets,
        questions=evaluation.questions,
        max_new_tokens=evaluation.max_new_tokens,
    )


def make_items(setup: Setup, seed: int = 0) -> list[Item]:
    """The questions of every held-out component; bad records are set aside and counted."""
    config = setup.config
    items = []
    for component in setup.components(config.eval.components):
        quarantine = Quarantine(setup.workdir / "quarantine.jsonl", config.data.max_bad_fraction)
        items += evaluation_items(component, config.eval.records or None, seed, quarantine)
    return items


def evaluate_model(config, out_dir, progress: bool = True) -> Results:
    """Asks the model of `config.model` every held-out question and writes predictions and scores to `out_dir`."""
    if not config.eval.components:
        raise UserError("eval.components is empty: nothing to evaluate on")
    setup = Setup.from_config(config)
    items = make_items(setup)
    return evaluate(
        make_engine(setup), items, None, pathlib.Path(out_dir), variants=config.eval.variants, progress=progress
    )
