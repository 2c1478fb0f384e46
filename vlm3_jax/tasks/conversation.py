"""Stored conversations about any number of images, or none: general questions mixed in, scored by exact answers."""

import collections
import dataclasses

import numpy as np

from vlm3_jax.records import Record
from vlm3_jax.tasks import stored
from vlm3_jax.tasks.base import Example, Task
from vlm3_jax.tasks.metrics import mean_or_nan
from vlm3_jax.tasks.protocol import Protocol


class ConversationTask(Task):
    """What a record's conversation asks and answers, word for word; parsed answers are plain text."""

    name = "conversation"
    headline = "exact"
    higher_is_better = True
    target_fields = {stored.FAMILY: {"family": (stored.FAMILY,), "truth": "text"}}  # noqa: RUF012
    answer_forms = {stored.FAMILY: "text"}  # noqa: RUF012

    def examples(
        self, record: Record, rng: np.random.Generator, protocol: Protocol, vary: bool = False
    ) -> list[Example]:
        """The first `protocol.questions` turns in their order, each with all that was said before it."""
        if record.conversation is None:
            return []
        found = stored.examples(record, protocol)[: protocol.questions]
        if not found:
            return []
        shown = sum(part is None for example in found for part in example.parts)
        views = found[0].views[:shown]
        return [dataclasses.replace(example, views=views) for example in found]

    def alone(self, examples) -> list[Example]:
        """The first question, if it shows an image; the others need what was said before."""
        first = examples[0]
        shown = sum(part is None for part in first.parts)
        return [dataclasses.replace(first, views=first.views[:shown], parts=None, system="")] if shown else []

    def read(self, text: str, target=None) -> str | None:
        """The answer without case, outer punctuation and thinking."""
        return stored.plain(text) or None

    def read_as_release(self, text: str, target=None) -> str | None:
        """The same."""
        return self.read(text, target)

    def item_scores(self, parsed, targets) -> np.ndarray:
        """1 where the answer is the stored one."""
        truths = [stored.plain(target["truth"]) for target in targets]
        return np.array([p is not None and p == t for p, t in zip(parsed, truths, strict=True)], np.float64)

    def metrics(self, parsed, targets) -> dict[str, float]:
        """The share of exact answers."""
        failures = sum(p is None for p in parsed)
        exact = mean_or_nan(self.item_scores(parsed, targets))
        return {"exact": exact, "count": len(targets), "parse_failures": failures}

    def constant_answers(self, targets) -> list[str]:
        """The most frequent answer."""
        counts = collections.Counter(stored.plain(target["truth"]) for target in targets)
        return [counts.most_common(1)[0][0]] * len(targets) if targets else []
