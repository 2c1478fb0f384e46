"""How the release's notebook and the paper read answers: kept as they are, so that published numbers can be had again.

`vlm3 score --rules=release`. They know no thousands separators, decimal commas, ranges or units but their own; the
readers of the default rules are `lengths`, `angles` and `numbers` (docs/conventions.md).
"""

import re

from vlm3_jax.tasks.base import drop_think

_NUMBER = r"(?<![\w.])[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
_METERS = r"(?:met(?:er|re)s?|m)\b"
_DEGREES = r"(?:degrees?\b|deg\b|°)"
_FIRST = re.compile(_NUMBER)
_BARE = re.compile(rf"\s*({_NUMBER})\s*\.?\s*")
_ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL)
_EULER = [re.compile(rf"{name}\s*[=:]?\s*({_NUMBER})", re.IGNORECASE) for name in ("yaw", "pitch", "roll")]

_UNITS = {
    "meters": (1.0, r"met(?:er|re)s?|m"),
    "centimeters": (0.01, r"centimet(?:er|re)s?|cms?"),
    "feet": (0.3048, r"feet|foot|ft"),
    "inches": (0.0254, r"inch(?:es)?|in(?!\s+(?:the|a|an|front|this)\b)"),
}
_QUANTITY = re.compile(
    rf"({_NUMBER})[\s-]*(?:{'|'.join(f'(?P<{name}>{pattern})' for name, (_, pattern) in _UNITS.items())})\b",
    re.IGNORECASE,
)
_AND_INCHES = re.compile(rf"\s*(?:,|and)?\s*({_NUMBER})\s*(?:inch(?:es)?|in)\b", re.IGNORECASE)
_HOURS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_HOUR = re.compile(rf"\b(\d{{1,2}}|{'|'.join(_HOURS)})(?::00)?[\s-]*o\s*['’`]?\s*clock", re.IGNORECASE)


def prepared(text: str) -> str:
    """The text without its thinking, typographic minus signs as hyphens."""
    return drop_think(text.replace("\u2212", "-").replace("\u2013", "-"))


def depth(text: str) -> float | None:
    """Metres: the number inside `<answer>`, else the first number before "meters" or "m", else a bare number."""
    text = prepared(text)
    answer = _ANSWER.search(text)
    first = _FIRST.search(answer[1]) if answer else None
    value = _finite(first[0]) if first else None
    return _before(text, _METERS) if value is None else value


def pair(text: str) -> tuple[float, ...] | None:
    """The first pair of numbers after the thinking; brackets are optional."""
    return _first_tuple(prepared(text), 2)


def angle(text: str) -> float | None:
    """The first number before "degrees", "deg" or "°", else a bare number."""
    return _before(prepared(text), _DEGREES)


def euler(text: str) -> tuple[float, ...] | None:
    """The numbers after "yaw", "pitch" and "roll"; without the names the first three numbers."""
    text = prepared(text)
    matches = [pattern.search(text) for pattern in _EULER]
    if all(matches):
        values = tuple(_finite(m[1]) for m in matches)
        return None if None in values else values
    return None if any(matches) else _first_tuple(text, 3)


def direction(text: str) -> tuple[float, ...] | None:
    """The first three numbers, unless all are zero."""
    vector = _first_tuple(prepared(text), 3)
    return vector if vector and any(vector) else None


def distance(text: str) -> float | None:
    """The first number before "meters" or "m", else a bare number."""
    return _before(prepared(text), _METERS)


def length(text: str) -> float | None:
    """The first number with a unit of length, in metres ("5 feet 3 inches" is one); a bare number is metres."""
    text = prepared(text)
    match = _QUANTITY.search(text)
    if not match:
        return _bare(text)
    value = _finite(match[1])
    if value is None:
        return None
    value *= _UNITS[match.lastgroup][0]
    if match.lastgroup == "feet" and (inches := _AND_INCHES.match(text, match.end())):
        value += (_finite(inches[1]) or 0) * _UNITS["inches"][0]
    return value


def hour(text: str) -> int | None:
    """The first "N o'clock" (digits or a word), or a bare number, from 1 to 12."""
    text = prepared(text)
    match = _HOUR.search(text)
    if match:
        word = match[1].lower()
        value = _HOURS.index(word) + 1 if word in _HOURS else int(word)
    else:
        value = _bare(text)
    return int(value) if value in range(1, 13) else None


def _finite(text: str) -> float | None:
    value = float(text)
    return value if abs(value) < 1e9 else None


def _before(text: str, unit: str) -> float | None:
    match = re.search(rf"({_NUMBER})\s*{unit}", text, re.IGNORECASE)
    value = _finite(match[1]) if match else None
    return _bare(text) if value is None else value


def _bare(text: str) -> float | None:
    match = _BARE.fullmatch(text)
    return _finite(match[1]) if match else None


def _first_tuple(text: str, length: int) -> tuple[float, ...] | None:
    match = re.search(r"\s*,\s*".join([f"({_NUMBER})"] * length), text)
    if not match:
        return None
    values = tuple(_finite(v) for v in match.groups())
    return None if None in values else values
