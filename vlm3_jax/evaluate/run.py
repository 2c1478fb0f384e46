"""Evaluation: questions in, answers by whoever answers, predictions on disk, scores out.

The same questions are asked three ways: with their own images ("model"), with grey ones ("blind") and with those of
another record ("shuffled"). What the model gains over the last two is what it reads from the image; a score alone does
not tell, since question texts and label statistics go a long way.

Any number of processes takes part: each answers its share of the plan (evaluate/plan.py) and appends what it has to a
file (evaluate/parts.py); when all are done, the first puts the answers in order and scores them.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp

from vlm3_jax import storage
from vlm3_jax.config_rules import VARIANTS
from vlm3_jax.data.quarantine import Quarantine
from vlm3_jax.errors import UserError
from vlm3_jax.evaluate import parts, plan
from vlm3_jax.evaluate.answering import Answerer, Share, answer_share
from vlm3_jax.evaluate.items import HeldOut, Questions, briefs
from vlm3_jax.evaluate.merge import merge
from vlm3_jax.evaluate.parts import Parts
from vlm3_jax.evaluate.results import Results
from vlm3_jax.evaluate.scoring import read_cells, score
from vlm3_jax.evaluate.spreads import TASK, Spreads
from vlm3_jax.evaluate.thumbnails import write_thumbnails
from vlm3_jax.evaluate.worst import worst_of
from vlm3_jax.infer.engine import Engine
from vlm3_jax.infer.spread import Calibration
from vlm3_jax.parallel import mesh as meshes
from vlm3_jax.parallel import processes
from vlm3_jax.processor.image import VisionSpec
from vlm3_jax.setup import Setup
from vlm3_jax.storage.folders import Workspace

QUARANTINE = "quarantine.jsonl"

_log = logging.getLogger(__name__)


def evaluate_model(config, out_dir, progress: bool = True, spread: bool = False) -> Results | None:
    """Asks the model of `config.model` every held-out question and writes predictions and scores to `out_dir`.

    Called by every process of a run, each with the devices of its own; the first returns the results. `spread`: depths
    with what the probabilities of their digits say.
    """
    if not config.eval.components:
        raise UserError("eval.components is empty: nothing to evaluate on")
    if spread:
        asked_spread(entry.task for entry in config.eval.components.values())
    setup = Setup.from_config(config)
    first = jax.process_index() == 0
    components = setup.components(config.eval.components)
    where = setup.work.folder / QUARANTINE if first else None
    evaluation = config.eval
    with setup.work.published(*([QUARANTINE] if first else [])):
        asked = HeldOut(
            components,
            config.eval.records or None,
            quarantine=lambda: Quarantine(where, config.data.max_bad_fraction),
        )
        engine = make_engine(setup)
        return evaluate(
            engine,
            asked,
            out_dir,
            variants=evaluation.variants,
            progress=progress,
            share=Share(jax.process_index(), jax.process_count()),
            settings=settings_of(setup),
            spec=setup.spec,
            quarantine=Quarantine(where, config.data.max_bad_fraction),
            spreads=spreads_of(setup, engine) if spread else None,
        )


def asked_spread(tasks: Iterable[str]) -> None:
    """UserError if no task has a spread."""
    if TASK not in tasks:
        raise UserError("--spread: is told of depth, and nothing that is asked is about depth")


def spreads_of(setup: Setup, engine: Engine) -> Spreads:
    """With the calibration that lies beside the model, if one does."""
    learnt = Calibration.read(setup.model.folder)
    if learnt is None and jax.process_index() == 0:
        _log.warning("%s: not calibrated, so there are no intervals; see vlm3 calibrate", setup.model.folder)
    return Spreads(engine, learnt)


def settings_of(setup: Setup) -> dict:
    """What an answer depends on beside its question and images."""
    evaluation = setup.config.eval
    return {
        "model": setup.model.fingerprint(),
        "dtype": evaluation.dtype,
        "max_new_tokens": evaluation.max_new_tokens,
        "questions": evaluation.questions,
        "image_sets": evaluation.image_sets,
    }


def make_engine(setup: Setup) -> Engine:
    """An engine with the weights of the setup's model in `eval.dtype`, on the devices of this process."""
    evaluation = setup.config.eval
    mesh = answer_mesh(setup.config.mesh)
    return Engine(
        setup.model_cfg,
        setup.model.params(mesh, evaluation.dtype),
        setup.chat,
        setup.spec,
        jnp.dtype(evaluation.dtype),
        mesh,
        image_sets=evaluation.image_sets,
        questions=evaluation.questions,
        max_new_tokens=evaluation.max_new_tokens,
    )


def answer_mesh(shape) -> jax.sharding.Mesh:
    """The devices of this process as `config.mesh` arranges them; processes answer independently of each other."""
    return meshes.make_mesh(shape.replica, shape.fsdp, shape.tensor, devices=jax.local_devices())


def evaluate(
    answerer: Answerer,
    asked: Sequence[Questions],
    out_dir: storage.AnyPath,
    *,
    variants: Sequence[str] = VARIANTS,
    seed: int = 0,
    progress: bool = True,
    records_per_call: int = 64,
    share: Share = Share(),  # noqa: B008
    settings: Mapping = {},
    spec: VisionSpec | None = None,
    quarantine: Quarantine | None = None,
    spreads: Spreads | None = None,
) -> Results | None:
    """Ask all questions in every variant, write predictions, thumbnails and results into `out_dir`, return the results.

    `seed` draws the other record of "shuffled". Answers that an earlier call of the same `settings` has left in
    `out_dir`, which may lie in a bucket, are not asked for again. Every process of a run calls it with its `share`; all
    but the first return None when the first is done. `spec`: images are decoded by another thread while the device is
    busy. Records whose images cannot be read go to `quarantine`. `spreads`: who answers about depth. UserError if there
    is nothing to ask or a component has too few records to shuffle.
    """
    if not len(asked):
        raise UserError("nothing to evaluate: the evaluation components gave no questions; check their task and limit")
    if "model" not in variants or not set(variants) <= set(VARIANTS):
        raise UserError(f"variants: choose from {', '.join(VARIANTS)} and include model; got {', '.join(variants)}")
    about = briefs(asked)
    units = plan.make_units(about, variants, records_per_call, seed)
    if spreads is not None:
        settings = {**settings, "spread": spreads.settings}
    digest = plan.digest(about, units, {**settings, "seed": seed})
    name = f"{parts.FOLDER}/{digest}"
    work = Workspace(storage.path(out_dir))
    with work.published(f"{name}/*.jsonl"):
        with Parts(work.folder / name, share.process, work.publish) as own:
            answer_share(answerer, asked, units, own, share, spec, progress, spreads)
        work.publish(final=True)
        processes.all_here(f"answered {digest}")
        if share.process == 0:
            # Those of the other processes.
            work.fetch(f"{name}/*.jsonl")
            merge(work.folder / name, work.folder, about, variants, quarantine or Quarantine())
            cells = read_cells(work.folder)
            write_thumbnails(work.folder, asked, worst_of(cells))
            results = score(cells)
            results.save(work.folder)
    processes.all_here(f"scored {digest}")
    return results if share.process == 0 else None
