"""Evaluation of a model directory on the held-out components of a config."""

import pathlib

import jax
import jax.numpy as jnp

from vlm3_jax.checkpoint import hf
from vlm3_jax.data.items import Item, evaluation_items
from vlm3_jax.data.quarantine import Quarantine
from vlm3_jax.errors import UserError
from vlm3_jax.evaluate.results import Results
from vlm3_jax.evaluate.runner import evaluate
from vlm3_jax.infer.engine import Engine
from vlm3_jax.train.run import Setup


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
