"""The demo's mixture with real photographs in it: every fourth draw is an iBims-1 image, at the same focal target.

iBims-1 tells z, the demo's scenes the distance to the camera: the score of each is of its own kind.

Run: vlm3 train --config=real_and_synthetic --workdir=runs/mixed   (after `make demo`, whose scenes it uses)
The images are found through VLM3_SAMPLES (default ../shared/data); the last ten are held out.
"""

from vlm3_jax import mixtures, recipes


def get_config():
    """The demo, with 60 images of iBims-1 at a quarter of the draws."""
    config = recipes.demo()
    images = {"coord_range": 10, "questions": 8}
    images["weight"] = sum(entry.weight for entry in config.data.components.values()) / 3
    config.data.components.ibims1 = mixtures.ibims1(limit=60, flip=0.5, **images)
    config.eval.components.ibims1 = mixtures.ibims1(first=60, limit=10, **images)
    config.data.row_tokens, config.data.pairs = 320, 210
    return config
