"""How object questions and answers are worded. Every region is "bounding box region (x1, y1, x2, y2)"."""

from vlm3_jax.tasks.lengths import METRES_PER_UNIT
from vlm3_jax.tasks.protocol import Protocol

# Group -> its two words, each the other's opposite.
GROUPS = {
    "below_above": ("below", "above"),
    "left_right": ("left", "right"),
    "big_small": ("big", "small"),
    "tall_short": ("tall", "short"),
    "wide_thin": ("wide", "thin"),
    "behind_front": ("behind", "front"),
}
OPPOSITE = {a: b for pair in GROUPS.values() for a, b in (pair, pair[::-1])}

# What A is with respect to B, and what the one of the two is that a choice asks for.
_RELATION = {
    "below": "below",
    "above": "above",
    "left": "to the left of",
    "right": "to the right of",
    "big": "bigger than",
    "small": "smaller than",
    "tall": "taller than",
    "short": "shorter than",
    "wide": "wider than",
    "thin": "thinner than",
    "behind": "behind",
    "front": "in front of",
}
_COMPARATIVE = {
    "below": "lower",
    "above": "higher",
    "left": "further to the left",
    "right": "further to the right",
    "big": "bigger",
    "small": "smaller",
    "tall": "taller",
    "short": "shorter",
    "wide": "wider",
    "thin": "thinner",
    "behind": "further back",
    "front": "closer to the viewer",
}
# The first wording of each is asked in evaluation; training draws one.
_PREDICATES = (
    "Is {a} {relation} {b}?",
    "Can you tell whether {a} is {relation} {b}?",
    "Would you say {a} is {relation} {b}?",
)
_CHOICES = (
    "Which is {comparative}, {a} or {b}?",
    "Between {a} and {b}, which one is {comparative}?",
    "Of {a} and {b}, which is {comparative}?",
)
_QUANTITIES = {
    "direct": ("How far apart are {a} and {b}?", "What is the distance between {a} and {b}?"),
    "horizontal": (
        "What is the horizontal distance between {a} and {b}?",
        "How far apart are {a} and {b} horizontally?",
    ),
    "vertical": ("What is the vertical distance between {a} and {b}?", "How far apart are {a} and {b} vertically?"),
    "width": ("How wide is {a}?", "What is the width of {a}?"),
    "height": ("How tall is {a}?", "What is the height of {a}?"),
}
_QUANTITY_ANSWERS = {
    "direct": "The distance between {a} and {b} is {value}.",
    "horizontal": "The horizontal distance between {a} and {b} is {value}.",
    "vertical": "The vertical distance between {a} and {b} is {value}.",
    "width": "The width of {a} is {value}.",
    "height": "The height of {a} is {value}.",
}
_DIRECTIONS = (
    "Standing at {a} and facing away from the viewer, at which clock direction is {b}?",
    "Seen from {a}, with 12 o'clock pointing away from the viewer, at which hour is {b}?",
)


def region(box) -> str:
    """A box of normalised integers as the published prompts write it."""
    return f"bounding box region ({box[0]}, {box[1]}, {box[2]}, {box[3]})"


def predicate(word: str, holds: str, truth: bool, boxes, rng, protocol: Protocol, vary: bool) -> tuple[str, str]:
    """Is A `word` B? `holds` is the word of the group that is true."""
    if protocol.wording == "short":
        return _short(word, boxes, protocol.coord_range), "yes" if truth else "no"
    a, b = map(region, boxes)
    question = _draw(_PREDICATES, rng, vary).format(a=a, b=b, relation=_RELATION[word])
    return question, f"{'Yes' if truth else 'No'}, {a} is {_RELATION[holds]} {b}."


def choice(word: str, index: int, boxes, rng, vary: bool) -> tuple[str, str]:
    """Which of A and B is more `word`? `index` is the right one."""
    a, b = map(region, boxes)
    question = _draw(_CHOICES, rng, vary).format(a=a, b=b, comparative=_COMPARATIVE[word])
    return question, f"The one that is {_COMPARATIVE[word]} is {(a, b)[index]}."


def quantity(family: str, truth_m: float, boxes, rng, protocol: Protocol, vary: bool) -> tuple[str, str]:
    """A distance or size; the answer's unit is drawn by magnitude, except in the short wording (metres)."""
    if protocol.wording == "short":
        return _short(family, boxes, protocol.coord_range), f"{truth_m:.1f}"
    names = dict(zip("ab", map(region, boxes)))
    question = _draw(_QUANTITIES[family], rng, vary).format(**names)
    return question, _QUANTITY_ANSWERS[family].format(**names, value=with_unit(truth_m, rng))


def direction(hour: int, boxes, rng, protocol: Protocol, vary: bool) -> tuple[str, str]:
    """Where B lies for someone at A who looks the way the camera looks."""
    if protocol.wording == "short":
        return _short("clock", boxes, protocol.coord_range), str(hour)
    a, b = map(region, boxes)
    return _draw(_DIRECTIONS, rng, vary).format(a=a, b=b), f"Seen from {a}, {b} is at {hour} o'clock."


def with_unit(value_m: float, rng) -> str:
    """Below 1 m centimetres (20 %) or inches, below 3 m metres or feet, else metres (70 %) or feet; two decimals."""
    metric_share, metric, imperial = (
        (0.2, "centimeters", "inches")
        if value_m < 1
        else (0.5, "meters", "feet")
        if value_m < 3
        else (0.7, "meters", "feet")
    )
    unit = metric if rng.random() < metric_share else imperial
    return f"{value_m / METRES_PER_UNIT[unit]:.2f} {unit}"


def _short(word: str, boxes, coord_range: int) -> str:
    digits = len(str(coord_range - 1))
    return f"{word} " + ";".join(",".join(f"{v:0{digits}d}" for v in box) for box in boxes)


def _draw(templates, rng, vary: bool) -> str:
    return templates[rng.integers(len(templates))] if vary else templates[0]
