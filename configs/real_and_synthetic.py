"""The demo's mixture with real photographs in it: every fourth draw is an iBims-1 image, at the same focal target.

Run: vlm3 train --config=real_and_synthetic --workdir=runs/mixed   (after `make demo`, whose scenes it uses)
The images are found through VLM3_SAMPLES (default ../shared/data); the last ten are held out.
"""

from vlm3_jax import config as base


def get_config():
    """The demo, with 60 images of iBims-1 at a quarter of the draws."""
    config = base.load("demo")
    images = base.load("ibims1_overfit").data.components.ibims1
    depth = config.data.components.synth_depth
    for field in ("resize", "coord_range", "questions"):
        images[field] = depth[field]
    images.limit, images.flip = 60, 0.5
    images.weight = sum(entry.weight for entry in config.data.components.values()) / 3
    held_out = images.copy_and_resolve_references()
    held_out.first, held_out.limit, held_out.flip = 60, 10, 0.0
    config.data.components.ibims1 = images
    config.eval.components.ibims1 = held_out
    config.data.row_tokens = 320
    return config
