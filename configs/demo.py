"""The demo: a tiny model learns metric depth, and starts on the other three tasks, from rendered scenes on two cores.

Run: make demo                       (about 15 minutes; all steps, with a report)
     vlm3 demo --workdir=runs/demo   (the same, with the package installed)
     vlm3 train --config=demo --workdir=runs/demo   (training alone, on data that `vlm3 demo` has rendered)
`demo:long` is the run of an hour or more for all four tasks (make demo-long), on pairs of images whose poses each image
alone tells much of (docs/decisions.md); README has its table.
The wording is "short" (our own) and the model 0.8 M parameters: see docs/decisions.md for what the demo can show.
"""

from vlm3_jax import recipes
from vlm3_jax.errors import UserError


def get_config(argument: str = "short"):
    """`argument`: "short" (minutes) or "long" (hours)."""
    if argument not in ("short", "long"):
        raise UserError(f"--config=demo:{argument}: choose demo:short or demo:long")
    config = recipes.demo(argument)
    if argument == "long":
        config.synth.motion = "crane"
        config.mesh.cpu_devices, config.mesh.replica, config.mesh.fsdp = 2, 2, 1
        config.train.samples = 110_000
    return config
