"""Who answers what: the questions cut into units of work whose composition does not depend on who does them.

A unit's records share the calls to the device, and what shares a call decides about padding and with it about rounding.
So units are made of all questions, the same by every process, and only then split: 1, 2 or 3 processes, or one that is
killed and started again, give the same answers to the byte.
"""

import collections
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np

from vlm3_jax.errors import UserError
from vlm3_jax.evaluate.items import Brief


@dataclasses.dataclass(frozen=True)
class Unit:
    """Records (their numbers among those asked about) that are answered together in one variant.

    `variant`: its number among those asked, `name` what it is called. `donors`: the records whose pixels are shown; the
    records themselves, unless they are shuffled.
    """

    variant: int
    name: str
    records: tuple[int, ...]
    donors: tuple[int, ...]


def make_units(briefs: Sequence[Brief], variants: Sequence[str], records: int, seed: int = 0) -> list[Unit]:
    """Units of at most so many `records`, images of similar size together; variant after variant.

    `seed` draws the donors of "shuffled". UserError if a component has too few records for that.
    """
    order = sorted(range(len(briefs)), key=lambda number: briefs[number].patches)
    units = []
    for variant, name in enumerate(variants):
        donors = shuffled(briefs, seed) if name == "shuffled" else list(range(len(briefs)))
        for first in range(0, len(order), records):
            part = order[first : first + records]
            units.append(Unit(variant, name, tuple(part), tuple(donors[number] for number in part)))
    return units


def shuffled(briefs: Sequence[Brief], seed: int) -> list[int]:
    """For each record another of its component with as many images, all in one cycle, so that none gets its own."""
    rng = np.random.default_rng(seed)
    pools = collections.defaultdict(list)
    for number, brief in enumerate(briefs):
        pools[brief.component, brief.images].append(number)
    donors = list(range(len(briefs)))
    for (component, _), pool in pools.items():
        if len(pool) < 2:
            raise UserError(
                f"component {component}: a single record cannot be shuffled; evaluate more of them or leave the "
                "variant shuffled out"
            )
        order = rng.permutation(pool).tolist()
        for receiving, giving in zip(order, order[-1:] + order[:-1], strict=True):
            donors[receiving] = giving
    return donors


def digest(briefs: Sequence[Brief], units: Sequence[Unit], settings: Mapping) -> str:
    """What two runs must share for the answers of one to be those of the other: 16 hexadecimal digits.

    `settings`: of the model and of how it is asked, as JSON.
    """
    whole = [settings, [dataclasses.astuple(b) for b in briefs], [dataclasses.astuple(u) for u in units]]
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:16]
