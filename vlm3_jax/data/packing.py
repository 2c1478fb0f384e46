"""Rows: several samples side by side in arrays of one fixed shape, whatever their lengths and image sizes.

Letters: B rows, S tokens and P patches a row, V = P / merge**2 visual tokens, T supervised tokens.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from vlm3_jax.data.samples import Sample
from vlm3_jax.data.visibility import sparse_rows, visible_blocks
from vlm3_jax.errors import BadRecord
from vlm3_jax.model.flops import Lengths, visible_pairs
from vlm3_jax.processor.image import VisionSpec, patch_positions, table_lookup

# What the fields of a RowBudget are called in the `data` part of a config, in their order.
FIELDS = {"tokens": "row_tokens", "patches": "row_patches", "targets": "row_targets"}
FIELDS |= {name: name for name in ("pair_block", "pairs", "patch_pairs")}


@dataclasses.dataclass(frozen=True)
class RowBudget:
    """What a row holds at most: tokens S, patches P (a multiple of merge**2) and supervised tokens T.

    Attention looks at every pair of the row, unless lists say which blocks see each other: with `pair_block` above 0 a
    row has at most `pairs` pairs of blocks of so many tokens, and `patch_pairs` of so many patches.
    """

    tokens: int
    patches: int
    targets: int
    pair_block: int = 0
    pairs: int = 0
    patch_pairs: int = 0

    @classmethod
    def from_config(cls, data) -> "RowBudget":
        """That of the `data` part of a config."""
        return cls(*(data[name] for name in FIELDS.values()))


@dataclasses.dataclass(frozen=True)
class Needs:
    """What samples take of a row together, named as in `RowBudget`."""

    tokens: int
    patches: int
    targets: int
    pairs: int
    patch_pairs: int


def needs(samples: Sequence[Sample], budget: RowBudget) -> Needs:
    """What the samples take together in rows like `budget`."""
    tokens, patches = sum(len(s.tokens) for s in samples), sum(s.n_patches for s in samples)
    pairs = patch_pairs = 0
    if budget.pair_block:
        seen = _row_pairs(samples, budget.pair_block, tokens, patches)
        pairs, patch_pairs = (int(blocks.sum()) for blocks in seen)
    targets = sum(len(s.target_tokens) for s in samples)
    return Needs(tokens, patches, targets, pairs, patch_pairs)


def _row_pairs(samples: Sequence[Sample], size: int, tokens: int, patches: int):
    """Which blocks see each other, bool [n, n], of a row's text and of its images."""
    text, images = np.zeros((2, -(-tokens // size) * size), np.int32), np.zeros(-(-patches // size) * size, np.int32)
    for segment, (sample, start) in enumerate(zip(samples, _starts(samples)), 1):
        here = slice(start, start + len(sample.tokens))
        text[0, here], text[1, here] = segment, sample.questions
    lengths = [layout.n_patches for sample in samples for layout in sample.images]
    images[:patches] = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    return visible_blocks(text[0], size, text[1]), visible_blocks(images, size)


def fits(samples: Sequence[Sample], budget: RowBudget) -> bool:
    """Whether the samples fit into one row."""
    return not excess(samples, budget)


def check_fits(samples: Sequence[Sample], budget: RowBudget) -> None:
    """BadRecord that says what is too large, and the budget, if the samples do not fit into one row."""
    if found := excess(samples, budget):
        raise BadRecord(f"{', '.join(s.id for s in samples)}: too large for a row ({'; '.join(found)})")


def excess(samples: Sequence[Sample], budget: RowBudget) -> list[str]:
    """What is too large for one row, as text; empty if the samples fit."""
    short = _short(needs(samples, budget), budget)
    names = {"tokens": "tokens", "patches": "patches", "targets": "supervised tokens"}
    names |= {"pairs": "pairs of text blocks", "patch_pairs": "pairs of patch blocks"}
    return [f"{taken} {names[field]}, a row holds {getattr(budget, field)}" for field, taken in short.items()]


def _short(taken: Needs, budget: RowBudget) -> dict[str, int]:
    """What is taken of each thing that the budget has too little of."""
    return {field: n for field, n in vars(taken).items() if n > getattr(budget, field)}


def enough(samples: Sequence[Sample], budget: RowBudget, merge_size: int) -> dict[str, int]:
    """The fields of `data` that are too small for the samples to fit into one row, and what would do."""
    block = max(1, budget.pair_block)
    units = {"tokens": block, "patches": math.lcm(merge_size**2, block)}
    short = _short(needs(samples, budget), budget)
    return {FIELDS[field]: n + -n % units.get(field, 1) for field, n in short.items()}


def pack(
    rows: Sequence[Sequence[Sample]],
    patches: Sequence[Sequence[Sequence[np.ndarray | None]]],
    budget: RowBudget,
    spec: VisionSpec,
) -> dict[str, np.ndarray]:
    """A batch of rows; `patches[row][sample][image]` is what `ImageLayout.load` gave, or None if it failed.

    tokens [B, S] (0 where empty), positions [B, 3, S], segments [B, S] (sample number in the row, 0 empty), questions
    [B, S]; visual_index [B, S]: number of the visual token that stands there, else V; visual_slot [B, V]: its inverse,
    S where unused. patches uint8 [B, P, 3 * patch_size**2] (or as they are given: float32 and wider for video, one kind
    in a batch), patch_images [B, P] (image number in the row, 0 empty),
    patch_positions [B, P, 2] (row, column), table_index and table_weight (float32) [B, P, 4]. target_slot,
    target_tokens, target_weight (float32, 0 unused) and target_group (2 * group + later) [B, T]. All others int32.
    With `budget.pair_block` also pair_starts, pair_keys, patch_pair_starts and patch_pair_keys (`data/visibility.py`).
    A sample with a failed image keeps its tokens, but its targets weigh 0. BadRecord if a row is overfull.
    """
    n_rows, S, P, T = len(rows), budget.tokens, budget.patches, budget.targets
    V = P // spec.merge_size**2
    shown = next((image for row in patches for sample in row for image in sample if image is not None), None)
    width, dtype = (3 * spec.patch_size**2, np.uint8) if shown is None else (shown.shape[1], shown.dtype)
    batch = {
        "tokens": np.zeros((n_rows, S), np.int32),
        "positions": np.zeros((n_rows, 3, S), np.int32),
        "segments": np.zeros((n_rows, S), np.int32),
        "questions": np.zeros((n_rows, S), np.int32),
        "visual_index": np.full((n_rows, S), V, np.int32),
        "visual_slot": np.full((n_rows, V), S, np.int32),
        "patches": np.zeros((n_rows, P, width), dtype),
        "patch_images": np.zeros((n_rows, P), np.int32),
        "patch_positions": np.zeros((n_rows, P, 2), np.int32),
        "table_index": np.zeros((n_rows, P, 4), np.int32),
        "table_weight": np.zeros((n_rows, P, 4), np.float32),
        "target_slot": np.zeros((n_rows, T), np.int32),
        "target_tokens": np.zeros((n_rows, T), np.int32),
        "target_weight": np.zeros((n_rows, T), np.float32),
        "target_group": np.zeros((n_rows, T), np.int32),
    }
    if budget.pair_block:
        for name, length, pairs in (("pair", S, budget.pairs), ("patch_pair", P, budget.patch_pairs)):
            batch[f"{name}_starts"] = np.zeros((n_rows, length // budget.pair_block + 1), np.int32)
            batch[f"{name}_keys"] = np.full((n_rows, pairs), -1, np.int32)
    for number, (samples, pixels) in enumerate(zip(rows, patches, strict=True)):
        check_fits(samples, budget)
        row = {name: array[number] for name, array in batch.items()}
        starts = _starts(samples)
        _pack_text(row, samples, starts)
        _pack_images(row, samples, pixels, spec)
        _pack_targets(row, samples, pixels, starts)
        if budget.pair_block:
            _pack_pairs(row, samples, budget)
    return batch


def _starts(samples: Sequence[Sample]) -> list[int]:
    """The first token of each sample."""
    return np.cumsum([0, *(len(s.tokens) for s in samples)])[:-1].tolist()


def _pack_pairs(row: dict[str, np.ndarray], samples: Sequence[Sample], budget: RowBudget) -> None:
    seen = _row_pairs(samples, budget.pair_block, budget.tokens, sum(s.n_patches for s in samples))
    for name, blocks in zip(("pair", "patch_pair"), seen):
        starts, keys = row[f"{name}_starts"], row[f"{name}_keys"]
        n = len(blocks) + 1
        starts[:n], keys[:] = sparse_rows(blocks, len(keys))
        starts[n:] = starts[n - 1]


def _pack_text(row: dict[str, np.ndarray], samples: Sequence[Sample], starts: Sequence[int]) -> None:
    visual = 0
    for segment, (sample, start) in enumerate(zip(samples, starts, strict=True), 1):
        here = slice(start, start + len(sample.tokens))
        row["tokens"][here] = sample.tokens
        row["positions"][:, here] = sample.positions
        row["segments"][here] = segment
        row["questions"][here] = sample.questions
        slots = start + sample.visual_slot
        row["visual_index"][slots] = np.arange(visual, visual + len(slots))
        row["visual_slot"][visual : visual + len(slots)] = slots
        visual += len(slots)


def _pack_images(row: dict[str, np.ndarray], samples: Sequence[Sample], pixels, spec: VisionSpec) -> None:
    start = image = 0
    for sample, arrays in zip(samples, pixels, strict=True):
        for layout, array in zip(sample.images, arrays, strict=True):
            here = slice(start, start + layout.n_patches)
            image += 1
            if array is not None:
                row["patches"][here] = array
            row["patch_images"][here] = image
            row["patch_positions"][here] = patch_positions(layout.grid, spec)
            row["table_index"][here], row["table_weight"][here] = table_lookup(layout.grid, spec)
            start = here.stop


def _pack_targets(row: dict[str, np.ndarray], samples: Sequence[Sample], pixels, starts: Sequence[int]) -> None:
    start = 0
    for sample, arrays, token in zip(samples, pixels, starts, strict=True):
        here = slice(start, start + len(sample.target_tokens))
        row["target_slot"][here] = token + sample.target_slot
        row["target_tokens"][here] = sample.target_tokens
        row["target_weight"][here] = 0 if any(array is None for array in arrays) else sample.target_weight
        row["target_group"][here] = 2 * sample.component + sample.target_later
        start = here.stop


def lengths(rows: Sequence[Sequence[Sample]]) -> Lengths:
    """What `flops.lengths` counts in the packed rows, from the samples."""
    samples = [sample for row in rows for sample in row]
    return Lengths(
        tokens=sum(len(s.tokens) for s in samples),
        patches=sum(s.n_patches for s in samples),
        targets=sum(int((s.target_weight > 0).sum()) for s in samples),
        text_pairs=float(sum(visible_pairs(s.questions) for s in samples)),
        vision_pairs=sum(layout.n_patches**2 for s in samples for layout in s.images),
    )


def batch_stats(rows: Sequence[Sequence[Sample]], held: Lengths, budget: RowBudget) -> dict[str, float]:
    """How full the rows are, whose samples have the lengths `held`, and what they cost.

    `token_fill` and `patch_fill`: shares of the budget. `text_work` and `vision_work`: pairs of tokens (patches) that
    attention looks at, over those that have to be looked at: not later in the same sample, all of the same image.
    """
    text, vision = np.sum([looked_at(samples, budget) for samples in rows], 0)
    return {
        "token_fill": held.tokens / (len(rows) * budget.tokens),
        "patch_fill": held.patches / (len(rows) * budget.patches) if budget.patches else 0.0,
        "text_work": float(text / max(1, held.text_pairs)),
        "vision_work": float(vision / max(1, held.vision_pairs)),
    }


def looked_at(samples: Sequence[Sample], budget: RowBudget) -> tuple[int, int]:
    """Pairs of tokens and pairs of patches that attention looks at in a row (`model/attention.py`)."""
    if budget.pair_block:
        taken, area = needs(samples, budget), budget.pair_block**2
        return taken.pairs * area, taken.patch_pairs * area
    return budget.tokens**2, budget.patches**2
