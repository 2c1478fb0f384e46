"""Pixel correspondence between two views, the paper's recipe: 80 M samples of ten questions, 2,816 a step.

Run: vlm3 train --config=correspondence --workdir=runs/correspondence    (4B; correspondence:2b, :8b and :32b)
     vlm3 plan --config=correspondence --topology=v5p:2x2x2
Pairs of views with a covisibility above 0.25, as ArrayRecord shards in $VLM3_DATA/pairs/NAME/train (held out:
.../held_out). Published: the sets and their numbers of pairs, which are their weights, steps, batch and rate. Images
are shown with 1,024 px on the longer side, as the release does; the paper's text says a focal length of 1,000 px
(--config.data.components.NAME.resize=focal:1000:per_axis). Not published, and chosen here: typical cameras of the sets,
five wordings of the question, and one rate for all sizes of the model.
"""

from vlm3_jax import config as base

depth = base.module("depth")
# Pairs in millions, and the width, height and focal length of a typical image in px.
SETS = {
    "blended_mvs": (0.45, (768, 576, 640)),
    "dynamic_replica": (1.0, (1280, 720, 1000)),
    "sail_vos3d": (0.35, (1280, 800, 1158)),
    "scannetpp_pairs": (1.0, (1920, 1440, 1600)),
    "mpsd": (0.013, (2016, 1512, 1500)),
    "realestate10k": (0.88, (1280, 720, 700)),
    "dl3dv": (2.6, (960, 540, 480)),
    "megadepth": (0.19, (1600, 1200, 1300)),
    "ase": (2.0, (704, 704, 350)),
    "gta_sfm": (0.09, (640, 480, 580)),
    "tartanair_wb": (0.85, (640, 640, 320)),
    "unreal_stereo4k": (0.27, (3840, 2160, 1920)),
    "mvs_synth": (0.19, (1920, 1080, 1158)),
    "spring": (0.02, (1920, 1080, 1600)),
}
# Without depth there are no matches.
WITHOUT_DEPTH = ("realestate10k",)


def get_config(argument: str = "4b"):
    """`argument`: the size of Qwen3-VL."""
    config = depth.recipe("correspondence", argument)
    for name in SETS:
        if name not in WITHOUT_DEPTH:
            add_pairs(config, name, task="correspondence")
    config.data.row_tokens, config.data.row_patches, config.data.row_targets = 8704, 22528, 768
    config.data.pairs, config.data.patch_pairs = 768, 5632
    config.data.rows, config.train.accumulation = 32, 27
    config.train.samples, config.train.batch = 80_000_000, 2816
    config.optimizer.learning_rate = 2e-5
    return config


def add_pairs(config, name: str, **fields) -> None:
    """One set of pairs, weighed by their number, of views that overlap enough."""
    pairs, size = SETS[name]
    overlap = 0.15 if name == "mpsd" else 0.25
    depth.add_set(config, "pairs", name, pairs, size, covisibility_min=overlap, **fields)
