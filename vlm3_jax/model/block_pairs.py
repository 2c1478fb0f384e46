"""Attention over a list of (query block, key block) pairs: only pairs of blocks that can see each other cost work.

Softmax is computed online as in FlashAttention (arXiv 2205.14135, algorithm 1; backward pass as in 2307.08691,
algorithm 2), so no matrix of scores is larger than one pair of blocks, and the loops end where the list ends.
Letters: B rows, n blocks of b tokens in a row, N pairs, K kv heads, G query heads of each, C head size.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from vlm3_jax.shapes import Array, Float

_LOW = float(jnp.finfo(jnp.float32).min)
# Scores of at most this size, either way, need nothing taken off them: exp(score) lies between 4e-18 and 2e17, and
# float32 holds its products with values, and their sums, with all digits.
SAFE = 40.0
_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


class Pairs(NamedTuple):
    """For each query block the key blocks it looks at, as sparse rows, int32.

    `starts` [B, n + 1]: the pairs of query block i are starts[i] ... starts[i + 1] - 1. `keys` [B, N]: key blocks.
    """

    starts: Array
    keys: Array


def attend(
    q_BSHC: Float[Array, "B S H C"],
    k_BSKC: Float[Array, "B S K C"],
    v_BSKC: Float[Array, "B S K C"],
    ids,
    pairs: Pairs,
    visible: Callable,
    forward_only: bool = False,
) -> Float[Array, "B S H C"]:
    """Softmax attention [B, S, H, C] over the listed pairs of blocks.

    `ids`: a tree of int32 [B, S]; `visible`(ids of queries [b], ids of keys [b]) -> bool [b, b] says who sees whom. A
    query that sees nothing gets zeros. `forward_only`: it has no gradient, and takes less time where scores are small.
    """
    (B, S, H, C), K, n = q_BSHC.shape, k_BSKC.shape[2], pairs.starts.shape[1] - 1
    b, G = S // n, H // K
    q = q_BSHC.reshape(B * n, b, K, G, C).transpose(0, 2, 3, 1, 4).reshape(B * n, K, G * b, C)
    k, v = (x.reshape(B * n, b, K, C).transpose(0, 2, 1, 3) for x in (k_BSKC, v_BSKC))
    # All rows in one list: pairs and blocks are numbered on.
    row = jnp.arange(B, dtype=jnp.int32)[:, None]
    starts = pairs.starts + row * pairs.keys.shape[1]
    work = _Work(
        begin=starts[:, :-1].reshape(-1), end=starts[:, 1:].reshape(-1), keys=(pairs.keys + row * n).reshape(-1),
        ids=jax.tree.map(lambda x: x.reshape(B * n, b), ids),
    )  # fmt: skip
    mask = functools.partial(_mask, visible)
    out = (_forward_only if forward_only else _attend)(mask, q, k, v, work)
    return out.reshape(B * n, K, G, b, C).transpose(0, 3, 1, 2, 4).reshape(B, S, H, C)


class _Work(NamedTuple):
    """The list for all query blocks: their pairs are begin[i] ... end[i] - 1 of `keys`; ids [blocks, b]."""

    begin: Array
    end: Array
    keys: Array
    ids: object


def _mask(visible, ids, i, j):
    """bool [b, b] of a pair: queries down, keys across."""
    return visible(jax.tree.map(lambda x: x[i], ids), jax.tree.map(lambda x: x[j], ids))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(mask, q, k, v, work):
    return _forward(mask, q, k, v, work)[0]


def _forward(mask, q_RKXC, k_RKbC, v_RKbC, work):
    """(output [R, K, X, C], log of the softmax's denominator [R, K, X]); X = G * b queries of a kv head."""
    (R, K, X, C), scale = q_RKXC.shape, q_RKXC.shape[-1] ** -0.5
    groups = X // k_RKbC.shape[2]

    def block(_, item):
        i, q, begin, end = item

        def pair(p, carry):
            total, denominator, top = carry
            j = work.keys[p]
            seen = jnp.tile(mask(work.ids, i, j), (groups, 1))
            scores = jnp.where(seen, _product("kxc,kbc->kxb", q, k_RKbC[j]) * scale, _LOW)
            new_top = jnp.maximum(top, scores.max(-1))
            # Where nothing is visible yet all scores are LOW, and their exponentials 1 until a visible one shows.
            weights = jnp.exp(scores - new_top[..., None])
            fade = jnp.exp(top - new_top)
            denominator = denominator * fade + weights.sum(-1)
            total = total * fade[..., None] + _product("kxb,kbc->kxc", weights.astype(q.dtype), v_RKbC[j])
            return total, denominator, new_top

        zero = jnp.zeros((K, X), jnp.float32)
        total, denominator, top = jax.lax.fori_loop(
            begin, end, pair, (jnp.zeros((K, X, C), jnp.float32), zero, zero + _LOW)
        )
        # NaN is no score of theirs, and stays: it tells of weights that are broken.
        blind = top <= _LOW
        denominator = jnp.where(blind, 1.0, denominator)
        out = jnp.where(blind[..., None], 0.0, total / denominator[..., None])
        return None, (out.astype(q.dtype), jnp.where(blind, -_LOW, top + jnp.log(denominator)))

    items = jnp.arange(R, dtype=jnp.int32), q_RKXC, work.begin, work.end
    return jax.lax.scan(block, None, items)[1]


def _forward_only(mask, q_RKXC, k_RKbC, v_RKbC, work):
    """The output of `_forward`; where a bound says that all scores are small, without the largest so far.

    A CPU takes as long to look for the largest, and to let what is added up fade, as for a third of the products.
    """
    scale = q_RKXC.shape[-1] ** -0.5
    groups = q_RKXC.shape[2] // k_RKbC.shape[2]

    def block(_, item):
        i, q, begin, end = item

        def pair(p, carry):
            total, denominator = carry
            j = work.keys[p]
            seen = jnp.tile(mask(work.ids, i, j), (groups, 1))
            scores = _product("kxc,kbc->kxb", q, k_RKbC[j]) * scale
            weights = jnp.where(seen, jnp.exp(scores), 0.0)
            total = total + _product("kxb,kbc->kxc", weights.astype(q.dtype), v_RKbC[j])
            return total, denominator + weights.sum(-1)

        zero = jnp.zeros(q.shape, jnp.float32)
        total, denominator = jax.lax.fori_loop(begin, end, pair, (zero, zero[..., 0]))
        blind = (denominator == 0)[..., None]
        return None, jnp.where(blind, 0.0, total / jnp.where(blind, 1.0, denominator[..., None])).astype(q.dtype)

    def small():
        items = jnp.arange(len(q_RKXC), dtype=jnp.int32), q_RKXC, work.begin, work.end
        return jax.lax.scan(block, None, items)[1]

    # NaN is not below it either.
    bound = largest(q_RKXC, k_RKbC, (0, 2))
    return jax.lax.cond(bound < SAFE, small, lambda: _forward(mask, q_RKXC, k_RKbC, v_RKbC, work)[0])


def largest(q, k, axes):
    """A bound of all scores of queries and keys [..., C], either way: float32, NaN if one of them is.

    `axes`: those along which each of the queries may meet each of the keys; along others they lie side by side.
    """
    longest = (jnp.linalg.norm(x.astype(jnp.float32), axis=-1).max(axes) for x in (q, k))
    return math.prod(longest).max() * q.shape[-1] ** -0.5


def _save(mask, q, k, v, work):
    # Under a name, so that a recomputed layer need not run the attention itself again.
    out, log_sum = (checkpoint_name(x, "attended") for x in _forward(mask, q, k, v, work))
    return out, (q, k, v, work, out, log_sum)


def _backward(mask, saved, g_RKXC):
    """Tiles hold keys down and queries across, so that three of the five products add up over rows, which CPUs like.

    Those of dq would not; they are of the transposed keys, and add up the transposed gradient.
    """
    q_RKXC, k_RKbC, v_RKbC, work, out, log_sum = saved
    scale, groups = q_RKXC.shape[-1] ** -0.5, q_RKXC.shape[2] // k_RKbC.shape[2]
    k_RKCb = k_RKbC.swapaxes(2, 3)
    # The derivative of the softmax's denominator: the sum over values of output times its cotangent.
    delta = (out.astype(jnp.float32) * g_RKXC.astype(jnp.float32)).sum(-1)

    def block(carry, item):
        i, q, g, log_sum, delta, begin, end = item

        def pair(p, carry):
            dq_KCX, dk_RKbC, dv_RKbC = carry
            j = work.keys[p]
            # Not `tile`, which CPUs compute place by place here.
            seen = jnp.concatenate([mask(work.ids, i, j).T] * groups, 1)
            scores = jnp.where(seen, _product("kbc,kxc->kbx", k_RKbC[j], q) * scale, _LOW)
            weights = jnp.exp(scores - log_sum[:, None])
            d_weights = _product("kbc,kxc->kbx", v_RKbC[j], g)
            d_scores = (weights * (d_weights - delta[:, None]) * scale).astype(q.dtype)
            dk = _product("kbx,kxc->kbc", d_scores, q)
            dv = _product("kbx,kxc->kbc", weights.astype(q.dtype), g)
            dq = _product("kcb,kbx->kcx", k_RKCb[j], d_scores)
            return dq_KCX + dq, dk_RKbC.at[j].add(dk), dv_RKbC.at[j].add(dv)

        zero_KCX = jnp.zeros(q.swapaxes(1, 2).shape, jnp.float32)
        dq_KCX, dk, dv = jax.lax.fori_loop(begin, end, pair, (zero_KCX, *carry))
        return (dk, dv), dq_KCX.swapaxes(1, 2).astype(q.dtype)

    items = jnp.arange(len(q_RKXC), dtype=jnp.int32), q_RKXC, g_RKXC, log_sum, delta, work.begin, work.end
    zero = jnp.zeros(k_RKbC.shape, jnp.float32)
    (dk, dv), dq = jax.lax.scan(block, (zero, zero), items)
    return dq, dk.astype(k_RKbC.dtype), dv.astype(v_RKbC.dtype), None


_attend.defvjp(_save, _backward)
