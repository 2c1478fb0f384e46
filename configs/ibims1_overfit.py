"""Memorises 8 real images (iBims-1) at a focal target of 250 px: a check of labels and optimisation, not of vision.

Run: vlm3 train --config=ibims1_overfit --workdir=runs/ibims1
     vlm3 eval --config=ibims1_overfit --model=runs/ibims1/export --workdir=runs/ibims1
The images are found through VLM3_SAMPLES (default ../shared/data); evaluation asks about the trained points on purpose.
"""

import os

from vlm3_jax import config as base
from vlm3_jax.data.sources import component_config


def get_config():
    """Eight images, all their points, short prompts, the tiny model."""
    config = base.base()
    config.model = "tiny:demo"
    folder = os.environ.get("VLM3_SAMPLES", "../shared/data")
    images = component_config(
        kind="depthlm",
        path=f"{folder}/ibims1/ibims1.jsonl",
        images=f"{folder}/ibims1",
        depth_kind="distance",
        task="depth",
        protocol="short",
        resize="focal:250",
        coord_range=100,
        limit=8,
    )
    config.data.components.ibims1 = images.copy_and_resolve_references()
    config.data.components.ibims1.questions = 10
    config.eval.components.ibims1 = images.copy_and_resolve_references()
    config.eval.components.ibims1.questions = 100
    config.data.mode = "independent"
    config.data.rows, config.data.row_tokens, config.data.row_patches, config.data.row_targets = 8, 256, 256, 64
    config.data.block, config.data.reach = 16, 8
    config.optimizer.learning_rate, config.optimizer.b2, config.optimizer.clip = 2e-3, 0.98, 1.0
    config.optimizer.schedule, config.optimizer.warmup = "cosine", 0.05
    config.train.samples = 6400
    config.train.dtype, config.train.remat, config.train.export = "float32", "none", "float32"
    config.train.log_every, config.train.eval_every, config.train.save_every = 20, 200, 400
    config.eval.variants = ("model", "blind", "shuffled")
    config.eval.questions, config.eval.max_new_tokens, config.eval.image_sets = 100, 12, 4
    return config
