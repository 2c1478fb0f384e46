"""The training step: forward, loss on supervised positions only, gradients, update; compiled once."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vlm3_jax.model.attention import BackEnd
from vlm3_jax.model.config import VLMConfig
from vlm3_jax.model.layers import run_as_it_is, take_unique
from vlm3_jax.model.vlm import VLM
from vlm3_jax.parallel import mesh as meshes
from vlm3_jax.train import optimizer as optimizers
from vlm3_jax.train.trainable import DTYPES, Trainable

TARGET_CHUNK = 256


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("params", "opt_state", "step", "samples"), meta_fields=()
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Parameters, Adam moments of those that are trained, and how many steps and samples are behind it.

    What is trained is float32; what is frozen passes through a step untouched.
    """

    params: dict
    opt_state: optax.OptState
    step: jax.Array
    samples: jax.Array


def state_shardings(cfg: VLMConfig, tx: optax.GradientTransformation, mesh, trainable: Trainable | None = None):
    """The intended sharding of every leaf: moments lie as their parameters, counters on every device.

    `trainable` says what is trained, here and below; None: everything.
    """
    trainable = trainable or Trainable.whole(cfg)
    lying, whole = meshes.param_shardings(cfg, mesh, trainable.rows), meshes.replicated(mesh)
    opt_state = optax.tree_utils.tree_map_params(
        tx,
        lambda _, sharding: sharding,
        jax.eval_shape(tx.init, trainable.split(trainable.shapes())[0]),
        trainable.split(lying)[0],
        transform_non_params=lambda _: whole,
    )
    return TrainState(lying, opt_state, whole, whole)


def create_state(
    cfg: VLMConfig, params: dict, tx: optax.GradientTransformation, mesh, trainable: Trainable | None = None
) -> TrainState:
    """All leaves of the parameters (numpy or arrays) placed on the mesh, with fresh moments beside the trained ones."""
    trainable = trainable or Trainable.whole(cfg)
    shardings = state_shardings(cfg, tx, mesh, trainable)

    # Copied, since the step donates its state and the caller may keep the arrays it gave; what `hf.load_sharded` has
    # placed already is taken over.
    def place(value, sharding, like):
        if isinstance(value, jax.Array) and (value.sharding, value.dtype) == (sharding, like.dtype):
            return value
        return jax.make_array_from_callback(value.shape, sharding, lambda index: np.array(value[index], like.dtype))

    params = jax.tree.map(place, params, shardings.params, trainable.shapes())
    opt_state = jax.jit(tx.init, out_shardings=shardings.opt_state)(trainable.split(params)[0])
    zero = jax.device_put(np.zeros((), np.int32), meshes.replicated(mesh))
    return TrainState(params, opt_state, zero, jnp.copy(zero))


def abstract_state(
    cfg: VLMConfig, tx: optax.GradientTransformation, mesh, trainable: Trainable | None = None
) -> TrainState:
    """Shapes, dtypes and shardings of a state, for restoring into."""
    trainable = trainable or Trainable.whole(cfg)
    shapes, number = trainable.shapes(), jax.ShapeDtypeStruct((), jnp.int32)
    tree = TrainState(shapes, jax.eval_shape(tx.init, trainable.split(shapes)[0]), number, number)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, state_shardings(cfg, tx, mesh, trainable)
    )


def token_losses(model: VLM, batch: dict) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Cross-entropy in nats of each supervised position, float32 [B, T], the log of the softmax's denominator there
    [B, T], and the load-balance loss of experts.

    The head sees the supervised positions only. Logits are made for `TARGET_CHUNK` positions a row at a time and made
    again in the backward pass.
    """
    hidden, balance = model.hidden_and_balance(batch)
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
        log_sum = jax.nn.logsumexp(logits, -1)
        return None, (log_sum - chosen, log_sum)

    _, found = jax.lax.scan(chunk, None, (split(h), split(batch["target_tokens"])))
    losses, log_sums = (jnp.moveaxis(x, 0, 1).reshape(B, -1)[:, :T] for x in found)
    return losses, log_sums, balance


def loss_sums(
    cfg: VLMConfig, params: dict, batch: dict, groups: int, dtype, remat: str, mesh=None,
    back_end: BackEnd | None = None,
):  # fmt: skip
    """(sum of weighted losses, {"loss": [groups], "tokens": [groups], "balance", "z"}).

    The sums of the plain loss by target group, the load-balance loss (0 without experts), and the weighted sum of
    squares of the log of the softmax's denominator.
    """
    locally = meshes.locally(mesh) if mesh is not None and mesh.size > 1 else run_as_it_is
    losses, log_sums, balance = token_losses(VLM(cfg, params, dtype, remat, locally, back_end), batch)
    member = jax.nn.one_hot(batch["target_group"], groups) * (batch["target_weight"] > 0)[..., None]
    weight = batch["target_weight"]
    sums = {
        "loss": jnp.einsum("bt,btg->g", losses, member),
        "tokens": member.sum((0, 1)),
        "balance": balance,
        "z": jnp.sum(jnp.square(log_sums) * weight),
    }
    return jnp.sum(losses * weight), sums


def make_step(
    cfg: VLMConfig, tx, opt, mesh, *, total_samples, groups, dtype, remat, accumulation=1, trainable=None, balance=0.0,
    z_loss=0.0, back_end=None,
):  # fmt: skip
    """The compiled step: (state, batch, samples in the batch) -> (state, metrics).

    The loss is the weighted sum over the supervised tokens of the global batch over their summed weight, also across
    accumulation: `batch` then has a leading axis of `accumulation`, scanned. Gradients are taken with respect to what
    is trained only, so the backward pass leaves out what only frozen parameters would need. `balance` times the mean
    load-balance loss of the batches is added where there are experts, and `z_loss` times the mean square of the log of
    the softmax's denominator; the loss told is without them. Where the loss or the gradient is not finite, parameters
    and moments stay as they are, and metrics["skipped"] says so. Shardings of the results are pinned, so that a
    restored state compiles to the same program. `back_end` of attention; None: "auto".
    """
    trainable = trainable or Trainable.whole(cfg)
    back_end = back_end or meshes.back_end(mesh)

    def gradients(trained, frozen, batch):
        weight = jnp.maximum(batch["target_weight"].sum(), 1e-9)

        def loss(trained, rows):
            params = trainable.view(trainable.join(trained, frozen), dtype)
            total, sums = loss_sums(cfg, params, rows, groups, dtype, remat, mesh, back_end)
            added = balance / accumulation * sums["balance"] + z_loss * sums["z"] / weight
            return total / weight + added, (total / weight, sums)

        grad = jax.value_and_grad(loss, has_aux=True)
        if accumulation == 1:
            return grad(trained, batch)

        def add(total, rows):
            return jax.tree.map(jnp.add, total, grad(trained, rows)), None

        zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(grad, trained, _first(batch)))
        return jax.lax.scan(add, zero, batch)[0]

    def step(state: TrainState, batch: dict, samples):
        trained, frozen = trainable.split(state.params)
        (_, (loss, sums)), grads = gradients(trained, frozen, batch)
        rate = optimizers.learning_rate(state.samples + samples, total_samples, opt)
        updates, opt_state = tx.update(grads, state.opt_state, trained)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm) & jnp.isfinite(rate)

        def unless_broken(new, old):
            return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

        moved = jax.tree.map(lambda p, u, factor: p - rate * factor * u, trained, updates, trainable.factors())
        params = trainable.join(unless_broken(moved, trained), frozen)
        opt_state = unless_broken(opt_state, state.opt_state)
        metrics = {"loss": loss, "lr": rate, "grad_norm": norm, "groups": sums, "skipped": ~finite}
        return TrainState(params, opt_state, state.step + 1, state.samples + samples), metrics

    whole = meshes.replicated(mesh)
    return jax.jit(step, donate_argnums=0, out_shardings=(state_shardings(cfg, tx, mesh, trainable), whole))


def from_config(cfg: VLMConfig, config, tx, mesh, trainable: Trainable, groups: int, accumulation: int | None = None):
    """`make_step` as the config of a run has it; `accumulation` in place of its own."""
    train = config.train
    return make_step(
        cfg, tx, config.optimizer, mesh, total_samples=train.samples, groups=groups, dtype=DTYPES[train.dtype],
        remat=train.remat, accumulation=accumulation or train.accumulation, trainable=trainable,
        balance=train.balance, z_loss=train.z_loss, back_end=meshes.back_end(mesh, train.attention),
    )  # fmt: skip


def make_evaluate(cfg: VLMConfig, mesh, *, groups, dtype, trainable=None, back_end=None):
    """The compiled held-out loss: (params, batch) -> {"loss": [groups], "tokens": [groups]} sums."""
    trainable, whole = trainable or Trainable.whole(cfg), meshes.replicated(mesh)
    back_end = back_end or meshes.back_end(mesh)

    def sums(params, batch):
        return loss_sums(cfg, trainable.view(params, dtype), batch, groups, dtype, "none", mesh, back_end)[1]

    return jax.jit(sums, out_shardings=whole)


def _first(batch):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batch)
