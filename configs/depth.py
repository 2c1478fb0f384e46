"""Metric depth, the paper's recipe: 32 M samples of ten questions, 1,344 a step.

Run: vlm3 train --config=depth --workdir=runs/depth        (4B; depth:2b, depth:8b and depth:32b are the other sizes)
     vlm3 train --config=depth:4b,sets=waymo+hm3d ...      (on the sets that one has)
     vlm3 plan --config=depth --topology=v5p:2x2x2
The data are not part of this project: mixtures.py says where they are looked for and how they are weighed, recipes.py
how long rows and runs are, and both what was published and what is chosen here.
"""

from vlm3_jax import recipes


def get_config(argument: str = "4b"):
    """`argument`: the size of Qwen3-VL, and the sets, as in "4b,sets=waymo+hm3d" (else all)."""
    return recipes.paper("depth", argument)
