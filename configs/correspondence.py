"""Pixel correspondence between two views, the paper's recipe: 80 M samples of ten questions, 2,816 a step.

Run: vlm3 train --config=correspondence --workdir=runs/correspondence    (4B; correspondence:2b, :8b and :32b)
     vlm3 train --config=correspondence:4b,sets=ase+dl3dv ...            (on the sets that one has)
     vlm3 plan --config=correspondence --topology=v5p:2x2x2
Images are shown with 1,024 px on the longer side, as the release does; the paper's text says a focal length of 1,000 px
(--config.data.components.NAME.resize=focal:1000:per_axis). The data are not part of this project: mixtures.py says
where they are looked for and how they are weighed, recipes.py how long rows and runs are.
"""

from vlm3_jax import recipes


def get_config(argument: str = "4b"):
    """`argument`: the size of Qwen3-VL, and the sets, as in "4b,sets=ase+dl3dv" (else all)."""
    return recipes.paper("correspondence", argument)
