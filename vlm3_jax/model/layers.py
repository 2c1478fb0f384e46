"""Pieces that both towers share: norms, casts and gathers whose backward pass is a gather or a product too."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from vlm3_jax.shapes import Array, Float, Int, Num

# (function of row arrays [B, ...] and then `whole` arrays that belong to no row, whole) -> the function, run by every
# device on its own rows. For what loops over rows or sorts their tokens, which a compiler would do across devices.
# `heads` of the first arrays are [B, S, heads, C], and a device may be given some of the heads only.
Locally = Callable


def run_as_it_is(f, whole: int = 0, heads: int = 0):
    """The `Locally` for a single device."""
    return f


class Group(nnx.Module):
    """A module whose attributes are the parameters it is given: what they are stands in the parameter table.

    Arrays become `nnx.Param`; nested dicts are for subclasses to wrap. A module may stand for a weight that `linear`
    uses (one with adapters beside it): it is then called with x and the contraction.
    """

    def __init__(self, params: dict):
        for name, value in params.items():
            setattr(self, name, value if isinstance(value, nnx.Module) else nnx.Param(value))

    def linear(self, name: str, x, contract: str):
        """`einsum(contract, x, weight)` in x's dtype, plus the bias if the group has one."""
        weight = getattr(self, name)
        if isinstance(weight, nnx.Module):
            y = weight(x, contract)
        else:
            y = jnp.einsum(contract, x, weight[...].astype(x.dtype))
        bias = getattr(self, f"{name}_bias", None)
        return y if bias is None else y + bias[...].astype(x.dtype)


def rms_norm(x: Float[Array, "*batch D"], weight, eps: float) -> Float[Array, "*batch D"]:
    """RMSNorm in float32; the weight multiplies after the cast back, as in transformers."""
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), -1, keepdims=True) + eps)
    return weight[...].astype(x.dtype) * normed.astype(x.dtype)


def layer_norm(x: Float[Array, "*batch D"], weight, bias, eps: float = 1e-6) -> Float[Array, "*batch D"]:
    """LayerNorm, all of it in float32, cast back at the end."""
    x32 = x.astype(jnp.float32)
    mean = jnp.mean(x32, -1, keepdims=True)
    variance = jnp.mean(jnp.square(x32 - mean), -1, keepdims=True)
    return ((x32 - mean) * jax.lax.rsqrt(variance + eps) * weight[...] + bias[...]).astype(x.dtype)


@jax.custom_vjp
def take_unique(
    x_BND: Num[Array, "B N D"], index_BM: Int[Array, "B M"], inverse_BN: Int[Array, "B N"]
) -> Num[Array, "B M D"]:
    """x[b, index[b, m]], zeros where index is N; no source may be taken twice.

    `inverse` says where each source went (M if nowhere), so that the backward pass is the same gather and not a
    scatter-add, which is slow on TPUs and not deterministic on GPUs.
    """
    return _take_or_zero(x_BND, index_BM)


def _take_or_zero(x, index):
    return jnp.take_along_axis(x, index[..., None], axis=1, mode="fill", fill_value=0)


take_unique.defvjp(
    lambda x, index, inverse: (_take_or_zero(x, index), inverse),
    lambda inverse, g: (_take_or_zero(g, inverse), None, None),
)


@jax.custom_vjp
def embed(table_RD: Float[Array, "R D"], ids: Int[Array, "*batch"]) -> Float[Array, "*batch D"]:
    """Rows of a table; the backward pass is a segment sum over sorted ids."""
    return jnp.take(table_RD, ids, axis=0)


def _embed_backward(residual, g):
    ids, rows = residual
    order = jnp.argsort(ids.reshape(-1), stable=True)
    g = g.reshape(-1, g.shape[-1])[order]
    return jax.ops.segment_sum(g, ids.reshape(-1)[order], rows, indices_are_sorted=True), None


embed.defvjp(lambda table, ids: (jnp.take(table, ids, axis=0), (ids, table.shape[0])), _embed_backward)


@jax.custom_vjp
def interpolate(
    table_RD: Float[Array, "R D"], index_BP4: Int[Array, "B P 4"], weight_BP4: Float[Array, "B P 4"]
) -> Float[Array, "B P D"]:
    """Sum of four table rows by weight [B, P, D]; the backward pass is a product with the interpolation matrix."""
    return _interpolate(table_RD, index_BP4, weight_BP4)


def _interpolate(table, index, weight):
    return jnp.einsum("bpkd,bpk->bpd", jnp.take(table, index, axis=0), weight.astype(table.dtype))


def _interpolate_backward(residual, g):
    table, index, weight = residual
    rows = table.shape[0]

    def row(total, item):
        # One row of the batch at a time: the matrix is P x N.
        index, weight, g = item
        matrix = jnp.sum(jax.nn.one_hot(index, rows, dtype=g.dtype) * weight[..., None].astype(g.dtype), axis=1)
        return total + jnp.einsum("pn,pd->nd", matrix, g, preferred_element_type=jnp.float32), None

    total, _ = jax.lax.scan(row, jnp.zeros(table.shape, jnp.float32), (index, weight, g))
    return total.astype(table.dtype), None, None


interpolate.defvjp(lambda t, i, w: (_interpolate(t, i, w), (t, i, w)), _interpolate_backward)
