"""Loss and gradient of one batch on several meshes: `mesh_worker.py MODEL EXPERTS FOLDER CASE...`.

MODEL is dense, EXPERTS a mixture of experts. Reads packed.npz, unpacked.npz and paired.npz from FOLDER and writes one
CASE.npz each. test_train_step.py starts it, with the eight devices in its environment.
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

from vlm3_jax.checkpoint import hf
from vlm3_jax.data.schedule import Schedule
from vlm3_jax.model import params as parameters
from vlm3_jax.parallel import mesh as meshes
from vlm3_jax.train import step as steps
from vlm3_jax.train.checkpoints import Checkpoints


@dataclasses.dataclass(frozen=True)
class Case:
    """How a step is computed. `mesh`: replica, fsdp, tensor; `chunk`: positions that the head sees at once."""

    mesh: tuple[int, int, int] = (1, 1, 1)
    remat: str = "none"
    batch: str = "packed"
    accumulation: int = 1
    chunk: int = 256
    dtype: str = "float32"
    experts: bool = False


CASES = {
    "one device": Case(),
    "fsdp 8, a row each, lists of blocks, accumulated, recomputed": Case(
        (1, 8, 1), remat="full", batch="unpacked", accumulation=2
    ),
    "fsdp 8, recomputed": Case((1, 8, 1), remat="full"),
    "fsdp 4 x tensor 2, head in chunks": Case((1, 4, 2), chunk=24),
    "replica 2 x fsdp 4, partly recomputed": Case((2, 4, 1), remat="minimal"),
    "a row each, lists of blocks, accumulated": Case(batch="unpacked", accumulation=2),
    "pairs of blocks": Case(batch="paired"),
    "fsdp 4 x tensor 2, pairs of blocks, recomputed": Case((1, 4, 2), batch="paired", remat="full"),
    "pairs of blocks, kept on the host": Case(batch="paired", remat="offload"),
    "bfloat16": Case(remat="full", dtype="bfloat16"),
    "experts": Case(experts=True),
    "experts, fsdp 4 x tensor 2, recomputed": Case((1, 4, 2), remat="full", experts=True),
    "experts, replica 2 x fsdp 4": Case((2, 4, 1), experts=True),
}
# The case whose state is saved.
RESTORED = "fsdp 8, a row each, lists of blocks, accumulated, recomputed"
# The rate is zero and the "moments" are the plain gradient, so a step shows what it has computed.
OPTIMIZER = types.SimpleNamespace(schedule="constant", warmup=0.0, learning_rate=0.0)
GRADIENT = optax.trace(decay=0.0)


def prepare(cfg, params, case: Case, folder, pool):
    """The step of a case, compiled in the background, and what it is called with."""
    mesh = meshes.make_mesh(*case.mesh, devices=jax.devices()[: math.prod(case.mesh)])
    steps.TARGET_CHUNK = case.chunk
    step = steps.make_step(
        cfg, GRADIENT, OPTIMIZER, mesh, total_samples=100, groups=4, dtype=jnp.dtype(case.dtype), remat=case.remat,
        accumulation=case.accumulation, balance=0.1,
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
    groups = metrics["groups"]
    return {"loss": metrics["loss"], "loss_by_group": groups["loss"], "loss_balance": groups["balance"], **gradients}


def main(dense: str, experts: str, folder: pathlib.Path, names: list[str]) -> None:
    """The cases of these names; then a checkpoint from eight devices is restored onto others."""
    models = {False: hf.load(dense), True: hf.load(experts)}
    with ThreadPoolExecutor(2) as pool:
        cases = {name: CASES[name] for name in names}
        prepared = [prepare(*models[case.experts], case, folder, pool) for case in cases.values()]
    states = {}
    for (name, case), (compiled, arguments) in zip(cases.items(), prepared, strict=True):
        states[name], metrics = compiled.result()(*arguments)
        np.savez(folder / f"{name}.npz", **results(models[case.experts][1], states[name], metrics))
    if RESTORED in states:
        restore_elsewhere(models[False][0], states[RESTORED], folder)


def restore_elsewhere(cfg, state, folder) -> None:
    """A checkpoint of eight devices comes back bit by bit on others, in the shardings asked for."""
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, state, Schedule(np.arange(8), ()), {"seed": 0})
    checkpoints.wait()
    for shape, kinds in (((1, 4, 2), 4), ((1, 1, 1), 1)):
        mesh = meshes.make_mesh(*shape, devices=jax.devices()[: math.prod(shape)])
        wanted = steps.abstract_state(cfg, GRADIENT, mesh)
        restored, schedule = checkpoints.restore(wanted, {"seed": 0})
        assert schedule.cursors.tolist() == list(range(8))
        for leaf, old, abstract in zip(*map(jax.tree.leaves, (restored, state, wanted)), strict=True):
            assert leaf.sharding.is_equivalent_to(abstract.sharding, leaf.ndim)
            np.testing.assert_array_equal(np.asarray(leaf), np.asarray(old))
        assert len({str(leaf.sharding.spec) for leaf in jax.tree.leaves(restored)}) >= kinds
    checkpoints.close()


if __name__ == "__main__":
    main(*sys.argv[1:3], pathlib.Path(sys.argv[3]), sys.argv[4:])
