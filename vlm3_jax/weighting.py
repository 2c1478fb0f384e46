"""How the components of a mixture are weighed: rules by name, tables in files, and groups of components.

A rule is text, as it stands in a config: "table" (the weight that each member has in the config), "uniform", "size" (as
many draws as a member has records), "size^0.5" (that to a power), "unimax:4" (even, but none is seen more often than so
many times; Chung et al. 2023, UniMax, arXiv 2304.09151, algorithm 1), or the path of a table (FILE.json).
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vlm3_jax import storage
from vlm3_jax.errors import UserError
from vlm3_jax.files import Fields, read_json, write_text

VERSION = 1
WORDS = '"table", "uniform", "size", "size^ALPHA" (as "size^0.5"), "unimax:EPOCHS" (as "unimax:4") or a file (.json)'

_POWER = re.compile(r"size\^(\d*\.?\d+)")
_CAP = re.compile(r"unimax:(\d*\.?\d+)")


@dataclasses.dataclass(frozen=True)
class Rule:
    """`kind`: "table", "uniform", "size" (to the power `number`), "unimax" (at most `number` epochs) or "file"."""

    kind: str
    number: float = 1.0
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> "Rule":
        """The rule of a config's text; ValueError if it is none."""
        if text in ("table", "uniform", "size"):
            return cls(text)
        if found := _POWER.fullmatch(text):
            return cls("size", float(found[1]))
        if (found := _CAP.fullmatch(text)) and float(found[1]) > 0:
            return cls("unimax", float(found[1]))
        if text.endswith(".json"):
            return cls("file", path=text)
        raise ValueError(f"weights are {text!r}; write {WORDS}")

    @property
    def needs_sizes(self) -> bool:
        """Whether it asks how many records there are."""
        return self.kind in ("size", "unimax")

    def weigh(self, names: Sequence[str], own: Sequence[float], sizes: Sequence[int], draws: float) -> list[float]:
        """The members' weights, relative to each other; `own`: those of the config. UserError, naming the file."""
        if self.kind == "file":
            return read_table(self.path).of(names)
        if self.kind == "unimax":
            return unimax(sizes, self.number, draws)
        return {
            "table": lambda: list(own),
            "uniform": lambda: [1.0] * len(names),
            "size": lambda: [float(size) ** self.number for size in sizes],
        }[self.kind]()


def unimax(sizes: Sequence[int], epochs: float, draws: float) -> list[float]:
    """Draws of each member: as even as can be with none above `epochs` passes, the smallest first.

    Where all of `draws` would be more than that many passes through all members, each gets as many passes as another.
    """
    given, left = [0.0] * len(sizes), float(draws)
    for before, member in enumerate(sorted(range(len(sizes)), key=lambda n: sizes[n])):
        given[member] = min(left / (len(sizes) - before), epochs * sizes[member])
        left -= given[member]
    return given


def resolve(
    components: Mapping[str, Any], groups: Mapping[str, Any], rule: str, sizes: Mapping[str, int], draws: float = 0
) -> dict[str, float]:
    """The weight of every component that is drawn (its own `weight` is above 0), in their order.

    `components` and `groups`: the tables of a config (`config.component_config`, `config.group_config`). `rule` weighs
    the groups and the components without a group, each group's own rule the components in it; a file weighs all
    components at once, whatever groups they are in. `sizes`: records by component; `draws`: how many the run makes.
    UserError names what a rule lacks.
    """
    drawn = {name: fields for name, fields in components.items() if fields.weight > 0}
    top = Rule.parse(rule)
    if top.kind == "file":
        return dict(zip(drawn, read_table(top.path).of(list(drawn), list(components)), strict=True))
    members: dict[tuple[str, bool], list[str]] = {}
    for name, fields in drawn.items():
        members.setdefault((fields.group, True) if fields.group else (name, False), []).append(name)
    own = [groups[name].weight if grouped else drawn[name].weight for name, grouped in members]
    _check_needs("data.weights", rule, members.values(), sizes, draws)
    counts = {unit: sum(sizes.get(name, 0) for name in names) for unit, names in members.items()}
    weights = top.weigh([name for name, _ in members], own, list(counts.values()), draws)
    total = sum(weights) or 1.0
    found = {}
    for ((unit, grouped), names), weight in zip(members.items(), weights, strict=True):
        if not grouped:
            found[unit] = weight
            continue
        inner, own = Rule.parse(groups[unit].weights), [drawn[name].weight for name in names]
        passes = draws * weight / total
        _check_needs(f"data.groups.{unit}.weights", groups[unit].weights, [names], sizes, passes)
        parts = inner.weigh(names, own, [sizes.get(name, 0) for name in names], passes)
        found |= {name: weight * part / sum(parts) for name, part in zip(names, parts, strict=True)}
    return {name: found[name] for name in drawn}


def _check_needs(field: str, rule: str, members, sizes: Mapping[str, int], draws: float) -> None:
    parsed = Rule.parse(rule)
    missing = [name for names in members for name in names if not sizes.get(name)]
    if parsed.needs_sizes and missing:
        raise UserError(
            f"{field} = {rule!r} asks how many records {missing[0]!r} has, and its data are not opened here; set "
            f"data.components.{missing[0]}.records"
        )
    if parsed.kind == "unimax" and not draws > 0:
        raise UserError(f"{field} = {rule!r} asks how long the run is; set train.samples")


@dataclasses.dataclass(frozen=True)
class Table:
    """Weights in a file: `weights` by name; `records` and typical `images` (width, height, focal length in px) too.

    `about`: what it is and where it is from. `evidence`: what the weights were found by, as JSON.
    """

    weights: dict[str, float]
    about: str = ""
    records: dict[str, int] = dataclasses.field(default_factory=dict)
    images: dict[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    evidence: dict = dataclasses.field(default_factory=dict)
    name: str = ""

    def of(self, names: Sequence[str], known: Sequence[str] | None = None) -> list[float]:
        """The weights of these names; UserError if one is missing, or the table has one that is not `known`."""
        missing = [name for name in names if name not in self.weights]
        if missing:
            raise UserError(f"{self.name}: weights has no {missing[0]!r}; give every component a weight (0: not drawn)")
        unknown = [name for name in self.weights if known is not None and name not in known]
        if unknown:
            raise UserError(f"{self.name}: weights names {unknown[0]!r}, which is no component of this mixture")
        weights = [self.weights[name] for name in names]
        if not any(weights):
            raise UserError(f"{self.name}: all weights of {', '.join(names)} are 0")
        return weights


def read_table(path) -> Table:
    """The table in a file; UserError names file and field."""
    path = storage.path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such table of weights")
    fields = Fields(read_json(path), str(path))
    fields.require("version", VERSION, None)
    weights = fields.child("weights")
    if not weights.tree:
        raise UserError(f"{path}: weights is empty")
    found = {name: weights.number(name) for name in weights.tree}
    for name, weight in found.items():
        if weight < 0:
            raise UserError(f"{path}: weights: {name} is {weight:g}, but must be at least 0")
    records, images = fields.child("records", {}), fields.child("images", {})
    return Table(
        weights={name: float(weight) for name, weight in found.items()},
        about=fields.text("about", ""),
        records={name: records.integer(name, 0) for name in records.tree},
        images={name: images.numbers(name, 3, above=0) for name in images.tree},
        evidence=fields.child("evidence", {}).tree,
        name=str(path),
    )


def write_table(path, table: Table) -> None:
    """Writes a table of weights, whole or not at all. ValueError for a weight that is no number."""
    if not all(math.isfinite(weight) and weight >= 0 for weight in table.weights.values()):
        raise ValueError(f"weights must be finite and at least 0, got {table.weights}")
    tree = {"version": VERSION, "about": table.about, "weights": table.weights}
    tree |= {name: value for name in ("records", "images", "evidence") if (value := getattr(table, name))}
    write_text(path, json.dumps(tree, indent=2) + "\n")
