"""GPU kernels (Triton): one program for a block of queries, or of keys, and a head; it loops over the block's pairs.

Tiles hold queries down and keys across, except for the gradient of keys and values. The head size is cut into powers of
two, which is all that Triton's tiles can be: 72 is 64 + 16, and half of the second piece is zeros. Letters: n blocks of
b tokens, K kv heads, G query heads of each, C head size, I kinds of ids.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from vlm3_jax.model.kernels import softmax

# The narrowest tile of a product.
_NARROWEST = 16


class Tiling(NamedTuple):
    """`step`: tokens of an inner block looked at together; `warps` and `stages` as Triton means them."""

    step: int
    warps: int
    stages: int


# For values of two bytes; wider ones take half the step, since a block has 227 kB of shared memory on an H100 or H200.
FORWARD, QUERIES, KEYS = Tiling(64, 8, 3), Tiling(64, 8, 2), Tiling(32, 8, 2)


def forward(call, q_BSHC, k_BSKC, v_BSKC, ids_BIS, order):
    """(output [B, S, H, C], log of the denominators [B, H, S] float32)."""
    B, S, H, _ = q_BSHC.shape
    outs = q_BSHC, jax.ShapeDtypeStruct((B, H, S), jnp.float32)
    return _run(_forward_kernel, call, FORWARD, order, ids_BIS, H, (q_BSHC,), (k_BSKC, v_BSKC), outs)


def backward(call, q, k, v, g, log_sum, delta_BSH, ids_BIS, orders):
    """Gradients of q, k and v."""
    H, K = q.shape[2], k.shape[2]
    delta_BHS = delta_BSH.swapaxes(1, 2)
    arrays = (q, g, log_sum, delta_BHS), (k, v)
    (dq,) = _run(_query_kernel, call, QUERIES, orders[0], ids_BIS, H, *arrays, outs=(q,))
    dk, dv = _run(_key_kernel, call, KEYS, orders[1], ids_BIS, K, *arrays, outs=(k, v))
    return dq, dk, dv


def _run(kernel, call, tiling: Tiling, order, ids_BIS, programs: int, of_queries, of_keys, outs):
    """Calls a kernel for every outer block, head (of `programs`) and row.

    `of_queries`, `of_keys`: arrays [B, S, H or K, C] or [B, H, S], of which it gets its heads of a row; `outs`: the
    like of what it writes.
    """
    (B, _, S), n = ids_BIS.shape, order.starts.shape[1] - 1
    C = of_keys[0].shape[3]
    step = max(_NARROWEST, tiling.step * 2 // max(2, of_keys[0].dtype.itemsize))

    def whole(x):
        return pl.BlockSpec((None, *x.shape[1:]), lambda i, h, row: (row, *[0] * (len(x.shape) - 1)))

    def heads(x):
        """The heads that belong to a program's: itself, its kv head, or all queries of its kv head."""
        count = x.shape[1 if x.ndim == 3 else 2]
        each, share = max(1, count // programs), max(1, programs // count)
        if x.ndim == 3:
            return pl.BlockSpec((None, each, S), lambda i, h, row: (row, h // share, 0))
        return pl.BlockSpec((None, S, each, sum(_pieces(C))), lambda i, h, row: (row, 0, h // share, 0))

    inputs = *of_queries, *of_keys
    return pl.pallas_call(
        functools.partial(kernel, call, S // n, min(step, S // n), C),
        grid=(n, programs, B),
        in_specs=[whole(order.starts), whole(order.inner), whole(ids_BIS), *map(heads, inputs)],
        out_specs=list(map(heads, outs)),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outs],
        compiler_params=plgpu.CompilerParams(num_warps=tiling.warps, num_stages=tiling.stages),
        name=f"attention{kernel.__name__.removesuffix('_kernel')}",
        interpret=call.interpret,
    )(order.starts, order.inner, ids_BIS, *inputs)


def _pieces(C: int) -> list[int]:
    """Powers of two, each at least the narrowest tile, that together hold C channels."""
    pieces = []
    while sum(pieces) < C:
        rest = C - sum(pieces)
        pieces.append(max(_NARROWEST, 1 << (rest.bit_length() - 1)))
    return pieces


def _channels(C: int):
    """For each piece its slice, and which of its channels exist (None: all)."""
    start = 0
    for size in _pieces(C):
        exists = None if start + size <= C else (start + jnp.arange(size) < C)[None, :]
        yield pl.ds(start, size), exists
        start += size


def _load(ref, rows, head, C: int) -> list[jax.Array]:
    """Pieces [rows, piece] of ref [S, heads, C]; what lies behind C is zero."""
    return [
        plgpu.load(ref.at[rows, jnp.int32(head), piece], mask=exists, other=None if exists is None else 0.0)
        for piece, exists in _channels(C)
    ]


def _store(ref, rows, pieces, C: int):
    for x, (piece, exists) in zip(pieces, _channels(C)):
        plgpu.store(ref.at[rows, jnp.int32(0), piece], x.astype(ref.dtype), mask=exists)


def _zeros(rows: int, C: int) -> list[jax.Array]:
    return [jnp.zeros((rows, size), jnp.float32) for size in _pieces(C)]


def _ids(ids_ref, rows):
    return [ids_ref[i, rows] for i in range(ids_ref.shape[0])]


def _mask(call, queries, keys, keys_down: bool = False):
    """bool [queries, keys], or [keys, queries]."""
    down, across = (lambda x: x[:, None]), (lambda x: x[None, :])
    if keys_down:
        return call.mask(list(map(across, queries)), list(map(down, keys)))
    return call.mask(list(map(down, queries)), list(map(across, keys)))


def _over_channels(a, b):
    """[rows of a, rows of b] float32, from the pieces of both."""
    return functools.reduce(jnp.add, [plgpu.dot(x, y, trans_b=True) for x, y in zip(a, b)])


def _add(sums, weights, x):
    """Sums plus weights times x, piece by piece."""
    return [s + plgpu.dot(weights.astype(y.dtype), y) for s, y in zip(sums, x)]


def _each_part(starts, inner, i, b: int, step: int, part, carry):
    """Folds `part`(rows of the inner block, carry) over all pairs of outer block i, `step` rows at a time."""
    parts = b // step

    # One loop over all parts, since Triton overlaps loads with products within the innermost loop only.
    def body(t, carry):
        first = inner[jax.lax.div(t, parts)] * b + jax.lax.rem(t, parts) * step
        return part(pl.ds(first, step), carry)

    return jax.lax.fori_loop(starts[i] * parts, starts[i + 1] * parts, body, carry)


def _forward_kernel(call, b, step, C, starts, inner, ids, q_ref, k_ref, v_ref, out, log_sum):
    i = pl.program_id(0)
    here = pl.ds(i * b, b)
    q, query_ids = _load(q_ref, here, 0, C), _ids(ids, here)

    def part(there, carry):
        sums, top, total = carry
        mask = _mask(call, query_ids, _ids(ids, there))
        scores = softmax.scores(_over_channels(q, _load(k_ref, there, 0, C)), mask, C)
        weights, fade, top, total = softmax.fold(scores, top, total, axis=1)
        return _add([s * fade for s in sums], weights, _load(v_ref, there, 0, C)), top, total

    start = _zeros(b, C), jnp.full((b, 1), softmax.LOW), jnp.zeros((b, 1), jnp.float32)
    sums, top, total = _each_part(starts, inner, i, b, step, part, start)
    factor, log = softmax.finish(top, total)
    _store(out, here, [s * factor for s in sums], C)
    log_sum[0, here] = log.reshape(b)


def _query_kernel(call, b, step, C, starts, inner, ids, q_ref, g_ref, log_sum, delta, k_ref, v_ref, dq):
    i = pl.program_id(0)
    here = pl.ds(i * b, b)
    q, g, query_ids = _load(q_ref, here, 0, C), _load(g_ref, here, 0, C), _ids(ids, here)
    log, d = log_sum[0, here][:, None], delta[0, here][:, None]

    def part(there, sums):
        k, v = _load(k_ref, there, 0, C), _load(v_ref, there, 0, C)
        scores = softmax.scores(_over_channels(q, k), _mask(call, query_ids, _ids(ids, there)), C)
        _, d_scores = softmax.weights_and_gradient(scores, log, _over_channels(g, v), d)
        return _add(sums, d_scores, k)

    sums = _each_part(starts, inner, i, b, step, part, _zeros(b, C))
    _store(dq, here, [s * C**-0.5 for s in sums], C)


def _key_kernel(call, b, step, C, starts, inner, ids, q_ref, g_ref, log_sum, delta, k_ref, v_ref, dk, dv):
    i = pl.program_id(0)
    here = pl.ds(i * b, b)
    k, v, key_ids = _load(k_ref, here, 0, C), _load(v_ref, here, 0, C), _ids(ids, here)

    # Tiles hold keys down here, which are more than the queries of a part: products of few rows are slow.
    def head(h, sums):
        def part(there, sums):
            k_sums, v_sums = sums
            q, g = _load(q_ref, there, h, C), _load(g_ref, there, h, C)
            mask = _mask(call, _ids(ids, there), key_ids, keys_down=True)
            scores = softmax.scores(_over_channels(k, q), mask, C)
            log, d = log_sum[h, there][None, :], delta[h, there][None, :]
            weights, d_scores = softmax.weights_and_gradient(scores, log, _over_channels(v, g), d)
            return _add(k_sums, d_scores, q), _add(v_sums, weights, g)

        return _each_part(starts, inner, i, b, step, part, sums)

    k_sums, v_sums = jax.lax.fori_loop(0, q_ref.shape[1], head, (_zeros(b, C), _zeros(b, C)))
    _store(dk, here, [s * C**-0.5 for s in k_sums], C)
    _store(dv, here, v_sums, C)
