"""Objects and their relations in 3-D, the paper's recipe: a million images of six questions, 640 a step.

Run: vlm3 train --config=objects --workdir=runs/objects      (4B; objects:2b, objects:8b and objects:32b)
     vlm3 plan --config=objects --topology=v5p:2x2x2
The data are not part of this project: mixtures.py says where they are looked for, recipes.py how long rows and runs
are, and both what was published and what is chosen here.
"""

from vlm3_jax import recipes


def get_config(argument: str = "4b"):
    """`argument`: the size of Qwen3-VL, and the sets, as in "4b,sets=open_spatial" (else all)."""
    return recipes.paper("objects", argument)
