"""What a task is: it asks, answers, reads answers and scores them. Plain numpy and strings; no model, no jax.

All tasks share one contract, so that the data path and the evaluation never ask which task they handle.
"""

import abc
import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from vlm3_jax.records import Record
from vlm3_jax.tasks.protocol import Protocol

RULES = ("vlm3", "release")
"""How answers are read: by our rules (docs/conventions.md), or as the release's notebook and the paper do."""


@dataclasses.dataclass(frozen=True)
class Example:
    """One question with its answer. `views`: the record's views shown, in order (equal for all examples of a call).

    `marker`: the pixel (x, y) of the one view shown at which an arrow points that is drawn into it; None: no arrow.
    `target` is JSON-able and holds all that scoring needs; `target["kind"]` names the question's family. `parts`: the
    question as pieces of text and, None each, the places of the `views` in their order, over all examples of a call;
    where no example has parts, the views stand before the first question. `system`: what the system says first.
    """

    question: str
    answer: str
    target: dict[str, Any]
    views: tuple[int, ...] = (0,)
    parts: tuple[str | None, ...] | None = None
    system: str = ""
    marker: tuple[int, int] | None = None


class Task(abc.ABC):
    """One task. `higher_is_better` tells how to read the headline; `headline` names it (for example "delta1").

    `draws`: whether labels drawn from depth maps and masks are of use to it.

    `target_fields`: what a target of each kind must hold, `{kind: {field: form}}`, a form being a name in
    `tasks.score.FORMS` or a tuple of the values allowed. `answer_forms`: what a parsed answer to each kind is.
    """

    name: str
    headline: str
    higher_is_better: bool
    draws: bool = False
    target_fields: dict[str, dict[str, Any]]
    answer_forms: dict[str, str]

    @abc.abstractmethod
    def examples(
        self, record: Record, rng: np.random.Generator, protocol: Protocol, vary: bool = False
    ) -> list[Example]:
        """Questions about a *unified* record (labels in pixels of the resized images); [] if it lacks the labels.

        `vary`: training draws the wording (and, where there are more questions than asked for, which ones) from the
        rng; evaluation keeps it off and always gets the published wording.
        """

    def frozen(self, record: Record, protocol: Protocol) -> list[Example]:
        """A question about every label of a unified record, in their order, in the published words.

        What a benchmark asks, whose labels were chosen once and for all: nothing is drawn, and none is left out,
        however hard its answer is to write.
        """
        return self.examples(record, np.random.default_rng(0), protocol)

    def alone(self, examples: Sequence[Example]) -> list[Example]:
        """Those of a record's examples that can be asked by themselves, right after the images that they show."""
        return list(examples)

    def parse(self, text: str, target: dict[str, Any] | None = None, rules: str = "vlm3") -> Any | None:
        """What the answer says by these `RULES`, or None if it cannot be read. `target` tells the question's family."""
        if rules not in RULES:
            raise ValueError(f"unknown rules {rules!r}; choose one of {RULES}")
        return self.read(text, target) if rules == "vlm3" else self.read_as_release(text, target)

    @abc.abstractmethod
    def read(self, text: str, target: dict[str, Any] | None) -> Any | None:
        """`parse` by our rules."""

    @abc.abstractmethod
    def read_as_release(self, text: str, target: dict[str, Any] | None) -> Any | None:
        """`parse` as the release's notebook and the paper read."""

    @abc.abstractmethod
    def item_scores(self, parsed: Sequence[Any | None], targets: Sequence[dict[str, Any]]) -> np.ndarray:
        """float64 [N], one score an item; the headline metric is exactly their `nanmean`.

        NaN marks an item that is no unit of the headline: pose scores a pair once, on the later of its two answers
        (Euler, direction). AUC is a mean over pairs too, since its cumulative histogram is linear in the pairs.
        """

    def item_errors(self, parsed: Sequence[Any | None], targets: Sequence[dict[str, Any]]) -> np.ndarray:
        """float64 [N], how far off each answer is, larger being worse: tells apart what scores alike, to order by.

        NaN where `item_scores` is; finite for answers that cannot be read.
        """
        scores = self.item_scores(parsed, targets)
        return -scores if self.higher_is_better else scores

    @abc.abstractmethod
    def metrics(self, parsed: Sequence[Any | None], targets: Sequence[dict[str, Any]]) -> dict[str, float]:
        """All metrics of formats: the headline first, then the others, always with `count` and `parse_failures`."""

    def score(
        self, predictions: Sequence[str], targets: Sequence[dict[str, Any]], rules: str = "vlm3"
    ) -> dict[str, float]:
        """The metrics of answers as text: `parse`, then `metrics`."""
        parsed = [self.parse(text, target, rules) for text, target in zip(predictions, targets, strict=True)]
        return self.metrics(parsed, targets)

    @abc.abstractmethod
    def constant_answers(self, targets: Sequence[dict[str, Any]]) -> list[Any]:
        """Parsed answers of the best constant reference (one an item): what a model that sees nothing can reach."""

    def extra_references(self, targets: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
        """Further references without a model, by name: parsed answers, one an item (most tasks have none)."""
        return {}


_THINK = re.compile(r"<think>.*?</think>", re.DOTALL)
_OPEN_THINK = re.compile(r"<think>.*?(?=<answer>|\Z)", re.DOTALL)


def drop_think(text: str) -> str:
    """The answer without its `<think> ... </think>` part; thinking that was cut off before its end is no answer."""
    thought, end, rest = text.rpartition("</think>")
    return _OPEN_THINK.sub("", _THINK.sub("", thought + end) + rest)
