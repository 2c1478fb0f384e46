"""Angles in answers, in degrees."""

import math
import re

from vlm3_jax.tasks import numbers
from vlm3_jax.tasks.measures import Units, quantities, quantity

_RADIAN = math.degrees(1)
ANGLES = Units(
    {"degrees": (1.0, r"degrees?|degs?\.?"), "radians": (_RADIAN, r"radians?|rads?")},
    signs={"degrees": (1.0, "°"), "minutes": (1 / 60, "'"), "seconds": (1 / 3600, '"')},
    chains=(("degrees", "minutes", "seconds"),),
)
_NAMES = ("yaw", "pitch", "roll")
_BOUND = (
    r"[\"'*]?\s?(?:[(\[][^()\[\]\d]{0,40}[)\]]\s?)?"
    r"(?:(?:angle|rotation|=|:|~|is|of|by|about|around|approximately)\s?)*$"
)
_NAMED = [re.compile(rf"\b{name}{_BOUND}", re.IGNORECASE) for name in _NAMES]
_HEADER = re.compile(r"yaw\W{1,4}pitch\W{1,4}(?:and )?roll\b", re.IGNORECASE)


def degrees(text: str, tagged: bool = False) -> float | None:
    """The angle that an answer gives; a bare number is degrees."""
    found = quantity(text, ANGLES, tagged)
    return found and found.middle


def euler(text: str, tagged: bool = False) -> tuple[float, ...] | None:
    """(yaw, pitch, roll): the number after each name, else a list of three in that order.

    A number without a unit has that of the others; where degrees and radians both occur it is unread.
    """
    text = numbers.in_digits(text, ANGLES.word)
    default = _default_size(text)
    found: dict[str, float | None] = {}
    for angle in quantities(text, ANGLES):
        before = text[: angle.start][-80:]
        name = next((name for name, pattern in zip(_NAMES, _NAMED) if pattern.search(before)), None)
        if name and name not in found:
            found[name] = angle.middle if angle.unit else _times(angle.middle, default)
            if not angle.unit and re.match(r"\s?\*?\s?(?:π|pi\b)", text[angle.end :]):
                found[name] = None
    if len(found) == len(_NAMES):
        values = tuple(found[name] for name in _NAMES)
        return None if None in values else values
    if found and not _HEADER.search(text):
        return None
    for listed in numbers.lists(text, 3):
        marks = [ANGLES.after(mark, 0) for mark in listed.marks]
        sizes = [ANGLES.sizes[mark[0]] if mark else default for mark in marks]
        values = tuple(_times(v, size) for v, size in zip(listed.values, sizes))
        return None if None in values else values
    return None


def _times(number: float | None, size: float | None) -> float | None:
    return None if number is None or size is None else number * size


def _default_size(text: str) -> float | None:
    """The unit of numbers that name none: the one that the text writes, degrees if it writes none, None if both."""
    radians = re.search(r"\bradians?\b|(?<![A-Za-z])rads?\b", text, re.IGNORECASE)
    degrees = re.search(r"°|\bdegrees?\b|(?<![A-Za-z])deg\b", text, re.IGNORECASE)
    return (None if degrees else _RADIAN) if radians else 1.0
