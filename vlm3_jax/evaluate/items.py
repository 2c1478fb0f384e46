"""What evaluation asks: the questions of a component, record by record, chosen by the record and a seed alone."""

import dataclasses
from collections.abc import Callable, Sequence

from vlm3_jax.data.component import Component
from vlm3_jax.data.quarantine import Quarantine, left_out, left_out_untold
from vlm3_jax.data.samples import Bad, PassedOver, Sample
from vlm3_jax.processor.image import ImageLayout
from vlm3_jax.tasks.base import Example


@dataclasses.dataclass(frozen=True, eq=False)
class Questions:
    """All questions about one record of a component, hence about the same `images`, as the model sees them.

    `first`: the number of the first of them, where others about the same record are asked by themselves. `scene`: what
    the record is of, "" if it does not tell.
    """

    component: str
    record: str
    task: str
    images: tuple[ImageLayout, ...]
    examples: tuple[Example, ...]
    first: int = 0
    scene: str = ""

    @property
    def ids(self) -> list[str]:
        """COMPONENT/RECORD/NUMBER of every question; only to name them, nobody takes an id apart."""
        return [f"{self.component}/{self.record}/{self.first + number}" for number in range(len(self.examples))]

    @property
    def brief(self) -> "Brief":
        """What a plan needs to know of it."""
        patches = sum(layout.n_patches for layout in self.images)
        return Brief(self.component, self.record, self.task, len(self.examples), len(self.images), patches)


@dataclasses.dataclass(frozen=True)
class Brief:
    """How many questions about a record, and about how many images of how many patches; no pixels and no texts."""

    component: str
    record: str
    task: str
    questions: int
    images: int
    patches: int


class HeldOut(Sequence):
    """The questions of held-out components, a `Questions` a record, those without any passed over.

    Only their `briefs` stay in memory: the records of a benchmark hold gigabytes of encoded images. The questions about
    record i of a component depend on (seed, i) only and their wording does not vary, so every process of a run asks the
    same. `records`: at most so many of each component (None: all). Broken records go to a quarantine of their
    component, made by `quarantine()`, which decides (UserError) whether they are too many.
    """

    def __init__(
        self,
        components: Sequence[Component],
        records: int | None = None,
        seed: int = 0,
        quarantine: Callable[[], Quarantine] = Quarantine,
    ):
        self._seed = seed
        self._places: list[tuple[Component, int]] = []
        self.briefs: list[Brief] = []
        for component in components:
            self._survey(component, records, quarantine())

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: int) -> Questions:
        component, index = self._places[number]
        sample = self._sample(component, index)
        if isinstance(sample, Bad):
            raise sample.error
        return _questions(component, sample)

    def _survey(self, component: Component, records: int | None, quarantine: Quarantine) -> None:
        for index in range(len(component) if records is None else min(records, len(component))):
            sample = self._sample(component, index)
            quarantine.add(not isinstance(sample, PassedOver), [sample] if isinstance(sample, Bad) else [])
            quarantine.write(left_out(component, sample.record.id) if isinstance(sample, Sample) else [])
            if isinstance(sample, Sample) and (questions := _questions(component, sample)).examples:
                self._places.append((component, index))
                self.briefs.append(questions.brief)
        quarantine.write(left_out_untold(component))
        quarantine.check(final=True)

    def _sample(self, component: Component, index: int) -> Sample | PassedOver | Bad:
        id = f"{component.name}/{index}"
        return component.sample(index, (self._seed, index), id, training=False, cropped=False)


def briefs(asked: Sequence[Questions]) -> list[Brief]:
    """Of questions that are all in memory too."""
    return asked.briefs if hasattr(asked, "briefs") else [questions.brief for questions in asked]


def _questions(component: Component, sample: Sample) -> Questions:
    """What can be asked of it without the turns before, which may be nothing."""
    examples = tuple(component.task.alone(sample.examples))
    images = sample.images[: len(examples[0].views)] if examples else ()
    record = sample.record
    return Questions(component.name, record.id, component.task.name, images, examples, scene=record.scene)
