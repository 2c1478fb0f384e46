"""Metric depth, the paper's recipe: 32 M samples of ten questions, 1,344 a step.

Run: vlm3 train --config=depth --workdir=runs/depth        (4B; depth:2b, depth:8b and depth:32b are the other sizes)
     vlm3 plan --config=depth --topology=v5p:2x2x2
The data are not part of this project: every set is looked for in $VLM3_DATA/depth/NAME/train (held out: .../held_out),
as ArrayRecord shards; VLM3_DATA is "data" by default. Published: the sets, their sizes and weights, steps, batch and
rate. Not published, and chosen here: typical image sizes (for planning; the street scenes' are nuScenes'), the number
of supervised tokens and pairs in a row, and one rate for all sizes of the model.
"""

import os

from vlm3_jax import config as base
from vlm3_jax.data.sources import component_config
from vlm3_jax.errors import UserError

SIZES = ("2b", "4b", "8b", "32b")
# Weight, and the width, height and focal length of a typical image in px.
SETS = {
    "argoverse2": (0.21, (2048, 1550, 1690)),
    "waymo": (0.04, (1920, 1280, 2055)),
    "nuscenes": (0.01, (1600, 900, 1266)),
    "scannetpp": (0.01, (1920, 1440, 1600)),
    "taskonomy": (0.51, (512, 512, 443)),
    "hm3d": (0.78, (640, 480, 525)),
    "matterport3d": (0.006, (1280, 1024, 1075)),
    "street_scenes": (1.0, (1600, 900, 1266)),
}


def get_config(argument: str = "4b"):
    """`argument`: the size of Qwen3-VL."""
    config = recipe("depth", argument)
    for name, (weight, size) in SETS.items():
        add_set(config, "depth", name, weight, size, task="depth")
    config.data.row_tokens, config.data.row_patches, config.data.row_targets = 7168, 16384, 1152
    config.data.pairs, config.data.patch_pairs = 768, 4608
    config.data.rows, config.train.accumulation = 16, 29
    config.train.samples, config.train.batch = 32_000_000, 1344
    config.optimizer.learning_rate = 5.5e-5
    return config


def recipe(name: str, size: str):
    """What all recipes share: the model, attention by lists of block pairs, saving every 250 steps."""
    if size not in SIZES:
        raise UserError(f"--config={name}:{size}: choose {name}:{f' or {name}:'.join(SIZES)}")
    config = base.base()
    config.model, config.workdir = f"Qwen/Qwen3-VL-{size.upper()}-Instruct", f"runs/{name}-{size}"
    config.data.pair_block = 128
    config.train.save_every, config.train.eval_every = 250, 500
    return config


def add_set(config, folder: str, name: str, weight: float, size, **fields) -> None:
    """One training set and its held-out part."""
    root = f"{os.environ.get('VLM3_DATA', 'data')}/{folder}/{name}"
    entry = component_config(path=f"{root}/train", weight=weight, size=size, **fields)
    config.data.components[name] = entry
    held_out = entry.copy_and_resolve_references()
    held_out.path = f"{root}/held_out"
    config.eval.components[name] = held_out
