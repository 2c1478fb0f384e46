"""Loss and gradient of one batch on several meshes: `mesh_worker.py MODEL FOLDER`.

Reads packed.npz and unpacked.npz from FOLDER and writes one CASE.npz each. test_train_step.py starts it, with the eight
devices in its environment.
"""

import pathlib
import sys
import types
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vlm3_jax import params as parameters
from vlm3_jax.checkpoint import hf
from vlm3_jax.checkpoint.train_state import Checkpoints
from vlm3_jax.data.plan import PlanState
from vlm3_jax.train import mesh as meshes
from vlm3_jax.train import step as steps

# Name: devices, (replica, fsdp, tensor), recomputation, batch, accumulation, positions of the head at once.
CASES = {
    "one device": (1, (1, 1, 1), "none", "packed", 1, 256),
    "fsdp 8, recomputed": (8, (1, 8, 1), "full", "packed", 1, 256),
    "fsdp 4 x tensor 2, head in chunks": (8, (1, 4, 2), "none", "packed", 1, 24),
    "replica 2 x fsdp 4, partly recomputed": (8, (2, 4, 1), "minimal", "packed", 1, 256),
    "a row each, block lists, accumulated": (1, (1, 1, 1), "none", "unpacked", 2, 256),
}
# The rate is zero and the "moments" are the plain gradient, so a step shows what it has computed.
OPTIMIZER = types.SimpleNamespace(schedule="constant", warmup=0.0, learning_rate=0.0)
GRADIENT = optax.trace(decay=0.0)


def prepare(cfg, params, case, folder, pool):
    """The step of a case, compiled in the background, and what it is called with."""
    count, shape, remat, batch_name, accumulation, chunk = case
    mesh = meshes.make_mesh(*shape, devices=jax.devices()[:count])
    steps.TARGET_CHUNK = chunk
    step = steps.make_step(
        cfg, GRADIENT, OPTIMIZER, mesh, total_samples=100, groups=4, dtype=jnp.float32, remat=remat,
        accumulation=accumulation,
    )  # fmt: skip
    with np.load(folder / f"{batch_name}.npz") as arrays:
        batch = dict(arrays)
    if accumulation > 1:
        batch = {k: v.reshape(accumulation, -1, *v.shape[1:]) for k, v in batch.items()}
    batch = meshes.put_batch(batch, meshes.batch_sharding(mesh, accumulation))
    arguments = steps.create_state(cfg, params, GRADIENT, mesh), batch, np.int32(7)
    return pool.submit(step.lower(*arguments).compile), arguments


def results(params, state, metrics) -> dict:
    """{"loss", "loss_by_group", and every gradient by its dotted path}."""
    for before, after in zip(jax.tree.leaves(params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_array_equal(before, after)
    assert (int(state.step), int(state.samples)) == (1, 7)
    gradients = {".".join(k): np.asarray(v) for k, v in parameters.flatten(state.opt_state.trace).items()}
    return {"loss": metrics["loss"], "loss_by_group": metrics["groups"]["loss"], **gradients}


def main(model_dir: str, folder: pathlib.Path) -> None:
    """All cases; then a checkpoint from one device is restored onto eight."""
    cfg, params = hf.load(model_dir)
    with ThreadPoolExecutor(2) as pool:
        prepared = [prepare(cfg, params, case, folder, pool) for case in CASES.values()]
    states = {}
    for name, (compiled, arguments) in zip(CASES, prepared, strict=True):
        states[name], metrics = compiled.result()(*arguments)
        np.savez(folder / f"{name}.npz", **results(params, states[name], metrics))
    restore_elsewhere(cfg, states["one device"], folder)


def restore_elsewhere(cfg, state, folder) -> None:
    """A checkpoint of one device comes back bit by bit on eight, in the shardings asked for."""
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, state, PlanState(np.arange(8), ()), {"seed": 0})
    wanted = steps.abstract_state(cfg, GRADIENT, meshes.make_mesh(1, 4, 2))
    restored, plan = checkpoints.restore(wanted, {"seed": 0})
    checkpoints.close()
    assert plan.cursors.tolist() == list(range(8))
    for leaf, old, abstract in zip(*map(jax.tree.leaves, (restored, state, wanted)), strict=True):
        assert leaf.sharding.is_equivalent_to(abstract.sharding, leaf.ndim)
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(old))
    assert len({str(leaf.sharding.spec) for leaf in jax.tree.leaves(restored)}) > 3


if __name__ == "__main__":
    main(sys.argv[1], pathlib.Path(sys.argv[2]))
