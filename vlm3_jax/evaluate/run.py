"""Evaluation: questions in, answers by whoever answers, predictions on disk, scores out.

The same questions are asked three ways: with their own images ("model"), with grey ones ("blind") and with those of
another record ("shuffled"). What the model gains over the last two is what it reads from the image; a score alone does
not tell, since question texts and label statistics go a long way.
"""

import collections
import dataclasses
import json
import pathlib
import typing
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np
import rich.console
import rich.progress

from vlm3_jax.config import VARIANTS
from vlm3_jax.errors import UserError
from vlm3_jax.evaluate.items import Questions, held_out_questions
from vlm3_jax.evaluate.predictions import FILE, rows
from vlm3_jax.evaluate.results import Results
from vlm3_jax.evaluate.scoring import rescore
from vlm3_jax.evaluate.thumbnails import write_thumbnails
from vlm3_jax.infer.engine import Engine
from vlm3_jax.processor.image import ImageLayout
from vlm3_jax.setup import Setup
from vlm3_jax.storage import local_path


class Answerer(typing.Protocol):
    """Whoever answers: the inference engine, another model, a test."""

    def answer(self, images: list[tuple[ImageLayout, ...]], questions: list[list[str]]) -> list[list[str]]:
        """One answer a question; `questions[i]` are all about `images[i]` and independent of each other."""


def evaluate_model(config, out_dir, progress: bool = True) -> Results:
    """Asks the model of `config.model` every held-out question and writes predictions and scores to `out_dir`."""
    if not config.eval.components:
        raise UserError("eval.components is empty: nothing to evaluate on")
    setup = Setup.from_config(config)
    asked = held_out_questions(setup)
    return evaluate(make_engine(setup), asked, out_dir, variants=config.eval.variants, progress=progress)


def make_engine(setup: Setup) -> Engine:
    """An engine with the weights of the setup's model on the setup's mesh, both of `eval.dtype`."""
    evaluation = setup.config.eval
    return Engine(
        setup.model_cfg,
        setup.model.params(setup.mesh, evaluation.dtype),
        setup.chat,
        setup.spec,
        jnp.dtype(evaluation.dtype),
        setup.mesh,
        image_sets=evaluation.image_sets,
        questions=evaluation.questions,
        max_new_tokens=evaluation.max_new_tokens,
    )


def evaluate(
    answerer: Answerer,
    asked: Sequence[Questions],
    out_dir: pathlib.Path,
    *,
    variants: Sequence[str] = VARIANTS,
    seed: int = 0,
    progress: bool = True,
    records_per_call: int = 64,
) -> Results:
    """Ask all questions in every variant, write predictions, thumbnails and results into `out_dir`, return the results.

    `seed` draws the other record of "shuffled". Rows gather in predictions.jsonl.part and are renamed when all are
    there. UserError if there is nothing to ask or a component has too few records to shuffle.
    """
    if not asked:
        raise UserError("nothing to evaluate: the evaluation components gave no questions; check their task and limit")
    if "model" not in variants or not set(variants) <= set(VARIANTS):
        raise UserError(f"variants: choose from {', '.join(VARIANTS)} and include model; got {', '.join(variants)}")
    shown = {variant: variant_images(asked, variant, seed) for variant in variants}
    out_dir = local_path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    tmp = out_dir / (FILE + ".part")
    with tmp.open("w", encoding="utf-8") as file:
        for variant in variants:
            answers = _answers(answerer, asked, shown[variant], variant, records_per_call, progress)
            for questions, texts in zip(asked, answers, strict=True):
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(questions, variant, texts))
    write_thumbnails(out_dir, asked)
    tmp.rename(out_dir / FILE)
    return rescore(out_dir)


def variant_images(asked: Sequence[Questions], variant: str, seed: int) -> list[tuple[ImageLayout, ...]]:
    """The images shown with each record's questions: its own ("model"), grey ("blind") or another's ("shuffled").

    "shuffled" keeps the sizes and takes the pixels of a record of the same component; records are permuted in one
    cycle, so none gets its own.
    """
    if variant == "model":
        return [questions.images for questions in asked]
    if variant == "blind":
        return [tuple(dataclasses.replace(layout, blank=True) for layout in questions.images) for questions in asked]
    return [
        tuple(dataclasses.replace(p, ref=d.ref, flip=d.flip) for p, d in zip(own.images, donor.images, strict=True))
        for own, donor in zip(asked, _donors(asked, seed), strict=True)
    ]


def _donors(asked: Sequence[Questions], seed: int) -> list[Questions]:
    """For each record another of its component with as many images."""
    rng = np.random.default_rng(seed)
    pools = collections.defaultdict(list)
    for index, questions in enumerate(asked):
        pools[questions.component, len(questions.images)].append(index)
    donors = list(asked)
    for (component, _), pool in pools.items():
        if len(pool) < 2:
            raise UserError(
                f"component {component}: a single record cannot be shuffled; evaluate more of them or leave the "
                "variant shuffled out"
            )
        order = rng.permutation(pool)
        for receiving, giving in zip(order, np.roll(order, 1), strict=True):
            donors[receiving] = asked[giving]
    return donors


def _answers(answerer, asked, images, variant: str, records_per_call: int, progress: bool) -> Iterator[list[str]]:
    """The answers about each record, in order, as they come."""
    console = rich.console.Console(stderr=True)
    with rich.progress.Progress(
        *rich.progress.Progress.get_default_columns(),
        rich.progress.MofNCompleteColumn(),
        console=console,
        disable=not progress,
    ) as bar:
        job = bar.add_task(f"answers ({variant})", total=sum(len(questions.examples) for questions in asked))
        for start in range(0, len(asked), records_per_call):
            part = slice(start, start + records_per_call)
            texts = [[example.question for example in questions.examples] for questions in asked[part]]
            for answers in answerer.answer(images[part], texts):
                yield answers
                bar.advance(job, len(answers))
