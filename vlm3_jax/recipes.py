"""What the shipped configs share beside their data: the paper's recipes by task, and how the tiny model is trained.

Published: samples, batch and rate. Not published, and chosen here: one rate for all sizes of the model, and everything
of `joint`, since the paper trains one model a task.
"""

import dataclasses

import ml_collections

from vlm3_jax import config as configs
from vlm3_jax import mixtures
from vlm3_jax.errors import UserError

SIZES = ("2b", "4b", "8b", "32b")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """`samples` of the run and `batch` of a step, which takes `rows` x `accumulation` rows.

    `row`: the tokens, patches and supervised tokens that one holds; `pairs`: of blocks of its tokens and patches.
    """

    samples: int
    batch: int
    learning_rate: float
    row: tuple[int, int, int]
    pairs: tuple[int, int]
    rows: int
    accumulation: int


PAPER = {
    "depth": Recipe(32_000_000, 1344, 5.5e-5, (7168, 16384, 1152), (768, 4608), 16, 29),
    "objects": Recipe(1_000_000, 640, 3.5e-4, (6656, 16384, 1536), (512, 8704), 32, 5),
    "correspondence": Recipe(80_000_000, 2816, 2e-5, (8704, 22528, 768), (768, 5632), 32, 27),
    "pose": Recipe(10_000_000, 448, 5e-5, (12288, 45056, 768), (3584, 53248), 24, 5),
    "joint": Recipe(32_000_000, 1344, 5e-5, (12288, 45056, 2048), (3584, 53248), 16, 17),
}


def paper(name: str, argument: str, shares: dict[str, float] | None = None) -> ml_collections.ConfigDict:
    """The config of a recipe.

    `argument` of "4b", "4b,sets=waymo+hm3d" or "sets=waymo": the size of Qwen3-VL (else 4b) and the sets that there are
    (else all). `shares`: of the tasks of a joint model. UserError for an unknown size or set.
    """
    size, sets = _parse(name, argument)
    recipe, config = PAPER[name], configs.base()
    config.model, config.workdir = f"Qwen/Qwen3-VL-{size.upper()}-Instruct", f"runs/{name}-{size}"
    mixtures.check_sets(f"{name}:{argument}", sets, shares or (name,))
    for task, share in (shares or {name: None}).items():
        mixtures.add_paper(config, task, sets, share)
    config.data.row_tokens, config.data.row_patches, config.data.row_targets = recipe.row
    config.data.pair_block, (config.data.pairs, config.data.patch_pairs) = 128, recipe.pairs
    config.data.rows, config.train.accumulation = recipe.rows, recipe.accumulation
    config.train.samples, config.train.batch = recipe.samples, recipe.batch
    config.train.save_every, config.train.eval_every = 250, 500
    config.optimizer.learning_rate = recipe.learning_rate
    return config


# What rows of the tiny model hold for whoever tries own data: short questions, or texts in a vocabulary of few words.
TINY_ROW, TINY_TEXT = (512, 256, 160), (2048, 384, 1024)


def own(task: str, argument: str = "4b") -> ml_collections.ConfigDict:
    """The config of a run on one's own data, its components to be added: rows and rate as for the paper's task.

    `argument`: a size of Qwen3-VL, or "tiny" for the tiny model. UserError for another one.
    """
    if argument == "tiny":
        config = tiny()
        config.data.mode, config.data.rows, config.train.log_every = "turns", 2, 1
        row = TINY_TEXT if task in ("conversation", "objects") else TINY_ROW
        config.data.row_tokens, config.data.row_patches, config.data.row_targets = row
        config.eval.loss_batches = 1
        return config
    if argument not in SIZES:
        raise UserError(f"--config=...:{argument}: choose tiny, {', '.join(SIZES)}")
    recipe, config = PAPER.get(task, PAPER["objects"]), configs.base()
    config.model, config.workdir = f"Qwen/Qwen3-VL-{argument.upper()}-Instruct", f"runs/own-{argument}"
    config.data.row_tokens, config.data.row_patches, config.data.row_targets = recipe.row
    config.data.pair_block, (config.data.pairs, config.data.patch_pairs) = 128, recipe.pairs
    config.optimizer.learning_rate = recipe.learning_rate
    return config


def wording(task: str, argument: str = "4b") -> dict:
    """The fields that say how a component is asked: as released, or short and small for the tiny model."""
    if argument != "tiny":
        return {}
    whole = task in ("conversation", "objects")
    return {"protocol": "short", "questions": 4} | ({"resize": "at_most:128"} if whole else {})


def _parse(name: str, argument: str) -> tuple[str, tuple[str, ...]]:
    size, sets = "4b", ()
    for part in argument.split(","):
        if part.startswith("sets="):
            sets = tuple(part.removeprefix("sets=").split("+"))
        elif part in SIZES:
            size = part
        else:
            sizes = f" or {name}:".join(SIZES)
            raise UserError(f"--config={name}:{argument}: choose {name}:{sizes}; or sets, as in {name}:4b,sets=A+B")
    return size, sets


def tiny() -> ml_collections.ConfigDict:
    """The tiny model in float32, with short questions that see the images and themselves."""
    config = configs.base()
    config.model = "tiny:demo"
    config.data.mode, config.data.rows = "independent", 8
    config.optimizer.b2, config.optimizer.clip = 0.98, 1.0
    config.train.dtype, config.train.remat, config.train.export = "float32", "none", "float32"
    config.train.log_every = 20
    return config


def demo(length: str = "short") -> ml_collections.ConfigDict:
    """The demo's run on rendered scenes of all four tasks: "short" (minutes) or "long" (hours)."""
    config = tiny()
    config.workdir = "runs/demo"
    mixtures.add_rendered(config, mixtures.RENDERED[length])
    config.data.first_answer_weight = 3.0
    config.data.row_tokens, config.data.row_patches, config.data.row_targets = 288, 96, 96
    config.data.pair_block, config.data.pairs, config.data.patch_pairs = 16, 171, 36
    config.optimizer.learning_rate, config.optimizer.warmup = 1e-3, 0.017
    config.optimizer.schedule, config.optimizer.tail, config.optimizer.final = "linear_tail", 0.5, 0.02
    config.train.samples = 48_000
    config.train.eval_every, config.train.save_every = 500, 500
    config.eval.records, config.eval.loss_batches = 256, 4
    config.eval.image_sets, config.eval.questions, config.eval.max_new_tokens = 32, 10, 24
    return config
