"""Attention as one function: who may see whom is described by ids, never by a dense N x N mask in memory."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

# Scores of so many (query, key) pairs a row are computed at once; longer rows go in chunks of queries.
MAX_PAIRS = 1 << 22


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
    """bool [B, S, T]: same segment, not later, and a question sees only the shared prefix and itself."""

    def pairs(a, b):
        return a[:, :, None], b[:, None, :]

    q, k = pairs(queries.segments, keys.segments)
    mask = q == k
    if queries.order is not None:
        q, k = pairs(queries.order, keys.order)
        mask &= k <= q
    if queries.questions is not None:
        q, k = pairs(queries.questions, keys.questions)
        mask &= (k == 0) | (k == q)
    return mask


def attend(q_BSHC, k_BTKC, v_BTKC, queries: Ids, keys: Ids):
    """Softmax attention with grouped kv heads, scores and softmax in float32. Returns [B, S, H, C].

    A query that sees nothing (padding in a cache) gets the mean of all values: finite, and never used.
    """
    S, T = q_BSHC.shape[1], k_BTKC.shape[1]
    size = max(1, MAX_PAIRS // T)
    if size >= S:
        return _attend(q_BSHC, k_BTKC, v_BTKC, visible(queries, keys))
    chunks = -(-S // size)
    size = -(-S // chunks)

    def split(x):
        if x is None:
            return None
        x = jnp.pad(x, [(0, 0), (0, chunks * size - S)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], chunks, size, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def chunk(item):
        q, ids = item
        return _attend(q, k_BTKC, v_BTKC, visible(ids, keys))

    out = jax.lax.map(chunk, (split(q_BSHC), jax.tree.map(split, queries)))
    return jnp.moveaxis(out, 0, 1).reshape(q_BSHC.shape[0], chunks * size, *q_BSHC.shape[2:])[:, :S]


def _attend(q_BSHC, k_BTKC, v_BTKC, mask_BST):
    B, S, H, C = q_BSHC.shape
    K = k_BTKC.shape[2]
    q = q_BSHC.reshape(B, S, K, H // K, C)
    scores = jnp.einsum("bskgc,btkc->bkgst", q, k_BTKC, preferred_element_type=jnp.float32) * C**-0.5
    scores = jnp.where(mask_BST[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    out = jnp.einsum("bkgst,btkc->bskgc", weights, v_BTKC, preferred_element_type=jnp.float32)
    return out.reshape(B, S, H, C).astype(q.dtype)
