"""What a run is made of, built from its config: model directory, chat format, data, mesh."""

import dataclasses
import functools
import pathlib

from jax.sharding import Mesh

from vlm3_jax import config as configs
from vlm3_jax.config import check_entry
from vlm3_jax.data.component import Component, SampleSettings
from vlm3_jax.data.mixture import build_components
from vlm3_jax.data.packing import RowBudget
from vlm3_jax.errors import UserError
from vlm3_jax.model.config import VLMConfig
from vlm3_jax.parallel import mesh as meshes
from vlm3_jax.parallel import processes
from vlm3_jax.pretrained import resolve_model
from vlm3_jax.processor.chat import ChatFormat
from vlm3_jax.processor.image import VisionSpec


@dataclasses.dataclass(frozen=True)
class Setup:
    """The parts of a run that do not change while it runs."""

    config: object
    workdir: pathlib.Path
    model_dir: pathlib.Path
    cfg: VLMConfig
    chat: ChatFormat
    spec: VisionSpec
    budget: RowBudget

    @classmethod
    def from_config(cls, config) -> "Setup":
        """Judges the config and opens the model directory; UserError names what is wrong or missing."""
        configs.check(config)
        for table in (config.data.components, config.eval.components):
            for name, entry in table.items():
                check_entry(name, entry)
        if not config.workdir:
            raise UserError("no workdir is given: set --workdir to the folder for checkpoints, metrics and the export")
        workdir = pathlib.Path(config.workdir)
        with processes.first_before_others("model"):
            model_dir = resolve_model(config.model, workdir, config.seed)
        return cls(
            config=config,
            workdir=workdir,
            model_dir=model_dir,
            cfg=VLMConfig.from_dir(model_dir),
            chat=ChatFormat.from_dir(model_dir),
            spec=VisionSpec.from_dir(model_dir),
            budget=RowBudget.from_config(config.data),
        )

    @functools.cached_property
    def mesh(self) -> Mesh:
        """All devices as the config arranges them; UserError if they are another number.

        Made when it is first asked for: data can be looked at on any machine.
        """
        return meshes.make_mesh(self.config.mesh.replica, self.config.mesh.fsdp, self.config.mesh.tensor)

    def settings(self) -> SampleSettings:
        """How records become samples in this run."""
        data = self.config.data
        return SampleSettings(self.chat, self.spec, self.budget, data.mode, data.first_answer_weight, data.oversize)

    def components(self, table) -> list[Component]:
        """The components of a mixture table (training or held-out)."""
        return build_components(table, self.settings(), self.config.data.max_bad_fraction)
