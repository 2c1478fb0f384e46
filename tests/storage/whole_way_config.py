"""The run of test_whole_way_in_a_bucket.py on what was built at RUN_DATA; its argument as in bucket_config.py."""

import os

from bucket_config import signal_at

from vlm3_jax import recipes
from vlm3_jax.config import component_config

SHORT = {"protocol": "short", "resize": "focal:40", "questions": 3}


def get_config(argument: str = ""):
    signal_at(argument)
    config, data = recipes.tiny(), os.environ["RUN_DATA"]
    config.model = "tiny:test"
    streets, walk = (
        component_config(path=f"{data}/{name}", task=task, **SHORT)
        for name, task in (("argoverse2", "depth"), ("gta_sfm", "correspondence"))
    )
    streets.weight = 2.0
    config.data.components.streets, config.data.components.walk = streets, walk
    config.data.rows, config.data.row_tokens, config.data.row_patches, config.data.row_targets = 2, 256, 256, 64
    config.eval.components.streets = component_config(path=f"{data}/argoverse2", task="depth", limit=3, **SHORT)
    config.eval.max_new_tokens = 8
    config.optimizer.learning_rate = 3e-3
    config.train.samples, config.train.max_steps = 1000, 12
    config.train.log_every, config.train.save_every, config.train.eval_every = 1, 4, 6
    return config
