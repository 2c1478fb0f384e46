"""Objects and their relations in 3-D, the paper's recipe: a million images, 640 a step.

Run: vlm3 train --config=objects --workdir=runs/objects      (4B; objects:2b, objects:8b and objects:32b)
     vlm3 plan --config=objects --topology=v5p:2x2x2
The images are those of OpenSpatialDataset, calibrated one by one beforehand (they come without intrinsics), as
ArrayRecord shards in $VLM3_DATA/objects/open_spatial/train (held out: .../held_out). Published: the images' number,
steps, batch and rate. Not published, and chosen here: six questions an image (the data hold several turns), a typical
image of 1024 x 768 px at a focal length of 900 px, and one rate for all sizes of the model.
"""

from vlm3_jax import config as base

depth = base.module("depth")
SETS = {"open_spatial": (1.0, (1024, 768, 900))}


def get_config(argument: str = "4b"):
    """`argument`: the size of Qwen3-VL."""
    config = depth.recipe("objects", argument)
    for name, (weight, size) in SETS.items():
        depth.add_set(config, "objects", name, weight, size, task="objects", questions=6)
    config.data.row_tokens, config.data.row_patches, config.data.row_targets = 6656, 16384, 1536
    config.data.pairs, config.data.patch_pairs = 512, 8704
    config.data.rows, config.train.accumulation = 32, 5
    config.train.samples, config.train.batch = 1_000_000, 640
    config.optimizer.learning_rate = 3.5e-4
    return config
