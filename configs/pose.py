"""Relative camera pose of two views, the paper's recipe: 10 M samples of three questions, 448 a step.

Run: vlm3 train --config=pose --workdir=runs/pose      (4B; pose:2b, pose:8b and pose:32b are the other sizes)
     vlm3 train --config=pose:4b,sets=ase+dl3dv ...    (on the sets that one has)
     vlm3 plan --config=pose --topology=v5p:2x2x2
The pairs of `correspondence`, those of RealEstate10K included; a set that is known up to scale is not asked for the
distance (its records say so). mixtures.py says where they are looked for, recipes.py how long rows and runs are.
"""

from vlm3_jax import recipes


def get_config(argument: str = "4b"):
    """`argument`: the size of Qwen3-VL, and the sets, as in "4b,sets=ase+dl3dv" (else all)."""
    return recipes.paper("pose", argument)
