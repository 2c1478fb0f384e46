"""From the answers of all processes to predictions.jsonl: each once, in the order of the plan, the same to the byte."""

import collections
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from vlm3_jax.data.quarantine import Quarantine
from vlm3_jax.data.samples import Bad
from vlm3_jax.errors import Again
from vlm3_jax.evaluate.items import Brief
from vlm3_jax.evaluate.parts import read_parts
from vlm3_jax.evaluate.predictions import BESIDES, FIELDS, FILE, OPTIONAL
from vlm3_jax.files import write_text


def merge(
    folder: pathlib.Path,
    out_dir: pathlib.Path,
    briefs: Sequence[Brief],
    variants: Sequence[str],
    quarantine: Quarantine,
) -> None:
    """Writes `out_dir`/predictions.jsonl from the rows in `folder`, those of every variant in the order of the records.

    A record whose images could not be read in one variant is left out of all, since they are compared with each other;
    it goes to `quarantine`. UserError if these are too many; Again if answers are missing.
    """
    found: dict[tuple[int, int, int], dict[str, Any]] = {}
    for row in read_parts(folder):
        place = tuple(row["place"])
        if place not in found or row["turn"] > found[place]["turn"]:
            found[place] = row
    wanted = sum(brief.questions for brief in briefs) * len(variants)
    if len(found) < wanted:
        raise Again(f"{folder}: {wanted - len(found)} of {wanted} answers are missing; run the same command again")
    bad = {place[1]: row for place, row in found.items() if row.get("bad")}
    _set_aside(bad, briefs, quarantine)
    order = sorted(place for place in found if place[1] not in bad)
    lines = (json.dumps(_told(found[place]), ensure_ascii=False) for place in order)
    write_text(out_dir / FILE, "".join(line + "\n" for line in lines), errors="backslashreplace")


def _told(row: dict[str, Any]) -> dict[str, Any]:
    """What of an answer's row is for those who read predictions."""
    return {name: row[name] for name in (*FIELDS, *OPTIONAL, *BESIDES) if name in row}


def _set_aside(bad: dict[int, dict[str, Any]], briefs: Sequence[Brief], quarantine: Quarantine) -> None:
    """Judges the bad records of every component against all of that component."""
    asked = collections.Counter(brief.component for brief in briefs)
    rows = collections.defaultdict(list)
    for number, row in sorted(bad.items()):
        brief = briefs[number]
        rows[brief.component].append(Bad(f"{brief.component}/{brief.record}", brief.component, "", row["bad"]))
    for component, items in rows.items():
        one = Quarantine(quarantine.path, quarantine.max_bad_fraction)
        one.add(asked[component], items)
        one.check(final=True)
