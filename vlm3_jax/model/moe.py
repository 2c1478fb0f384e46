"""Mixture of experts in place of a decoder layer's MLP: router, grouped products, and how evenly experts are used."""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from vlm3_jax.model.layers import Group, Locally, run_as_it_is
from vlm3_jax.shapes import Array, Bool, Float, Float32, Int


def route(logits_BSE: Float[Array, "B S E"], k: int) -> tuple[Float[Array, "B S k"], Int[Array, "B S k"]]:
    """Weights [B, S, k] in the dtype of the logits, which add up to 1, and experts [B, S, k] of every token.

    The softmax is over all experts, in float32; what the best k have of it is scaled up to 1.
    """
    probabilities = jax.nn.softmax(logits_BSE.astype(jnp.float32), -1)
    weights, experts = jax.lax.top_k(probabilities, k)
    return (weights / weights.sum(-1, keepdims=True)).astype(logits_BSE.dtype), experts


def use(
    logits_BSE: Float[Array, "B S E"], experts_BSk: Int[Array, "B S k"], valid_BS: Bool[Array, "B S"]
) -> tuple[Float32[Array, " E"], Float32[Array, " E"]]:
    """How often each expert was chosen and its summed probability over the valid tokens, float32 [E] each."""
    E = logits_BSE.shape[-1]
    probabilities = jax.nn.softmax(logits_BSE.astype(jnp.float32), -1)
    chosen = jax.nn.one_hot(experts_BSk, E).sum(2)
    valid = valid_BS[..., None].astype(jnp.float32)
    return (chosen * valid).sum((0, 1)), (probabilities * valid).sum((0, 1))


def balance_loss(
    counts_LE: Float32[Array, "L E"], probabilities_LE: Float32[Array, "L E"], tokens
) -> Float32[Array, ""]:
    """Load-balance loss (Switch Transformer, equations 4 to 6) with all layers as one, as transformers computes it.

    E x sum over experts of (choices a token) x (mean probability), from the sums of `use` over `tokens` valid tokens;
    `experts_per_token` where all experts are used alike, more otherwise.
    """
    layers, E = counts_LE.shape
    rows = jnp.maximum(tokens, 1) * layers
    return E * jnp.sum(jax.lax.stop_gradient(counts_LE).sum(0) / rows * (probabilities_LE.sum(0) / rows))


def feed_forward(
    layer: Group, x_BSD: Float[Array, "B S D"], k: int, valid_BS: Bool[Array, "B S"] | None = None,
    locally: Locally = run_as_it_is,
) -> tuple[Float[Array, "B S D"], tuple | None]:  # fmt: skip
    """[B, S, D] -> ([B, S, D], the sums of `use` if `valid_BS` is given, else None).

    `locally` wraps the function that sorts tokens by expert, so that every device sorts its own rows.
    """
    logits = layer.linear("router", x_BSD, "bsd,de->bse")
    weights, experts = route(logits, k)
    matrices = (w[...].astype(x_BSD.dtype) for w in (layer.experts_in, layer.experts_out))
    out = locally(_apply, whole=2)(x_BSD, weights, experts, *matrices)
    return out, None if valid_BS is None else use(logits, experts, valid_BS)


def _apply(x_BSD, weights_BSk, experts_BSk, in_ED2F, out_EFD):
    """Every token through its k experts: tokens sorted by expert, one grouped product a matrix, and back."""
    (B, S, D), k = x_BSD.shape, weights_BSk.shape[-1]
    expert = experts_BSk.reshape(-1)
    order = jnp.argsort(expert, stable=True)
    inverse = jnp.argsort(order)
    sizes = jnp.bincount(expert, length=in_ED2F.shape[0]).astype(jnp.int32)
    x = _spread(x_BSD.reshape(B * S, D), order, inverse, k)
    gate, up = (checkpoint_name(jax.lax.ragged_dot(x, in_ED2F[:, :, i], sizes), "hidden") for i in (0, 1))
    y = jax.lax.ragged_dot(jax.nn.silu(gate) * up, out_EFD, sizes)
    y = _permute(y, inverse, order).reshape(B, S, k, D)
    return jnp.einsum("bskd,bsk->bsd", y, weights_BSk, preferred_element_type=jnp.float32).astype(x_BSD.dtype)


@jax.custom_vjp
def _permute(x_ND, order, inverse):
    """x[order]; the backward pass gathers by the inverse and scatters nothing."""
    return x_ND[order]


_permute.defvjp(lambda x, order, inverse: (x[order], inverse), lambda inverse, g: (g[inverse], None, None))


def _spread(x_ND, order, inverse, k: int):
    """Each token k times, sorted: [N, D] -> [N * k, D]. Repeating has a sum as its backward pass."""
    return _permute(jnp.repeat(x_ND, k, axis=0), order, inverse)
