"""Memorises 8 real images (iBims-1) at a focal target of 250 px: a check of labels and optimisation, not of vision.

Run: vlm3 train --config=ibims1_overfit --workdir=runs/ibims1
     vlm3 eval --config=ibims1_overfit --model=runs/ibims1/export --workdir=runs/ibims1
The images are found through VLM3_SAMPLES (default ../shared/data); evaluation asks about the trained points on purpose.
"""

from vlm3_jax import mixtures, recipes


def get_config():
    """Eight images, all their points, short prompts, the tiny model."""
    config = recipes.tiny()
    images = {"resize": "focal:250", "coord_range": 100, "limit": 8}
    config.data.components.ibims1 = mixtures.ibims1(questions=10, **images)
    config.eval.components.ibims1 = mixtures.ibims1(questions=100, **images)
    config.data.row_tokens, config.data.row_patches, config.data.row_targets = 256, 256, 64
    config.data.pair_block, config.data.pairs, config.data.patch_pairs = 16, 136, 256
    config.optimizer.learning_rate, config.optimizer.warmup = 2e-3, 0.05
    config.train.samples = 6400
    config.train.eval_every, config.train.save_every = 200, 400
    config.eval.questions, config.eval.max_new_tokens, config.eval.image_sets = 100, 12, 4
    return config
