"""All four tasks in one model: depth 40 %, correspondence 30 %, pose 20 % and objects 10 % of the draws.

Run: vlm3 train --config=joint --workdir=runs/joint    (4B; joint:2b, joint:8b and joint:32b are the other sizes)
     vlm3 plan --config=joint --topology=v5p:2x2x2
The sets of the four recipes in their own proportions. The paper trains one model a task, so shares, length, batch and
rate are ours.
"""

from vlm3_jax import config as base

depth = base.module("depth")
SHARES = {"depth": 0.4, "correspondence": 0.3, "pose": 0.2, "objects": 0.1}


def get_config(argument: str = "4b"):
    """`argument`: the size of Qwen3-VL."""
    config = depth.recipe("joint", argument)
    for task, share in SHARES.items():
        recipe = base.load(task)
        data, evaluation = recipe.data.components, recipe.eval.components
        total = sum(entry.weight for entry in data.values())
        for name, entry in data.items():
            entry.weight = evaluation[name].weight = share * entry.weight / total
            config.data.components[f"{task}_{name}"] = entry
            config.eval.components[f"{task}_{name}"] = evaluation[name]
    config.data.row_tokens, config.data.row_patches, config.data.row_targets = 12288, 45056, 2048
    config.data.pairs, config.data.patch_pairs = 3584, 53248
    config.data.rows, config.train.accumulation = 16, 17
    config.train.samples, config.train.batch = 32_000_000, 1344
    config.optimizer.learning_rate = 5e-5
    return config
