"""The training step: forward, loss on supervised positions only, gradients, update; compiled once."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vlm3_jax import params as parameters
from vlm3_jax.model.config import VLMConfig
from vlm3_jax.model.layers import take_unique
from vlm3_jax.model.vlm import VLM
from vlm3_jax.train import mesh as meshes
from vlm3_jax.train import optimizer as optimizers

TARGET_CHUNK = 256


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("params", "opt_state", "step", "samples"), meta_fields=()
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step changes: float32 parameters and Adam moments, and how many steps and samples are behind it."""

    params: dict
    opt_state: optax.OptState
    step: jax.Array
    samples: jax.Array


def state_shardings(cfg: VLMConfig, tx: optax.GradientTransformation, mesh) -> TrainState:
    """The intended sharding of every leaf: moments lie as their parameters, counters on every device."""
    shapes = parameters.nest({r.path: jax.ShapeDtypeStruct(r.shape, jnp.float32) for r in parameters.table(cfg)})
    lying, whole = meshes.param_shardings(cfg, mesh), meshes.replicated(mesh)
    opt_state = optax.tree_utils.tree_map_params(
        tx, lambda _, sharding: sharding, jax.eval_shape(tx.init, shapes), lying, transform_non_params=lambda _: whole
    )
    return TrainState(lying, opt_state, whole, whole)


def create_state(cfg: VLMConfig, params: dict, tx: optax.GradientTransformation, mesh) -> TrainState:
    """Parameters (numpy or arrays) placed on the mesh, with fresh moments beside them."""
    shardings = state_shardings(cfg, tx, mesh)

    # Copied, since the step donates its state and the caller may keep the arrays it gave.
    def place(value, sharding):
        return jax.make_array_from_callback(value.shape, sharding, lambda index: np.array(value[index], np.float32))

    params = jax.tree.map(place, params, shardings.params)
    opt_state = jax.jit(tx.init, out_shardings=shardings.opt_state)(params)
    zero = jax.device_put(np.zeros((), np.int32), meshes.replicated(mesh))
    return TrainState(params, opt_state, zero, jnp.copy(zero))


def abstract_state(cfg: VLMConfig, tx: optax.GradientTransformation, mesh) -> TrainState:
    """Shapes, dtypes and shardings of a state, for restoring into."""
    shapes = parameters.nest({r.path: jax.ShapeDtypeStruct(r.shape, jnp.float32) for r in parameters.table(cfg)})
    number = jax.ShapeDtypeStruct((), jnp.int32)
    tree = TrainState(shapes, jax.eval_shape(tx.init, shapes), number, number)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, state_shardings(cfg, tx, mesh)
    )


def token_losses(model: VLM, batch: dict) -> jax.Array:
    """Cross-entropy in nats of each supervised position, float32 [B, T]; the head sees nothing else.

    Logits are made for `TARGET_CHUNK` positions a row at a time and made again in the backward pass.
    """
    hidden = model.hidden(batch)
    (B, S, _), T = hidden.shape, batch["target_slot"].shape[1]
    slots = jnp.where(batch["target_weight"] > 0, batch["target_slot"], S)
    inverse = jnp.full((B, S), T).at[jnp.arange(B)[:, None], slots].set(jnp.arange(T), mode="drop")
    h = take_unique(hidden, slots, inverse)
    size = min(TARGET_CHUNK, T)
    chunks = -(-T // size)

    def split(x):
        x = jnp.pad(x, [(0, 0), (0, chunks * size - T)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(B, chunks, size, *x.shape[2:]), 1, 0)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def chunk(_, item):
        h, tokens = item
        logits = model.text.logits(h)
        chosen = jnp.take_along_axis(logits, tokens[..., None], -1)[..., 0]
        return None, jax.nn.logsumexp(logits, -1) - chosen

    _, losses = jax.lax.scan(chunk, None, (split(h), split(batch["target_tokens"])))
    return jnp.moveaxis(losses, 0, 1).reshape(B, -1)[:, :T]


def loss_sums(cfg: VLMConfig, params: dict, batch: dict, groups: int, dtype, remat: str):
    """(sum of weighted losses, {"loss": [groups], "tokens": [groups]}): the sums of the plain loss by target group."""
    losses = token_losses(VLM(cfg, params, dtype, remat), batch)
    member = jax.nn.one_hot(batch["target_group"], groups) * (batch["target_weight"] > 0)[..., None]
    by_group = {"loss": jnp.einsum("bt,btg->g", losses, member), "tokens": member.sum((0, 1))}
    return jnp.sum(losses * batch["target_weight"]), by_group


def make_step(cfg: VLMConfig, tx, opt, mesh, *, total_samples, groups, dtype, remat, accumulation=1):
    """The compiled step: (state, batch, samples in the batch) -> (state, metrics).

    The loss is the weighted sum over the supervised tokens of the global batch over their summed weight, also across
    accumulation: `batch` then has a leading axis of `accumulation`, scanned. Shardings of the results are pinned, so
    that a restored state compiles to the same program.
    """

    def gradients(params, batch):
        weight = jnp.maximum(batch["target_weight"].sum(), 1e-9)

        def loss(params, part):
            total, by_group = loss_sums(cfg, params, part, groups, dtype, remat)
            return total / weight, by_group

        grad = jax.value_and_grad(loss, has_aux=True)
        if accumulation == 1:
            return grad(params, batch)

        def add(total, part):
            return jax.tree.map(jnp.add, total, grad(params, part)), None

        zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(grad, params, _first(batch)))
        return jax.lax.scan(add, zero, batch)[0]

    def step(state: TrainState, batch: dict, samples):
        (loss, by_group), grads = gradients(state.params, batch)
        rate = optimizers.learning_rate(state.samples + samples, total_samples, opt)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
        metrics = {"loss": loss, "lr": rate, "grad_norm": optax.tree.norm(grads), "groups": by_group}
        return TrainState(params, opt_state, state.step + 1, state.samples + samples), metrics

    whole = meshes.replicated(mesh)
    return jax.jit(step, donate_argnums=0, out_shardings=(state_shardings(cfg, tx, mesh), whole))


def make_evaluate(cfg: VLMConfig, mesh, *, groups, dtype):
    """The compiled held-out loss: (params, batch) -> {"loss": [groups], "tokens": [groups]} sums."""
    whole = meshes.replicated(mesh)
    return jax.jit(lambda params, batch: loss_sums(cfg, params, batch, groups, dtype, "none")[1], out_shardings=whole)


def _first(batch):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batch)
