"""Orbax checkpoints of a run: the sharded state, the data cursors and what the run was."""

import json
import pathlib

import jax
import numpy as np
import orbax.checkpoint as ocp

from vlm3_jax.data.plan import PlanState
from vlm3_jax.errors import UserError
from vlm3_jax.train.step import TrainState


class Checkpoints:
    """The checkpoints of one workdir; saving is asynchronous, restoring takes any mesh."""

    def __init__(self, workdir, keep: int = 2):
        self.folder = pathlib.Path(workdir).absolute() / "checkpoints"
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
        items = ocp.args.Composite(state=ocp.args.StandardSave(_as_tree(state)), meta=ocp.args.JsonSave(meta))
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
        restore = ocp.args.Composite(state=ocp.args.StandardRestore(_as_tree(abstract)))
        tree = self._manager.restore(step, args=restore).state
        leaves = jax.tree.leaves(tree)
        state = jax.tree.unflatten(jax.tree.structure(abstract), leaves)
        return state, PlanState.from_tree({"cursors": np.asarray(meta["cursors"], np.int64), "phases": meta["phases"]})

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def _as_tree(state: TrainState) -> list:
    """Leaves in a fixed order: optax's named tuples do not survive a round trip through a file as types."""
    return {f"{number:04d}": leaf for number, leaf in enumerate(jax.tree.leaves(state))}
