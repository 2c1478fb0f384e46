"""The quarantine: what was set aside, why, and when there is too much of it."""

import json
import pathlib
from collections.abc import Iterable

from vlm3_jax.data.component import Component
from vlm3_jax.data.samples import Bad
from vlm3_jax.errors import UserError

# A share of fewer samples says little.
MIN_SAMPLES = 100


class Quarantine:
    """Counts samples that were set aside and appends each as a line of JSON to `path` (None: counts only).

    `check` raises a UserError when they are more than `max_bad_fraction` of all samples.
    """

    def __init__(self, path: pathlib.Path | str | None = None, max_bad_fraction: float = 0.01):
        self.path = None if path is None else pathlib.Path(path)
        self.max_bad_fraction = max_bad_fraction
        self.samples = 0
        self.bad = 0
        self._last: Bad | None = None

    def add(self, samples: int, bad: Iterable[Bad]) -> None:
        """`samples`: how many were looked at, the bad ones included."""
        bad = list(bad)
        self.samples += samples
        self.bad += len(bad)
        if not bad:
            return
        self._last = bad[-1]
        self.write(bad)

    def write(self, bad: Iterable[Bad]) -> None:
        """Writes without counting: lines that were set aside, and judged, when a source was opened."""
        bad = list(bad)
        if self.path is not None and bad:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(item.row()) + "\n" for item in bad)

    def check(self, final: bool = False, bad: int | None = None) -> None:
        """UserError above the limit; before `final` only once enough samples were seen to judge.

        `bad`: what all processes have set aside of the same samples (None: this one is alone).
        """
        bad = self.bad if bad is None else bad
        if (final or self.samples >= MIN_SAMPLES) and bad > self.max_bad_fraction * self.samples:
            where = f"; all are in {self.path}" if self.path else ""
            raise UserError(
                f"{bad} of {self.samples} samples were unusable, above data.max_bad_fraction = "
                f"{self.max_bad_fraction:g} (the last, {self._last.id}: {self._last.reason}){where}"
            )


def left_out(component: Component, record: str) -> list[Bad]:
    """The labels that the component's source has left out of a record (its id); each time they are asked for once."""
    return [
        Bad(f"{component.name}/{told.index}", component.name, told.file, told.reason, record=record, label=told.label)
        for told in component.source.removed.take(record)
    ]


def left_out_untold(component: Component) -> list[Bad]:
    """How many labels of the component are in no line of their own."""
    rest = component.source.removed.rest()
    return [Bad(component.name, component.name, str(component.source.path), "unusable", label=rest)] if rest else []


def bad_lines(component: Component) -> list[Bad]:
    """The lines that the component's source set aside when it was opened; their id is `FILE:LINE`."""
    return [Bad(f"{line.file}:{line.line}", component.name, line.file, line.reason) for line in component.source.bad]
