"""Samples of a recipe without its data: image sizes from the mixture table, lengths of texts from measured means.

They are packed by the code that packs training rows, so fill, attention work and samples a step follow from it.
"""

import dataclasses
import math

import numpy as np

from vlm3_jax import pretrained, storage, weighting
from vlm3_jax.camera import Camera
from vlm3_jax.config import protocol_of
from vlm3_jax.data.packing import RowBudget, batch_stats, fits, lengths, looked_at, needs
from vlm3_jax.data.samples import Sample
from vlm3_jax.data.schedule import Scheduler
from vlm3_jax.errors import UserError
from vlm3_jax.model import flops
from vlm3_jax.model.config import VLMConfig
from vlm3_jax.processor.image import VisionSpec, fit_camera, image_layout
from vlm3_jax.records import ImageRef, View

# Tokens of a question with its answer and the chat around it, and of its answer alone, on average: Qwen's vocabulary
# and our tasks' wording, measured by tests/planning/test_planning.py.
TEXT = {
    ("depth", "release"): (121, 33),
    ("depth", "paper"): (54, 8),
    ("objects", "release"): (105, 48),
    ("objects", "paper"): (113, 53),
    ("correspondence", "release"): (57, 12),
    ("correspondence", "paper"): (65, 17),
    ("pose", "release"): (69, 19),
    ("pose", "paper"): (86, 23),
}
SHORT = (16, 6)
IMAGES = {"depth": 1, "objects": 1, "correspondence": 2, "pose": 2, "conversation": 1}
STREAMS = 8


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of a recipe as packing makes them, means a row: `samples`, shares of the budget filled, and `lengths`.

    `looked_at`: pairs of tokens and of patches that attention looks at. `needs`: the most (pairs, patch_pairs,
    supervised tokens) of a row.
    """

    samples: float
    token_fill: float
    patch_fill: float
    lengths: flops.Lengths
    looked_at: tuple[float, float]
    needs: tuple[int, int, int]


def vision_spec(model: str, cfg: VLMConfig) -> VisionSpec:
    """What the tower expects: as a model's folder says, else with the pixel bounds of Qwen's processor."""
    if storage.path(model).is_dir():
        return pretrained.open(model).spec
    return VisionSpec.of(cfg, 65_536, 16_777_216)


def sample_of(name: str, fields, budget: RowBudget, spec: VisionSpec) -> Sample:
    """A sample of a component, cropped as in training; UserError if it names no `size` or fits no row."""
    if len(fields.size) != 3:
        raise UserError(f"component {name!r}: size is {fields.size!r}, but a plan needs (width, height, focal) in px")
    width, height, focal = map(float, fields.size)
    images, (turn, answer) = IMAGES[fields.task], TEXT.get((fields.task, fields.protocol), SHORT)
    protocol = protocol_of(fields)
    camera = Camera(focal, focal, width / 2, height / 2, round(width), round(height))
    camera, asked = protocol.resize.camera(camera), protocol.questions
    n_text, n_targets, unit = turn * asked + 2 * images, answer * asked, spec.merge_size**2
    patches = min(budget.patches, (budget.tokens - n_text) * unit) // images
    if patches < unit or n_targets > budget.targets:
        raise UserError(
            f"component {name!r}: {n_text} tokens of text ({n_targets} supervised) and its images do not fit a "
            f"row; raise data.row_tokens ({budget.tokens}), data.row_patches ({budget.patches}) or data.row_targets "
            f"({budget.targets}), or ask fewer questions"
        )
    camera = fit_camera(camera, spec, patches)
    ref = ImageRef(camera.width, camera.height, name, data=b"")
    layouts = (image_layout(View(ref, camera), spec),) * images
    visual = sum(layout.n_visual for layout in layouts)
    tokens = np.zeros(visual + n_text, np.int32)
    targets = np.zeros(n_targets, np.int32)
    return Sample(
        name, 0, tokens, np.zeros((3, len(tokens)), np.int32), np.zeros_like(tokens), np.arange(visual), layouts,
        targets, targets, np.ones(len(targets), np.float32), targets > 0,
    )  # fmt: skip


def typical_rows(config, cfg: VLMConfig, budget: RowBudget, count: int = 512) -> Rows:
    """`count` rows of the mixture, packed as in training; components are drawn by weight with the config's seed."""
    spec = vision_spec(config.model, cfg)
    components = {name: fields for name, fields in config.data.components.items() if fields.weight > 0}
    if not components:
        raise UserError("data.components is empty: nothing to plan for")
    samples = [sample_of(name, fields, budget, spec) for name, fields in components.items()]
    data, sizes = config.data, {name: fields.limit or fields.records for name, fields in components.items()}
    weights = weighting.resolve(data.components, data.groups, data.weights, sizes, config.train.samples)
    weights = np.array(list(weights.values()))
    drawn = np.random.default_rng(config.seed).choice(len(samples), 1 << 16, p=weights / weights.sum())
    # Lists of blocks are sized to what rows need, so they are no bound here.
    loose = dataclasses.replace(budget, pair_block=0)
    scheduler = Scheduler(lambda i: samples[drawn[i % len(drawn)]], lambda row: fits(row, loose), STREAMS)
    cursors, rows = np.arange(STREAMS), []
    while len(rows) < count:
        batch = scheduler.batch(cursors)
        cursors = batch.cursors
        rows += batch.rows
    held, found, mean = lengths(rows), [needs(row, budget) for row in rows], 1 / len(rows)
    stats = batch_stats(rows, held, budget)
    return Rows(
        samples=sum(map(len, rows)) * mean,
        token_fill=stats["token_fill"],
        patch_fill=stats["patch_fill"],
        lengths=flops.Lengths(
            tokens=round(held.tokens * mean),
            patches=round(held.patches * mean),
            targets=round(held.targets * mean),
            text_pairs=held.text_pairs * mean,
            vision_pairs=round(held.vision_pairs * mean),
        ),
        looked_at=tuple(np.mean([looked_at(row, budget) for row in rows], 0).tolist()),
        needs=tuple(max(getattr(t, name) for t in found) for name in ("pairs", "patch_pairs", "targets")),
    )


def total_rows(config) -> int:
    """Rows of one update: those of all accumulated batches."""
    return config.data.rows * config.train.accumulation


def accumulation_for(rows: int, rows_at_once: int) -> int:
    """How many batches of `rows_at_once` come closest to `rows`, at least one."""
    return max(1, math.floor(rows / rows_at_once + 0.5))
