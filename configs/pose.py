"""Relative camera pose of two views, the paper's recipe: 10 M samples of three questions, 448 a step.

Run: vlm3 train --config=pose --workdir=runs/pose      (4B; pose:2b, pose:8b and pose:32b are the other sizes)
     vlm3 plan --config=pose --topology=v5p:2x2x2
The pairs of `correspondence.py`, those of RealEstate10K included; a set that is known up to scale is not asked for the
distance (its records say so). Published: sets, weights, the focal length of 750 px, steps, batch and rate. Not
published, and chosen here: typical cameras, and one rate for all sizes of the model.
"""

from vlm3_jax import config as base

depth, correspondence = base.module("depth"), base.module("correspondence")


def get_config(argument: str = "4b"):
    """`argument`: the size of Qwen3-VL."""
    config = depth.recipe("pose", argument)
    for name in correspondence.SETS:
        correspondence.add_pairs(config, name, task="pose", questions=3)
    config.data.row_tokens, config.data.row_patches, config.data.row_targets = 12288, 45056, 768
    config.data.pairs, config.data.patch_pairs = 3584, 53248
    config.data.rows, config.train.accumulation = 24, 5
    config.train.samples, config.train.batch = 10_000_000, 448
    config.optimizer.learning_rate = 5e-5
    return config
