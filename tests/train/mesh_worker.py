"""Loss and gradient of one batch on several meshes: `mesh_worker.py MODEL FOLDER`.

Reads packed.npz and unpacked.npz from FOLDER and writes one CASE.npz each. test_train_step.py starts it, with the eight
devices in its environment.
"""

import dataclasses
import math
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


@dataclasses.dataclass(frozen=True)
class Case:
    """How a step is computed. `mesh`: replica, fsdp, tensor; `chunk`: positions that the head sees at once."""

    mesh: tuple[int, int, int] = (1, 1, 1)
    remat: str = "none"
    batch: str = "packed"
    accumulation: int = 1
    chunk: int = 256
    dtype: str = "float32"


CASES = {
    "one device": Case(),
    "fsdp 8, recomputed": Case((1, 8, 1), remat="full"),
    "fsdp 4 x tensor 2, head in chunks": Case((1, 4, 2), chunk=24),
    "replica 2 x fsdp 4, partly recomputed": Case((2, 4, 1), remat="minimal"),
    "a row each, block lists, accumulated": Case(batch="unpacked", accumulation=2),
    "bfloat16": Case(remat="full", dtype="bfloat16"),
}
# The rate is zero and the "moments" are the plain gradient, so a step shows what it has computed.
OPTIMIZER = types.SimpleNamespace(schedule="constant", warmup=0.0, learning_rate=0.0)
GRADIENT = optax.trace(decay=0.0)


def prepare(cfg, params, case: Case, folder, pool):
    """The step of a case, compiled in the background, and what it is called with."""
    mesh = meshes.make_mesh(*case.mesh, devices=jax.devices()[: math.prod(case.mesh)])
    steps.TARGET_CHUNK = case.chunk
    step = steps.make_step(
        cfg, GRADIENT, OPTIMIZER, mesh, total_samples=100, groups=4, dtype=jnp.dtype(case.dtype), remat=case.remat,
        accumulation=case.accumulation,
    )  # fmt: skip
    with np.load(folder / f"{case.batch}.npz") as arrays:
        batch = dict(arrays)
    if case.accumulation > 1:
        batch = {k: v.reshape(case.accumulation, -1, *v.shape[1:]) for k, v in batch.items()}
    batch = meshes.put_batch(batch, meshes.batch_sharding(mesh, case.accumulation))
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
