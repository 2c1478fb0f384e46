"""Questions beside each other: attention to a prefix that all share and to what is each one's own, in one softmax.

The shared keys and values are read once for all questions; nothing is copied for each. Letters: see infer/decode.py.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vlm3_jax.model.block_pairs import SAFE, largest
from vlm3_jax.model.vlm import VLM
from vlm3_jax.shapes import Array

_LOW = float(jnp.finfo(jnp.float32).min)
# So many scores lie in memory at once; on a CPU as many as its cache holds: with 8 MB a part takes half the time.
_MOST_SCORES = {"cpu": 1 << 21}
_ELSEWHERE = 1 << 28


class Own(NamedTuple):
    """What a question's D new tokens see beside the prefix.

    fresh_seen: bool [B, Q, D, D], who of them sees whom; caches: {stack: (k, v)} of the question's earlier tokens
    (None: there are none), which end before the `columns` int32 [B, Q, D] in which those of the new ones belong. `seen`
    bool [B, Q, D, U]: which columns, its own among them, each new token sees (None: all up to its own).
    """

    fresh_seen: Array
    caches: dict | None = None
    columns: Array | None = None
    seen: Array | None = None


def extend(model: VLM, tokens, positions, context, own: Own, last=None):
    """Runs D more tokens of every question: (hidden [B, Q, D, width], caches {stack: (k, v)}).

    The caches are those of `own` with the new tokens' keys and values in their columns, or these alone if it has none.
    tokens and positions: int32 [B, Q, D]. `last` int32 [B, Q]: the one token of each that is wanted, hidden [B, Q, 1,
    width]; the last layer then looks at no other, where layers are a list.
    """
    B, Q, D = tokens.shape

    def of_last(x):
        """[B, Q * D, ...] -> [B, Q, ...]."""
        x = x.reshape(B, Q, D, *x.shape[2:])
        return jnp.take_along_axis(x, last.reshape(B, Q, *[1] * (x.ndim - 2)), 2)[:, :, 0]

    def attend(q, k, v, caches):
        prefix, earlier = caches
        k, v = (x.reshape(B, Q, D, *x.shape[2:]) for x in (k, v))
        fresh = k.transpose(0, 1, 3, 4, 2), v.swapaxes(2, 3)
        K, C = k.shape[3:]
        width = q.shape[1] // Q
        fresh_seen = own.fresh_seen
        if width != D:
            fresh_seen = jnp.take_along_axis(fresh_seen, last[..., None, None], 2)
        # The queries of all heads of a group side by side: [B, Q, K, width * G, C].
        q = q.reshape(B, Q, width, K, -1, C).transpose(0, 1, 3, 2, 4, 5)
        G = q.shape[4]
        q = q.reshape(B, Q, K, width * G, C)
        parts = [_shared(q, *prefix, context.seen)]
        if at_once:
            # Written before it is read: read first, the compiler would copy the whole cache.
            fresh = _put_columns(earlier, fresh, own.columns)
            seen = jnp.arange(fresh[0].shape[-1]) <= own.columns[..., None] if own.seen is None else own.seen
            parts.append(_part(q, *fresh, jnp.repeat(seen, G, 2)[:, :, None]))
        else:
            parts.append(_part(q, *fresh, jnp.repeat(fresh_seen, G, 2)[:, :, None]))
        if earlier is not None and not at_once:
            seen = (jnp.arange(earlier[0].shape[-1]) < own.columns[..., :1])[:, :, None]
            if own.seen is not None:
                seen = jnp.repeat(seen & own.seen, G, 2)
            parts.append(_part(q, *earlier, seen[:, :, None]))
        out = _join(parts).astype(k.dtype).reshape(B, Q, K, width, G, C)
        return out.transpose(0, 1, 3, 2, 4, 5).reshape(B, Q * width, K * G, C), fresh

    # Layer by layer; in a loop over layers what they read would have to come out of it whole.
    at_once = own.caches is not None and all(isinstance(layers, list) for layers in own.caches.values())
    x = model.text.embed(tokens.reshape(B, Q * D), model.dtype)
    axes = jnp.broadcast_to(positions.reshape(B, 1, Q * D), (B, 3, Q * D))
    earlier = jax.tree.map(lambda _: None, context.caches, is_leaf=is_pair) if own.caches is None else own.caches
    caches = jax.tree.map(lambda *both: both, context.caches, earlier, is_leaf=is_pair)
    narrow = None if last is None else of_last
    hidden, fresh, _ = model.text(x, axes, attend, cache=caches, narrow=narrow)
    if last is not None and hidden.shape[1] != Q:
        hidden = of_last(hidden)
    if own.caches is not None and not at_once:
        put = functools.partial(_put_columns, columns=own.columns)
        fresh = jax.tree.map(put, own.caches, fresh, is_leaf=is_pair)
    return hidden.reshape(B, Q, -1, hidden.shape[-1]), fresh


def _put_columns(pair, new, columns):
    """A cache with the keys and values of D tokens in their columns, int32 [B, Q, D] (beyond the end: nowhere)."""
    b, q = (x[..., None] for x in jnp.indices(columns.shape[:2]))
    # Indexed axes come first in what is put.
    k, v = (jnp.moveaxis(x, (-5, -4, axis), (0, 1, 2)) for x, axis in zip(new, (-1, -2), strict=True))
    return pair[0].at[..., b, q, :, :, columns].set(k), pair[1].at[..., b, q, :, columns, :].set(v)


def put_rows(own: dict, fresh: dict, there):
    """`own` with the keys and values of whole questions in the places `there`, (b, q), each int32 [B, R]."""

    def put(pair, new):
        M = new[0].shape[-1]
        return pair[0].at[..., *there, :, :, :M].set(new[0]), pair[1].at[..., *there, :, :M, :].set(new[1])

    return jax.tree.map(put, own, fresh, is_leaf=is_pair)


def is_pair(x) -> bool:
    """Whether it is the keys and values of a stack, or of a layer."""
    return isinstance(x, tuple)


def _shared(q, k, v, seen):
    """`_part` [B, Q, K, X, ...] of all questions' queries [B, Q, K, X, C] to the prefix, as one product a head."""
    B, Q, K, X, C = q.shape
    S = seen.shape[1]
    side_by_side = q.swapaxes(1, 2).reshape(B, K, Q * X, C)
    on_cpu = jax.default_backend() == "cpu"
    most = _MOST_SCORES.get(jax.default_backend(), _ELSEWHERE)
    chunks = min(Q * X, -(-B * K * Q * X * S // most))
    while Q * X % chunks:
        chunks += 1
    mask = seen[:, None, None]

    def in_chunks(part, queries):
        if chunks == 1:
            return part(queries)
        found = jax.lax.map(part, jnp.moveaxis(queries.reshape(B, K, chunks, -1, C), 2, 0))
        return tuple(jnp.moveaxis(x, 0, 2).reshape(B, K, Q * X, -1) for x in found)

    def by_largest(queries):
        return in_chunks(lambda q: _part(q, k, v, mask), queries)

    def as_they_are(queries):
        return in_chunks(lambda q: _small(q, k, v, mask), queries)

    if on_cpu:
        bound = largest(side_by_side, k.swapaxes(-1, -2), 2)
        found = jax.lax.cond(bound < SAFE, as_they_are, by_largest, side_by_side)
    else:
        found = by_largest(side_by_side)
    return tuple(x.reshape(B, K, Q, X, -1).swapaxes(1, 2) for x in found)


def _small(q, k, v, seen):
    """As `_part` for scores up to `SAFE`, with 0 in place of the largest, and their sum by a product.

    A CPU takes as long to look for the largest, and to add up, as for a quarter of the products.
    """
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    scores = product("...xc,...ct->...xt", q, k) * q.shape[-1] ** -0.5
    weights = jnp.where(seen, jnp.exp(scores), 0).astype(v.dtype)
    total = product("...xt,...tc->...xc", weights, jnp.ones_like(v[..., :1]))
    zero = jnp.where(seen.any(-1, keepdims=True), jnp.zeros_like(total), _LOW)
    return zero, total, product("...xt,...tc->...xc", weights, v)


def _part(q, k, v, seen):
    """Attention to some of the keys: (largest score, sum of weights [..., X, 1] each, weighted values [..., X, C]).

    q [..., X, C], k [..., C, T], v [..., T, C], seen [..., 1 or X, T]; weights are exp(score - largest), float32 sums.
    Where nothing is seen the largest score is the lowest float, and `_join` leaves the part out.
    """
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    scores = jnp.where(seen, product("...xc,...ct->...xt", q, k) * q.shape[-1] ** -0.5, _LOW)
    largest = scores.max(-1, keepdims=True)
    weights = jnp.exp(scores - largest)
    return largest, weights.sum(-1, keepdims=True), product("...xt,...tc->...xc", weights.astype(v.dtype), v)


def _join(parts):
    """One softmax over the keys of all parts: [..., X, C], float32."""
    largest = functools.reduce(jnp.maximum, (part[0] for part in parts))
    scales = [jnp.exp(part[0] - largest) for part in parts]
    total = sum(scale * part[1] for scale, part in zip(scales, parts))
    return sum(scale * part[2] for scale, part in zip(scales, parts)) / total
