"""Attention as one function: who may see whom is described by ids and block lists, prepared once for all layers."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vlm3_jax.model.block_pairs import Pairs
from vlm3_jax.model.block_pairs import attend as block_pairs
from vlm3_jax.model.layers import Locally, run_as_it_is

# Scores of so many (query, key) pairs a row are computed at once; longer rows go in chunks of queries.
MAX_PAIRS = 1 << 22
_LOW = float(jnp.finfo(jnp.float32).min)


@functools.partial(jax.tree_util.register_dataclass, data_fields=("segments", "questions", "order"), meta_fields=())
@dataclasses.dataclass(frozen=True)
class Ids:
    """What decides visibility, int32 [B, S] each.

    `segments`: the sample (or image) a token belongs to, 0 for padding. `questions`: 0 for the shared prefix, else the
    number of the independent question. `order`: place in the row for causal attention, or None.
    """

    segments: jax.Array
    questions: jax.Array | None = None
    order: jax.Array | None = None


def visible(queries: Ids, keys: Ids) -> jax.Array:
    """bool [..., S, T]: same segment, not later, and a question sees only the shared prefix and itself."""

    def pairs(a, b):
        return a[..., :, None], b[..., None, :]

    q, k = pairs(queries.segments, keys.segments)
    mask = q == k
    if queries.order is not None:
        q, k = pairs(queries.order, keys.order)
        mask &= k <= q
    if queries.questions is not None:
        q, k = pairs(queries.questions, keys.questions)
        mask &= (k == 0) | (k == q)
    return mask


def listed(batch: dict, name: str) -> Pairs | None:
    """The pairs of blocks that the host has listed under `name` ("pair": text, "patch_pair": images), if it has."""
    return Pairs(batch[f"{name}_starts"], batch[f"{name}_keys"]) if f"{name}_keys" in batch else None


def prepare(ids: Ids, blocks=None, pairs: Pairs | None = None, locally: Locally = run_as_it_is) -> Callable:
    """Self-attention (q [B, S, H, C], k, v [B, S, K, C]) -> [B, S, H, C] within a row, for any number of layers.

    `blocks` int32 [B, S / block, reach], from the host: the key blocks that each query block can see, -1 unused; the
    work is then S * reach * block pairs instead of S * S. `pairs`: the same as sparse rows, for long samples; they are
    worked through one by one, by each device for its own rows (`locally`). Scores and softmax are float32.
    """
    if pairs is not None:
        return lambda q, k, v: locally(functools.partial(block_pairs, visible=visible))(q, k, v, ids, pairs)
    if blocks is not None:
        return _by_blocks(ids, blocks)
    S = ids.segments.shape[1]
    size = max(1, MAX_PAIRS // S)
    if size >= S:
        mask = visible(ids, ids)
        return lambda q, k, v: _attend(q, k, v, mask)
    return _by_chunks(ids, -(-S // size))


def _by_chunks(ids: Ids, chunks: int) -> Callable:
    """Dense attention for long rows: a chunk of queries at a time, masks made and scores recomputed chunk by chunk."""
    S = ids.segments.shape[1]
    size = -(-S // chunks)

    def split(x):
        x = jnp.pad(x, [(0, 0), (0, chunks * size - S)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], chunks, size, *x.shape[2:]), 1, 0)

    def attend(q, k, v):
        @jax.checkpoint
        def chunk(item):
            q, part = item
            return _attend(q, k, v, visible(part, ids))

        out = jax.lax.map(chunk, (split(q), jax.tree.map(split, ids)))
        return jnp.moveaxis(out, 0, 1).reshape(q.shape[0], chunks * size, *q.shape[2:])[:, :S]

    return attend


def _by_blocks(ids: Ids, blocks) -> Callable:
    """Every query block against the key blocks of its list."""
    (B, S), (_, count, reach) = ids.segments.shape, blocks.shape
    block = S // count

    def chosen(x):
        """[B, S] ids -> those of the listed key blocks [B, count, reach * block]; -1 where the list is unused."""
        x = x.reshape(B, count, block)
        x = jnp.take_along_axis(x, jnp.maximum(blocks, 0).reshape(B, -1)[..., None], 1)
        x = x.reshape(B, count, reach, block)
        return jnp.where(blocks[..., None] < 0, -1, x).reshape(B, count, reach * block)

    split = jax.tree.map(lambda x: x.reshape(B, count, block), ids)
    mask = visible(split, jax.tree.map(chosen, ids)).reshape(B * count, block, reach * block)
    # A product with a one-hot matrix gathers; its backward pass is one more product and not a scatter.
    choice = jax.nn.one_hot(blocks.reshape(B, -1), count)

    def gather(x):
        rows = jnp.einsum("bij,bjx->bix", choice.astype(x.dtype), x.reshape(B, count, -1))
        return rows.reshape(B * count, reach * block, *x.shape[2:])

    def attend(q, k, v):
        out = _attend(q.reshape(B * count, block, *q.shape[2:]), gather(k), gather(v), mask)
        return out.reshape(q.shape)

    return attend


def _attend(q_BSHC, k_BTKC, v_BTKC, mask_BST):
    """Softmax attention with grouped kv heads; a query that sees nothing gets the mean of all values (never used)."""
    (B, S, H, C), (_, T, K, _) = q_BSHC.shape, k_BTKC.shape
    G = H // K
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    # The queries of all heads of a group side by side: plain batched products, which CPUs run up to twice as fast.
    q = q_BSHC.reshape(B, S, K, G, C).transpose(0, 2, 3, 1, 4).reshape(B, K, G * S, C)
    k, v = (x.transpose(0, 2, 1, 3) for x in (k_BTKC, v_BTKC))
    scores = product("bkxc,bktc->bkxt", q, k).reshape(B, K, G, S, T) * C**-0.5
    scores = jnp.where(mask_BST[:, None, None], scores, _LOW)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype).reshape(B, K, G * S, T)
    out = product("bkxt,bktc->bkxc", weights, v).reshape(B, K, G, S, C)
    return out.transpose(0, 3, 1, 2, 4).reshape(B, S, H, C).astype(q.dtype)
