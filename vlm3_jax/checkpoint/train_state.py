"""Orbax checkpoints of a run: parameters under their names, the optimizer's state, data cursors, what the run was."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import orbax.checkpoint as ocp

from vlm3_jax.checkpoint.layouts import CHUNK_BYTES
from vlm3_jax.checkpoint.locate import CHECKPOINTS
from vlm3_jax.data.plan import PlanState
from vlm3_jax.errors import UserError
from vlm3_jax.train.step import TrainState


class Checkpoints:
    """The checkpoints of one workdir; saving is asynchronous, restoring takes any mesh."""

    def __init__(self, workdir, keep: int = 2):
        self.folder = pathlib.Path(workdir).absolute() / CHECKPOINTS
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def latest_step(self) -> int | None:
        """The newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, plan: PlanState, facts: dict) -> None:
        """Saves in the background; `facts` is JSON (the seed, the model's shapes) and is compared on restore."""
        if step in self._manager.all_steps():
            return
        tree = plan.to_tree()
        meta = {"cursors": tree["cursors"].tolist(), "phases": tree["phases"], "facts": facts}
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params, jax.tree.map(_chunks, state.params)),
            optimizer=ocp.args.StandardSave(_numbered(state)),
            meta=ocp.args.JsonSave(meta),
        )
        self._manager.save(step, args=items)

    def restore(self, abstract: TrainState, facts: dict) -> tuple[TrainState, PlanState]:
        """The newest state in the shardings of `abstract`. UserError if the run was another one."""
        step = self.latest_step()
        meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
        for key, value in json.loads(json.dumps(facts)).items():
            if meta["facts"].get(key) != value:
                raise UserError(
                    f"{self.folder}: the saved run has {key} = {meta['facts'].get(key)}, the configuration {value}; "
                    "use another --workdir or the old setting"
                )
        restore = ocp.args.Composite(
            params=ocp.args.StandardRestore(abstract.params),
            optimizer=ocp.args.StandardRestore(_numbered(abstract)),
        )
        found = self._manager.restore(step, args=restore)
        others = jax.tree.unflatten(jax.tree.structure(_others(abstract)), jax.tree.leaves(found.optimizer))
        state = dataclasses.replace(others, params=found.params)
        return state, PlanState.from_tree({"cursors": np.asarray(meta["cursors"], np.int64), "phases": meta["phases"]})

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def _others(state: TrainState) -> TrainState:
    """All but the parameters."""
    return dataclasses.replace(state, params={})


def _numbered(state: TrainState) -> dict:
    """Leaves in a fixed order: optax's named tuples do not survive a round trip through a file as types."""
    return {f"{number:04d}": leaf for number, leaf in enumerate(jax.tree.leaves(_others(state)))}


def _chunks(leaf) -> ocp.SaveArgs:
    """A layer a chunk, so that `vlm3 convert` can read one without its stack; small arrays whole."""
    if leaf.nbytes <= CHUNK_BYTES:
        return ocp.SaveArgs()
    return ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES, shard_axes=(0,) if leaf.ndim > 2 else ())
