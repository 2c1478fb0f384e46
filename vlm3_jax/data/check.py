"""`vlm3 data check` as plain functions: walks through components, held-out ones too, and tells what is off.

The checks themselves are in `data/checks/`; each sees the stored records, before anything is resized or mirrored.
"""

import collections
import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any

from vlm3_jax.data.checks.base import Check, Facts
from vlm3_jax.data.checks.leaks import Leaks
from vlm3_jax.data.checks.lengths import Cameras, Lengths
from vlm3_jax.data.checks.pairs import Pairs
from vlm3_jax.data.checks.planes import DepthKind
from vlm3_jax.data.checks.poses import Poses
from vlm3_jax.data.component import Component
from vlm3_jax.data.progress import Progress
from vlm3_jax.data.quarantine import bad_lines, left_out, left_out_untold
from vlm3_jax.data.samples import Bad, PassedOver
from vlm3_jax.errors import BadRecord
from vlm3_jax.records import Record

CHECKS: dict[str, Callable[[], Check]] = {
    "lengths": Lengths,
    "cameras": Cameras,
    "depth_kind": DepthKind,
    "poses": Poses,
    "pairs": Pairs,
}
# So many records of a component are kept for a picture.
PICTURED = 4


@dataclasses.dataclass(frozen=True, eq=False)
class ComponentReport:
    """What walking through a component found, by check.

    `left_out`: labels that are unusable, of records that are not; `pictured`: a few of its records, evenly spaced.
    """

    name: str
    counts: collections.Counter
    facts: dict[str, Facts]
    bad: list[Bad]
    left_out: list[Bad]
    pictured: tuple[Record, ...]

    def lines(self) -> list[str]:
        """Its counts, and what each check says."""
        c = self.counts
        looked = "" if c["looked_at"] == c["records"] else f" ({c['looked_at']:,} looked at)"
        lines = [
            f"{self.name}: {c['records']} records{looked}, {c['passed_over']} passed over, {c['bad']} bad, "
            f"{c['points_removed']} labels removed"
        ]
        for facts in self.facts.values():
            lines += [f"  {line}" for line in facts.lines]
        lines += [f"  warning: {text}" for facts in self.facts.values() for text in facts.warnings]
        return lines + [f"  FAULT: {text}" for facts in self.facts.values() for text in facts.faults]


@dataclasses.dataclass(frozen=True, eq=False)
class CheckReport:
    """Of all components; `leaks` between training and held-out ones."""

    components: list[ComponentReport]
    leaks: Facts
    max_bad_fraction: float

    @property
    def bad(self) -> list[Bad]:
        """All records that cannot be used."""
        return [item for part in self.components for item in part.bad]

    @property
    def left_out(self) -> list[Bad]:
        """All labels that cannot be used, of records that can."""
        return [item for part in self.components for item in part.left_out]

    @property
    def counts(self) -> dict[str, collections.Counter]:
        """By component."""
        return {part.name: part.counts for part in self.components}

    def faults(self) -> list[str]:
        """All that is off, each with its component."""
        found = [f"{part.name}: {text}" for part in self.components for f in part.facts.values() for text in f.faults]
        return [*found, *self.leaks.faults, *self._too_many()]

    def _too_many(self) -> list[str]:
        """A fault if more records are unusable than a run would take."""
        looked_at = sum(part.counts["looked_at"] for part in self.components)
        if len(self.bad) <= self.max_bad_fraction * looked_at:
            return []
        last = self.bad[-1]
        return [
            f"{len(self.bad)} of {looked_at} samples were unusable, above data.max_bad_fraction = "
            f"{self.max_bad_fraction:g} (the last, {last.id}: {last.reason})"
        ]

    def text(self, most: int = 20) -> str:
        """What was found of each component, the first `most` reasons of bad records, and a verdict."""
        lines = [line for part in self.components for line in part.lines()]
        for what, items in (("", self.bad), ("left out ", self.left_out)):
            lines += [f"  {item.id}: {what}{item.label and f'{item.label}: '}{item.reason}" for item in items[:most]]
            lines += [f"  and {len(items) - most} more"] if len(items) > most else []
        lines += [*self.leaks.lines, *(f"  warning: {text}" for text in self.leaks.warnings)]
        lines += [f"  FAULT: {text}" for text in (*self.leaks.faults, *self._too_many())]
        count = len(self.faults())
        return "\n".join([*lines, f"{count} fault{'s' * (count != 1)} found" if count else "nothing is off"])

    def to_json(self) -> dict[str, Any]:
        """All of it as plain numbers, text and lists."""
        return {
            "components": {
                part.name: {
                    **part.counts,
                    **{name: facts.values for name, facts in part.facts.items()},
                    "warnings": [text for facts in part.facts.values() for text in facts.warnings],
                    "faults": [text for facts in part.facts.values() for text in facts.faults],
                }
                for part in self.components
            },
            "leaks": self.leaks.values,
            "bad": [item.row() for item in self.bad],
            "left_out": [item.row() for item in self.left_out],
            "faults": self.faults(),
        }


def check(
    components: Sequence[Component],
    held_out: Collection[str] = (),
    records: int | None = None,
    max_bad_fraction: float = 0.01,
    progress: bool = False,
) -> CheckReport:
    """Looks at `records` records of each component (None: at all), their samples and their images.

    They are neighbours two by two, evenly spaced: some mistakes show only beside the next record.

    `held_out`: the names of the components that are no training data. Build components with `max_bad_fraction = 1`, so
    that all lines are listed and judged at the end.
    """
    chosen = [_couples(len(component), records) for component in components]
    leaks, reports = Leaks(), []
    with Progress("checking", sum(map(len, chosen)), progress) as bar:
        for component, indices in zip(components, chosen, strict=True):
            reports.append(_Walk(component, component.name in held_out, leaks).through(indices, bar))
    return CheckReport(reports, leaks.facts(), max_bad_fraction)


def _couples(count: int, most: int | None) -> Sequence[int]:
    """At most so many of `count` numbers, rising: k, k + 1, then two farther on."""
    if most is None or most >= count:
        return range(count)
    return [(k - k % 2) * count // most + k % 2 for k in range(most)]


class _Walk:
    """Goes through one component."""

    def __init__(self, component: Component, held_out: bool, leaks: Leaks):
        self._component, self._held_out, self._leaks = component, held_out, leaks
        self._checks = {name: make() for name, make in CHECKS.items()}
        self._counts = collections.Counter(records=len(component), passed_over=0)
        self._bad = bad_lines(component)
        self._left_out: list[Bad] = []

    def through(self, indices: Sequence[int], bar: Progress) -> ComponentReport:
        """Looks at these records."""
        wanted = {indices[k * len(indices) // PICTURED] for k in range(PICTURED)}
        pictured = []
        for index in indices:
            record = self._look(index)
            pictured += [record] if record is not None and index in wanted else []
            bar.advance()
        self._counts["looked_at"], self._counts["bad"] = len(indices), len(self._bad)
        self._counts["points_removed"] = self._component.source.removed.count
        left_out = [*self._left_out, *left_out_untold(self._component)]
        facts = {name: check.facts() for name, check in self._checks.items()}
        return ComponentReport(self._component.name, self._counts, facts, self._bad, left_out, tuple(pictured))

    def _look(self, index: int) -> Record | None:
        """The record if it can be used."""
        component, id = self._component, f"{self._component.name}/{index}"
        sample = component.sample(index, (0, index), id)
        if isinstance(sample, Bad):
            self._bad.append(sample)
            return None
        part = str(component.source.path)
        try:
            record = component.source[index]
            # Set aside when the file was opened: it is among the bad lines.
            if record is None:
                return None
            self._counts["passed_over"] += isinstance(sample, PassedOver)
            self._left_out += left_out(component, record.id)
            for check in self._checks.values():
                check.add(index, record)
            self._leaks.add_scene(component.name.removeprefix("held-out "), self._held_out, record)
            for view in record.views:
                part = view.image.name
                pixels = view.image.load()
                self._leaks.add_image(self._held_out, f"{id} ({view.image.name})", view.image, pixels)
        except BadRecord as error:
            self._bad.append(Bad(id, component.name, part, str(error), error))
            return None
        return record
