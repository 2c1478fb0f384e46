"""TPU kernels: one pair of blocks a grid step, its blocks found through prefetched scalars.

All heads of a pair share one step, so its mask is made once and a step has work enough to hide its transfers. Tiles
hold keys down and queries across: what belongs to a query is then a row, which costs little to keep and to reduce to.
The queries of a kv head's group lie side by side. Letters: n blocks of b tokens, K kv heads, G query heads of each,
X = G * b, C head size, I kinds of ids.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from vlm3_jax.model.kernels import softmax

VMEM_BYTES = 64 << 20


def forward(call, q_BSHC, k_BSKC, v_BSKC, ids_BIS, order):
    """(output [B, S, H, C], log of the denominators [B, n, K, 1, X] float32)."""
    K, C, n = *k_BSKC.shape[2:], order.starts.shape[1] - 1
    q, k, v = (_blocks(x, K, n) for x in (q_BSHC, k_BSKC, v_BSKC))
    b, X = k.shape[3], q.shape[3]
    out, log_sum = _run(
        _forward_kernel, call, order, ids=(_ids(ids_BIS, n, X), _ids(ids_BIS, n, b)), outer=(q,), inner=(k, v),
        outs=((X, C, q.dtype), (1, X, jnp.float32)), scratch=((C, X), (1, X), (1, X)),
    )  # fmt: skip
    return _tokens(out, b), log_sum


def backward(call, q, k, v, g, log_sum, delta_BSH, ids_BIS, orders):
    """Gradients of q, k and v."""
    K, C, n = *k.shape[2:], orders[0].starts.shape[1] - 1
    q, k, v, g, delta = (_blocks(x, K, n) for x in (q, k, v, g, delta_BSH[..., None]))
    b, X = k.shape[3], q.shape[3]
    of_queries, of_keys = (q, g, log_sum, delta.reshape(log_sum.shape)), (k, v)
    query_ids, key_ids = _ids(ids_BIS, n, X), _ids(ids_BIS, n, b)
    (dq,) = _run(
        _query_kernel, call, orders[0], ids=(query_ids, key_ids), outer=of_queries, inner=of_keys,
        outs=((X, C, q.dtype),), scratch=((C, X),),
    )  # fmt: skip
    dk, dv = _run(
        _key_kernel, call, orders[1], ids=(key_ids, query_ids), outer=of_keys, inner=of_queries,
        outs=((b, C, k.dtype), (b, C, v.dtype)), scratch=((b, C), (b, C)),
    )  # fmt: skip
    return tuple(_tokens(x, b) for x in (dq, dk, dv))


def _blocks(x_BSHC, K: int, n: int):
    """[B, S, H, C] -> [B, n, K, X, C]."""
    B, S, H, C = x_BSHC.shape
    return x_BSHC.reshape(B, n, S // n, K, H // K, C).transpose(0, 1, 3, 4, 2, 5).reshape(B, n, K, -1, C)


def _tokens(x_BnKXC, b: int):
    """[B, n, K, X, C] -> [B, S, H, C]."""
    B, n, K, X, C = x_BnKXC.shape
    return x_BnKXC.reshape(B, n, K, X // b, b, C).transpose(0, 1, 4, 2, 3, 5).reshape(B, n * b, -1, C)


def _ids(ids_BIS, n: int, width: int):
    """[B, I, S] -> [B, n, I, 1, width], a block's ids again for every head of a group."""
    B, I, S = ids_BIS.shape
    return jnp.tile(ids_BIS.reshape(B, I, n, 1, S // n), width * n // S).swapaxes(1, 2)


def _run(kernel, call, order, *, ids, outer, inner, outs, scratch):
    """Calls a kernel for every pair of every row.

    `outer`, `inner`: arrays [B, n, K, ...] of which the kernel gets the pair's blocks; `ids`: those of both. `outs`:
    (shape behind [B, n, K], dtype) of what it writes for outer blocks; zeros where a block has no pairs. `scratch`:
    shapes behind [K], float32, kept from pair to pair.
    """
    (B, N), n, K = order.outer.shape, order.starts.shape[1] - 1, outer[0].shape[2]
    # The two cores of some chips share a row by its heads.
    groups = 2 if B % 2 and K % 2 == 0 else 1

    def spec(shape, of_inner: bool, by_head: bool = True):
        def index(row, heads, p, starts, outer, inner):
            block = (inner if of_inner else outer)[row * N + p]
            return row, block, heads * by_head, *[0] * (len(shape) - 3)

        return pl.BlockSpec((None, None, shape[2] // groups if by_head else shape[2], *shape[3:]), index)

    shapes = [jax.ShapeDtypeStruct((B, n, K, *shape), dtype) for *shape, dtype in outs]
    found = pl.pallas_call(
        functools.partial(kernel, functools.partial(_each_pair, call, n, N)),
        out_shape=shapes,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(B, groups, N),
            in_specs=[
                *(spec(x.shape, of_inner=number == 1, by_head=False) for number, x in enumerate(ids)),
                *(spec(x.shape, of_inner=False) for x in outer),
                *(spec(x.shape, of_inner=True) for x in inner),
            ],
            out_specs=[spec(x.shape, of_inner=False) for x in shapes],
            scratch_shapes=[pltpu.VMEM((K // groups, *shape), jnp.float32) for shape in scratch],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
        ),
        name=f"attention{kernel.__name__.removesuffix('_kernel')}",
        interpret=call.interpret,
    )(*(x.reshape(-1) for x in order), *ids, *outer, *inner)
    listed = (order.starts[:, 1:] > order.starts[:, :-1])[:, :, None, None, None]
    return [jnp.where(listed, x, 0) for x in found]


def _each_pair(call, n, N, starts, outer, query_ids, key_ids, q, *, sums, add, write):
    """What a kernel does at a step: it adds to the sums of the outer block by pairs, and writes them after the last.

    `sums`: (scratch, value at first); `add`(mask [b, X], head), `write`(head).
    """
    row, p = pl.program_id(0), pl.program_id(2)
    at = row * (n + 1) + outer[row * N + p]

    @pl.when(p == starts[at])
    def _():
        for ref, value in sums:
            ref[...] = jnp.full_like(ref, value)

    @pl.when(p < starts[at + 1])
    def _():
        mask = call.mask(query_ids[...], [key_ids[i].T for i in range(key_ids.shape[0])])
        _each_head(q, functools.partial(add, mask))

    @pl.when(p == starts[at + 1] - 1)
    def _():
        _each_head(q, write)


def _each_head(q, body):
    """Calls `body`(head) for all kv heads of q [k, X, C].

    Some at once, whose products and exponentials can overlap, but not all, so that programs stay small.
    """
    heads, X, _ = q.shape
    together = next(n for n in (4, 3, 2, 1) if heads % n == 0 and n <= max(1, 1024 // X))

    def some(i, _):
        for h in range(together):
            body(i * together + h)

    jax.lax.fori_loop(0, heads // together, some, None)


def _over_channels(a_bC, b_XC):
    """[b, X] float32: products of keys (or values) and queries (or their cotangents)."""
    return jax.lax.dot_general(a_bC, b_XC, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


def _over_keys(a_bC, weights_bX):
    """[C, X] float32."""
    return jax.lax.dot_general(
        a_bC, weights_bX.astype(a_bC.dtype), (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
    )


def _over_queries(weights_bX, a_XC):
    """[b, C] float32."""
    return jnp.dot(weights_bX.astype(a_XC.dtype), a_XC, preferred_element_type=jnp.float32)


def _forward_kernel(
    each_pair, starts, outer, inner, query_ids, key_ids, q, k, v, out, log_sum, sums_CX, top, total
):  # fmt: skip
    def add(mask, h):
        scores = softmax.scores(_over_channels(k[h], q[h]), mask, q.shape[-1])
        weights, fade, top[h], total[h] = softmax.fold(scores, top[h], total[h], axis=0)
        sums_CX[h] = sums_CX[h] * fade + _over_keys(v[h], weights)

    def write(h):
        factor, log_sum[h] = softmax.finish(top[h], total[h])
        out[h] = (sums_CX[h] * factor).T.astype(out.dtype)

    sums = (sums_CX, 0.0), (total, 0.0), (top, softmax.LOW)
    each_pair(starts, outer, query_ids, key_ids, q, sums=sums, add=add, write=write)


def _gradient(mask, h, q, g, log_sum, delta, k, v):
    """(weights, derivative by the scores before scaling) of a pair, [b, X]."""
    scores = softmax.scores(_over_channels(k[h], q[h]), mask, q.shape[-1])
    return softmax.weights_and_gradient(scores, log_sum[h], _over_channels(v[h], g[h]), delta[h])


def _query_kernel(each_pair, starts, outer, inner, query_ids, key_ids, q, g, log_sum, delta, k, v, dq, sums_CX):
    def add(mask, h):
        _, d_scores = _gradient(mask, h, q, g, log_sum, delta, k, v)
        sums_CX[h] += _over_keys(k[h], d_scores)

    def write(h):
        dq[h] = (sums_CX[h] * q.shape[-1] ** -0.5).T.astype(dq.dtype)

    each_pair(starts, outer, query_ids, key_ids, q, sums=((sums_CX, 0.0),), add=add, write=write)


def _key_kernel(
    each_pair, starts, outer, inner, key_ids, query_ids, k, v, q, g, log_sum, delta, dk, dv, k_sums, v_sums
):  # fmt: skip
    def add(mask, h):
        weights, d_scores = _gradient(mask, h, q, g, log_sum, delta, k, v)
        k_sums[h] += _over_queries(d_scores, q[h])
        v_sums[h] += _over_queries(weights, g[h])

    def write(h):
        dk[h] = (k_sums[h] * q.shape[-1] ** -0.5).astype(dk.dtype)
        dv[h] = v_sums[h].astype(dv.dtype)

    each_pair(starts, outer, query_ids, key_ids, q, sums=((k_sums, 0.0), (v_sums, 0.0)), add=add, write=write)
