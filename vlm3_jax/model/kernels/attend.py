"""Softmax attention over pairs of blocks by Pallas kernels, with its derivative."""

import dataclasses
import functools
import types
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from vlm3_jax.model.block_pairs import Pairs


class Order(NamedTuple):
    """Pairs of blocks in the order they are worked through, int32: those of one outer block after each other.

    `starts` [B, n + 1]: outer block i has the pairs starts[i] ... starts[i + 1] - 1. `outer`, `inner` [B, N]: the two
    blocks of each pair. Behind the last pair of a row it is repeated.
    """

    starts: jax.Array
    outer: jax.Array
    inner: jax.Array


def both_orders(pairs: Pairs) -> tuple[Order, Order]:
    """The pairs by query block, for outputs and their queries' gradient, and by key block, for that of keys and values.

    The list of the host is in the first order; sorting it gives the second.
    """
    (_, N), n = pairs.keys.shape, pairs.starts.shape[1] - 1
    place = jnp.arange(N, dtype=jnp.int32)
    used = place < pairs.starts[:, -1:]
    queries = (pairs.starts[:, 1:, None] <= place).sum(1, dtype=jnp.int32)
    # Each pair as one number; unused ones at the end.
    by_keys = _sorted(jnp.where(used, pairs.keys * n + queries, n * n + place))
    starts = (by_keys[:, None] < (jnp.arange(n + 1, dtype=jnp.int32) * n)[:, None]).sum(-1, dtype=jnp.int32)

    def order(starts, outer, inner):
        count = starts[:, -1:]
        final = [jnp.where(place == count - 1, x, 0).sum(1, keepdims=True) for x in (outer, inner)]
        return Order(starts, *(jnp.where(place < count, x, end) for x, end in zip((outer, inner), final)))

    return order(pairs.starts, queries, pairs.keys), order(starts, by_keys // n, by_keys % n)


def _sorted(x_BN):
    """Distinct numbers in rising order, by counting the smaller ones; a sort takes the TPU compiler seconds longer."""
    rank = (x_BN[:, None] < x_BN[:, :, None]).sum(-1, dtype=jnp.int32)
    place = jnp.arange(x_BN.shape[1], dtype=jnp.int32)
    return jnp.where(rank[:, None] == place[:, None], x_BN[:, None], 0).sum(-1)


@dataclasses.dataclass(frozen=True)
class Call:
    """What is fixed when a kernel is traced: `sees`(ids of queries, ids of keys) -> bool, and the tree of the ids."""

    kernels: types.ModuleType
    sees: Callable
    tree: jax.tree_util.PyTreeDef
    interpret: object

    def mask(self, queries, keys):
        """Who sees whom, from arrays [I, ...] of the tree's leaves that broadcast against each other."""
        count = self.tree.num_leaves
        return self.sees(*(self.tree.unflatten([x[i] for i in range(count)]) for x in (queries, keys)))


def attend(q_BSHC, k_BSKC, v_BSKC, ids, orders, *, kernels: types.ModuleType, sees: Callable, interpret=False):
    """Softmax attention [B, S, H, C] over the listed pairs of blocks; a query that sees nothing gets zeros.

    `ids`: a tree of int32 [B, S]. `sees`(ids of queries, ids of keys) -> bool, elementwise, says who sees whom.
    `orders` as `both_orders` gives them. `kernels`: `tpu` or `gpu` of this package. `interpret`: as `pallas_call` has
    it, for tests without the device.
    """
    leaves, tree = jax.tree.flatten(ids)
    return _attend(Call(kernels, sees, tree, interpret), q_BSHC, k_BSKC, v_BSKC, jnp.stack(leaves, 1), orders)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(call: Call, q, k, v, ids_BIS, orders):
    return call.kernels.forward(call, q, k, v, ids_BIS, orders[0])[0]


def _save(call, q, k, v, ids, orders):
    # Under a name, so that a recomputed layer need not run the attention itself again.
    out, log_sum = (checkpoint_name(x, "attended") for x in call.kernels.forward(call, q, k, v, ids, orders[0]))
    return out, (q, k, v, ids, orders, out, log_sum)


def _backward(call, saved, g):
    q, k, v, ids, orders, out, log_sum = saved
    # The derivative of the softmax's denominator: the sum over values of output times its cotangent.
    delta_BSH = (out.astype(jnp.float32) * g.astype(jnp.float32)).sum(-1)
    return *call.kernels.backward(call, q, k, v, g.astype(q.dtype), log_sum, delta_BSH, ids, orders), None, None


_attend.defvjp(_save, _backward)
