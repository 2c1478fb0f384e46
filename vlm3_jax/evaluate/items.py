"""What evaluation asks: the questions of a component, record by record, chosen by the record and a seed alone."""

import dataclasses

from vlm3_jax.data.component import Component
from vlm3_jax.data.quarantine import Quarantine
from vlm3_jax.data.samples import Bad, PassedOver, Sample
from vlm3_jax.processor.image import ImageLayout
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
        sample = component.sample(index, (seed, index), f"{component.name}/{index}", training=False)
        quarantine.add(not isinstance(sample, PassedOver), [sample] if isinstance(sample, Bad) else [])
        asked = component.task.alone(sample.examples) if isinstance(sample, Sample) else []
        if asked:
            images = sample.images[: len(asked[0].views)]
            found.append(Questions(component.name, sample.record.id, component.task.name, images, tuple(asked)))
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
