"""What questions share: the images, and the words with which all of them begin."""

import dataclasses
import hashlib
import math
from collections.abc import Sequence

import numpy as np

from vlm3_jax.data.packing import RowBudget, pack
from vlm3_jax.data.samples import Sample, unsupervised
from vlm3_jax.data.visibility import sparse_rows, visible_blocks
from vlm3_jax.infer.buckets import bucket
from vlm3_jax.processor.image import VisionSpec
from vlm3_jax.processor.prompt import Prompt

# What the vision tower reads of a batch.
_SEEN = ("patches", "patch_images", "patch_positions", "table_index", "table_weight")
# Blocks of patches and of tokens, at most so large, of which only pairs that see each other cost work: on CPUs, where
# that was measured (docs/benchmarks.md). Smaller ones than `_LEAST` cost more calls than they spare.
PATCH_BLOCK, TOKEN_BLOCK = 512, 256
_LEAST = 64


def with_shared_head(prompt: Prompt) -> Prompt:
    """The same prompt; the tokens with which all of its questions begin stand at the end of the prefix.

    A single question, and the last token of each, stay as they are.
    """
    shortest = min((len(tokens) for tokens in prompt.suffix_tokens), default=0)
    if len(prompt.suffix_tokens) < 2 or shortest < 2:
        return prompt
    heads = np.stack([tokens[: shortest - 1] for tokens in prompt.suffix_tokens])
    parted = (heads != heads[0]).any(0)
    n = int(parted.argmax()) if parted.any() else shortest - 1
    return dataclasses.replace(
        prompt,
        prefix_tokens=np.concatenate([prompt.prefix_tokens, heads[0, :n]]),
        prefix_positions=np.concatenate([prompt.prefix_positions, prompt.suffix_positions[0][:, :n]], 1),
        suffix_tokens=tuple(tokens[n:] for tokens in prompt.suffix_tokens),
        suffix_positions=tuple(positions[:, n:] for positions in prompt.suffix_positions),
    )


def prefix_batch(
    prompts: Sequence[Prompt], patches: Sequence[Sequence[np.ndarray]], rows: int, spec: VisionSpec, pairs: bool = False
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
    """What the vision tower and what the decoder reads of the prefixes, and start int32 [B]; B = `rows`, some empty.

    With `pairs` long rows come with the pairs of blocks that see each other (`model/block_pairs.py`).
    """
    unit = spec.merge_size**2
    budget = RowBudget(
        tokens=_tokens(max(len(p.prefix_tokens) for p in prompts), pairs),
        patches=bucket(max(sum(layout.n_patches for layout in p.images) for p in prompts), 8 * unit),
        targets=1,
    )
    empty = [[]] * (rows - len(prompts))
    batch = pack([[_sample(p)] for p in prompts] + empty, [[arrays] for arrays in patches] + empty, budget, spec)
    start = np.zeros(rows, np.int32)
    start[: len(prompts)] = [p.suffix_positions[0][0, 0] for p in prompts]
    seen = {name: batch[name] for name in _SEEN}
    names = ("tokens", "positions", "segments", "visual_index", "visual_slot")
    read = {name: batch[name] for name in names}
    if pairs:
        seen |= _pairs("patch_pair", batch["patch_images"], PATCH_BLOCK)
        read |= _pairs("pair", batch["segments"], TOKEN_BLOCK, batch["questions"])
    return seen, read, start


def _tokens(length: int, pairs: bool) -> int:
    """The row of a prefix: a long one in whole blocks, if it comes with pairs of them."""
    unit = 32 if not pairs or length <= 256 else 64 if length <= 512 else 128
    return bucket(length, unit, 8)


def _pairs(name: str, segments_BS: np.ndarray, most: int, questions_BS: np.ndarray | None = None) -> dict:
    """The lists of rows, as `pack` names them; empty if there is no block that is small enough and divides a row."""
    rows, S = segments_BS.shape
    block = math.gcd(S, most)
    if block < _LEAST or block == S:
        return {}
    n = S // block
    starts, keys = np.zeros((rows, n + 1), np.int32), np.zeros((rows, n * n), np.int32)
    for row in range(rows):
        blocks = visible_blocks(segments_BS[row], block, None if questions_BS is None else questions_BS[row])
        starts[row], keys[row] = sparse_rows(blocks, n * n)
    return {f"{name}_starts": starts, f"{name}_keys": keys}


def content(*trees) -> bytes:
    """A hash of the contents of dicts of arrays (or arrays)."""
    digest = hashlib.blake2b(digest_size=16)
    for tree in trees:
        for name, array in sorted(tree.items()) if isinstance(tree, dict) else [("", tree)]:
            digest.update(f"{name} {array.dtype} {array.shape} ".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


def _sample(prompt: Prompt) -> Sample:
    return unsupervised(prompt.prefix_tokens, prompt.prefix_positions, prompt.visual_slot, prompt.images)
