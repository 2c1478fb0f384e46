"""The demo: a tiny model learns metric depth, and starts on the other three tasks, from rendered scenes on two cores.

Run: make demo                       (about 15 minutes; all steps, with a report)
     vlm3 demo --workdir=runs/demo   (the same, with the package installed)
     vlm3 train --config=demo --workdir=runs/demo   (training alone, on data that `vlm3 demo` has rendered)
`demo:long` is the run of an hour or more for all four tasks (make demo-long), on pairs of images whose poses each image
alone tells much of (docs/decisions.md); README has its table.
The wording is "short" (our own) and the model 0.8 M parameters: see docs/decisions.md for what the demo can show.
"""

from vlm3_jax import config as base
from vlm3_jax.data.sources import component_config
from vlm3_jax.errors import UserError

# Shares of the mixture: depth is what minutes are enough for; pairs of images are harder.
WEIGHTS = {
    "short": {"depth": 0.91, "objects": 0.03, "correspondence": 0.03, "pose": 0.03},
    "long": {"depth": 0.16, "objects": 0.34, "correspondence": 0.20, "pose": 0.30},
}
SAMPLES = {"short": 54_000, "long": 110_000}
# A depth question names one of 10 x 10 cells: the true median depth of its cell is within 25 % for 92 % of the pixels.
COORD_RANGE = {"depth": 10, "objects": 100, "correspondence": 100, "pose": 100}
# Object questions are long (two boxes each); a pair has four pose questions.
QUESTIONS = {"depth": 8, "objects": 4, "correspondence": 8, "pose": 4}


def get_config(argument: str = "short"):
    """`argument`: "short" (minutes) or "long" (hours)."""
    if argument not in SAMPLES:
        raise UserError(f"--config=demo:{argument}: choose demo:{' or demo:'.join(SAMPLES)}")
    config = base.base()
    config.model = "tiny:demo"
    config.workdir = "runs/demo"
    for task, weight in WEIGHTS[argument].items():
        entry = component_config(
            kind="records",
            path="runs/demo/data/train",
            task=task,
            weight=weight,
            protocol="short",
            coord_range=COORD_RANGE[task],
            questions=QUESTIONS[task],
            flip=0.5,
            covisibility_min=0.25 if task in ("correspondence", "pose") else 0.0,
        )
        config.data.components[f"synth_{task}"] = entry
        held_out = entry.copy_and_resolve_references()
        held_out.path, held_out.flip = "runs/demo/data/held_out", 0.0
        config.eval.components[f"synth_{task}"] = held_out

    if argument == "long":
        config.synth.motion = "crane"
        config.mesh.cpu_devices, config.mesh.replica, config.mesh.fsdp = 2, 2, 1

    config.data.mode = "independent"
    config.data.first_answer_weight = 3.0
    config.data.rows, config.data.row_tokens, config.data.row_patches, config.data.row_targets = 8, 288, 96, 96
    config.data.block, config.data.reach = 16, 6
    config.optimizer.learning_rate, config.optimizer.b2, config.optimizer.clip = 1e-3, 0.98, 1.0
    config.optimizer.schedule, config.optimizer.tail, config.optimizer.final = "linear_tail", 0.5, 0.02
    config.optimizer.warmup = 0.017
    config.train.samples = SAMPLES[argument]
    config.train.dtype, config.train.remat, config.train.export = "float32", "none", "float32"
    config.train.log_every, config.train.eval_every, config.train.save_every = 20, 500, 500
    config.eval.records, config.eval.loss_batches = 256, 4
    config.eval.image_sets, config.eval.questions, config.eval.max_new_tokens = 32, 10, 24
    return config
