"""All four tasks in one model: depth 40 %, correspondence 30 %, pose 20 % and objects 10 % of the draws.

Run: vlm3 train --config=joint --workdir=runs/joint    (4B; joint:2b, joint:8b and joint:32b are the other sizes)
     vlm3 train --config=joint:4b,sets=waymo+ase ...   (on the sets that one has; a task that has none is left out)
     vlm3 plan --config=joint --topology=v5p:2x2x2
The sets of the four recipes in their own proportions. The paper trains one model a task, so shares, length, batch and
rate are ours.
"""

from vlm3_jax import mixtures, recipes


def get_config(argument: str = "4b"):
    """`argument`: the size of Qwen3-VL, and the sets, as in "4b,sets=waymo+ase" (else all)."""
    return recipes.paper("joint", argument, mixtures.JOINT)
