"""The held-out losses of a run, all components together: what is measured at an evaluation, and with which program."""

import jax

from vlm3_jax.data.quarantine import Quarantine
from vlm3_jax.parallel import mesh as meshes
from vlm3_jax.setup import Setup, held_out_table
from vlm3_jax.train import step as steps
from vlm3_jax.train.feed import quarantine_file
from vlm3_jax.train.held_out import HeldOut, count_in_all
from vlm3_jax.train.trainable import DTYPES, Trainable


class HeldOutLosses:
    """UserError if a component gives no sample, or too much of the data is broken."""

    def __init__(self, setup: Setup, trainable: Trainable):
        config, mesh = setup.config, setup.mesh
        components = setup.components(held_out_table(config)) if config.eval.loss_batches else []
        self._setup, self._said = setup, 0
        self._quarantine = Quarantine(quarantine_file(setup.work.folder), config.data.max_bad_fraction)
        self._held_out = {component.name: HeldOut(setup, component, self._quarantine) for component in components}
        count_in_all(self._quarantine, setup)
        groups = 2 * (1 + max((component.number for component in components), default=0))
        self._sums = steps.make_evaluate(
            setup.model_cfg, mesh, groups=groups, dtype=DTYPES[config.train.dtype], trainable=trainable,
            back_end=meshes.back_end(mesh, config.train.attention),
        )  # fmt: skip
        self._sharding = meshes.batch_sharding(mesh)

    def measure(self, params: dict) -> dict[str, tuple[float, float]]:
        """{component: (loss, entropy of its answers)} in nats a token.

        The entropy is what a model that sees nothing reaches.
        """

        def sums(arrays):
            batch = meshes.put_batch(arrays, self._sharding)
            with jax.transfer_guard("disallow"):
                return self._sums(params, batch)

        return {name: (data.loss(sums), data.entropy) for name, data in self._held_out.items()}

    def news(self) -> list[str]:
        """A line for the user if more is set aside than at the last call; all processes call it together."""
        if not self._held_out:
            return []
        before, self._said = self._said, count_in_all(self._quarantine, self._setup)
        if self._said <= before:
            return []
        where = self._quarantine.path
        where = where if jax.process_count() == 1 else where.with_name("quarantine*.jsonl")
        return [f"{self._said} of {self._quarantine.samples} held-out samples are set aside; {where} says why"]
