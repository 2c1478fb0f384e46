"""Evaluation items: the questions of a component, one by one, chosen by the record and a seed alone."""

import dataclasses
from typing import Any

import numpy as np

from vlm3_jax.data.component import Component
from vlm3_jax.data.quarantine import Quarantine
from vlm3_jax.data.schedule import Bad
from vlm3_jax.errors import BadRecord
from vlm3_jax.processor.image import ImageLayout, image_layout


@dataclasses.dataclass(frozen=True, eq=False)
class Item:
    """One question to be answered: `images` as the model sees them, `target` holds all that scoring needs."""

    id: str
    source: str
    task: str
    images: tuple[ImageLayout, ...]
    question: str
    answer: str
    target: dict[str, Any]


def evaluation_items(
    component: Component, limit: int | None = None, seed: int = 0, quarantine: Quarantine | None = None
) -> list[Item]:
    """The items of the first `limit` records (None: all).

    The questions of record i depend on (seed, i) only and their wording does not vary, so a run over part of the
    records, or split over hosts, asks the same. Items of one record share their `images` tuple; an id is
    `COMPONENT/RECORD/NUMBER`. Records that the task has nothing to ask about are passed over; broken ones go to
    `quarantine`, which decides (UserError) whether they are too many.
    """
    style = dataclasses.replace(component.style, vary=False)
    quarantine = quarantine or Quarantine()
    items = []
    for index in range(len(component) if limit is None else min(limit, len(component))):
        try:
            record = component.record(index)
            if record is None:
                continue
            examples = component.task.examples(record, np.random.default_rng([seed, index]), style)
            if not examples:
                continue
            layouts = tuple(image_layout(record.views[view], component.settings.vision) for view in examples[0].views)
        except BadRecord as error:
            where = f"{component.name}/{index}"
            quarantine.add(1, [Bad(where, component.name, str(component.source.path), str(error))])
            continue
        quarantine.add(1, [])
        items += [
            Item(
                id=f"{component.name}/{record.id}/{number}",
                source=component.name,
                task=component.task.name,
                images=layouts,
                question=example.question,
                answer=example.answer,
                target=example.target,
            )
            for number, example in enumerate(examples)
        ]
    quarantine.check(final=True)
    return items
