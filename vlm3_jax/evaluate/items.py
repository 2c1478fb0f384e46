"""What evaluation asks: the questions of a component, record by record, chosen by the record and a seed alone."""

import dataclasses

import numpy as np

from vlm3_jax.data.component import Component
from vlm3_jax.data.quarantine import Quarantine
from vlm3_jax.data.schedule import Bad
from vlm3_jax.errors import BadRecord
from vlm3_jax.processor.image import ImageLayout, image_layout
from vlm3_jax.setup import Setup
from vlm3_jax.tasks.base import Example


@dataclasses.dataclass(frozen=True, eq=False)
class Questions:
    """All questions about one record of a component, hence about the same `images`, as the model sees them."""

    component: str
    record: str
    task: str
    images: tuple[ImageLayout, ...]
    examples: tuple[Example, ...]

    @property
    def ids(self) -> list[str]:
        """COMPONENT/RECORD/NUMBER of every question; only to name them, nobody takes an id apart."""
        return [f"{self.component}/{self.record}/{number}" for number in range(len(self.examples))]


def component_questions(
    component: Component, limit: int | None = None, seed: int = 0, quarantine: Quarantine | None = None
) -> list[Questions]:
    """The questions about the first `limit` records (None: all), those without any passed over.

    The questions about record i depend on (seed, i) only and their wording does not vary, so a run over part of the
    records, or split over hosts, asks the same. Broken records go to `quarantine`, which decides (UserError) whether
    they are too many.
    """
    quarantine = quarantine or Quarantine()
    found = []
    for index in range(len(component) if limit is None else min(limit, len(component))):
        try:
            record = component.record(index)
            if record is None:
                continue
            examples = component.task.examples(record, np.random.default_rng([seed, index]), component.protocol)
            if not examples:
                continue
            layouts = tuple(image_layout(record.views[view], component.settings.vision) for view in examples[0].views)
        except BadRecord as error:
            where = f"{component.name}/{index}"
            quarantine.add(1, [Bad(where, component.name, str(component.source.path), str(error))])
            continue
        quarantine.add(1, [])
        found.append(Questions(component.name, record.id, component.task.name, layouts, tuple(examples)))
    quarantine.check(final=True)
    return found


def held_out_questions(setup: Setup, seed: int = 0) -> list[Questions]:
    """The questions of every held-out component of a config; bad records are set aside and counted."""
    config = setup.config
    found = []
    for component in setup.components(config.eval.components):
        quarantine = Quarantine(setup.workdir / "quarantine.jsonl", config.data.max_bad_fraction)
        found += component_questions(component, config.eval.records or None, seed, quarantine)
    return found
