"""The maths that all kernels share: one tile of scores at a time, softmax folded online.

As in FlashAttention (arXiv 2205.14135, algorithm 1; backward pass as in 2307.08691, algorithm 2). Scores are kept in
units of log 2, since exp2 is what devices compute. `axis` is the axis of the keys within a tile: which of the two suits
a device better differs. What belongs to a query (`top`, `total`, `log_sum`, `delta`) has size 1 along it.
"""

import math

import jax.numpy as jnp

LOW = float(jnp.finfo(jnp.float32).min)


def scores(products, mask, head_size: int):
    """Scaled products of queries and keys, float32, in units of log 2; LOW where `mask` is False."""
    return jnp.where(mask, products * (head_size**-0.5 * math.log2(math.e)), LOW)


def fold(scores, top, total, axis: int):
    """(weights of the tile, factor that fades what was summed before, new top, new total).

    Where nothing is visible yet all scores are LOW and weigh 1, until the first visible one fades them to 0.
    """
    new_top = jnp.maximum(top, scores.max(axis, keepdims=True))
    weights = jnp.exp2(scores - new_top)
    fade = jnp.exp2(top - new_top)
    return weights, fade, new_top, total * fade + weights.sum(axis, keepdims=True)


def finish(top, total):
    """(factor that makes sums means, log of the denominator): 0 and -LOW for a query that sees nothing."""
    seen = top > LOW
    total = jnp.where(seen, total, 1.0)
    return jnp.where(seen, 1.0 / total, 0.0), jnp.where(seen, top + jnp.log2(total), -LOW)


def weights_and_gradient(scores, log_sum, d_weights, delta):
    """(weights, derivative of the loss by the scores before scaling, still to be multiplied by head size**-0.5)."""
    weights = jnp.exp2(scores - log_sum)
    return weights, weights * (d_weights - delta)
