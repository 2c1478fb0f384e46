"""What a run is made of, built from its config: the opened model, data, mesh."""

import dataclasses
import functools
import math
from collections.abc import Sequence

from jax.sharding import Mesh

from vlm3_jax import config_rules, pretrained, storage, weighting
from vlm3_jax.config import protocol_of
from vlm3_jax.data.component import Component, SampleSettings
from vlm3_jax.data.mixture import build_components
from vlm3_jax.data.packing import RowBudget
from vlm3_jax.errors import UserError
from vlm3_jax.model.config import VLMConfig
from vlm3_jax.parallel import mesh as meshes
from vlm3_jax.parallel import processes
from vlm3_jax.pretrained import Pretrained
from vlm3_jax.processor.chat import ChatFormat
from vlm3_jax.processor.image import VisionSpec
from vlm3_jax.storage import AnyPath
from vlm3_jax.storage.folders import Workspace
from vlm3_jax.tasks.protocol import Protocol


@dataclasses.dataclass(frozen=True)
class Setup:
    """The parts of a run that do not change while it runs."""

    config: object
    workdir: AnyPath
    model: Pretrained
    budget: RowBudget

    @classmethod
    def from_config(cls, config) -> "Setup":
        """Judges the config and opens the model; UserError names what is wrong or missing."""
        config_rules.check(config)
        if not config.workdir:
            raise UserError("no workdir is given: set --workdir to the folder for checkpoints, metrics and the export")
        workdir = storage.path(config.workdir)
        with processes.first_before_others("model"):
            model = pretrained.open(config.model, workdir, config.seed, base=config.base)
        # What cannot be read is told before anything begins.
        _ = model.cfg, model.chat, model.spec
        return cls(config, workdir, model, RowBudget.from_config(config.data))

    @property
    def model_cfg(self) -> VLMConfig:
        """The model's numbers."""
        return self.model.cfg

    @property
    def chat(self) -> ChatFormat:
        """The model's tokenizer and chat template."""
        return self.model.chat

    @property
    def spec(self) -> VisionSpec:
        """What the model's images become."""
        return self.model.spec

    @functools.cached_property
    def mesh(self) -> Mesh:
        """All devices as the config arranges them; UserError if they are another number.

        Made when it is first asked for: data can be looked at on any machine.
        """
        return meshes.make_mesh(self.config.mesh.replica, self.config.mesh.fsdp, self.config.mesh.tensor)

    @functools.cached_property
    def work(self) -> Workspace:
        """Where files that grow are written: the workdir, or what becomes part of one in a bucket."""
        return Workspace(self.workdir)

    def protocols(self) -> dict[str, Protocol]:
        """How the model of this run is to be asked, by task: as the training component with the largest `weight` asks.

        A task that is not trained is asked as before.
        """
        trained = sorted(reversed(list(self.config.data.components.values())), key=lambda fields: fields.weight)
        return self.model.protocols | {fields.task: protocol_of(fields) for fields in trained}

    def settings(self) -> SampleSettings:
        """How records become samples in this run."""
        data = self.config.data
        return SampleSettings(self.chat, self.spec, self.budget, data.mode, data.first_answer_weight, data.oversize)

    def components(self, table) -> list[Component]:
        """The components of a mixture table (training or held-out)."""
        return build_components(table, self.settings(), self.config.data.max_bad_fraction)

    def weights(self, components: Sequence[Component]) -> dict[str, float]:
        """How the training components are weighed, by name; UserError names what the rule of weights lacks."""
        data, sizes = self.config.data, {component.name: len(component) for component in components}
        return weighting.resolve(data.components, data.groups, data.weights, sizes, self.config.train.samples)


def held_out_table(config) -> dict[str, dict]:
    """The held-out components with at most as many questions a record as training has: they share its rows."""
    asked = [protocol_of(fields).questions for fields in config.data.components.values()]
    return {
        name: dict(fields) | {"questions": min(protocol_of(fields).questions, max(asked, default=math.inf))}
        for name, fields in config.eval.components.items()
    }
