"""Lengths in answers, in metres: every unit that people and models write."""

import re

from vlm3_jax.tasks.measures import Units, quantity

# "in" is a unit only where a length can end; "2 in the image" is none.
_INCH = (
    r"in(?=\s?(?:$|[.,;:!?)\]\"]|\d|-|x\b|(?:wide|tall|high|long|deep|thick|away|apart|across|from|by|to|or|and)\b))"
)
_WORDS = {
    "kilometers": (1000.0, r"kilomet(?:er|re)s?|kms?"),
    "meters": (1.0, r"met(?:er|re)s?|mtrs?|m"),
    "decimeters": (0.1, r"decimet(?:er|re)s?|dm"),
    "centimeters": (0.01, r"centimet(?:er|re)s?|cms?"),
    "millimeters": (0.001, r"millimet(?:er|re)s?|mms?"),
    "miles": (1609.344, r"miles?|mi"),
    "yards": (0.9144, r"yards?|yds?"),
    "feet": (0.3048, r"feet|foot|ft\b\.?"),
    "inches": (0.0254, rf"inch(?:es)?|{_INCH}"),
}
METRES_PER_UNIT = {name: size for name, (size, _) in _WORDS.items()}
LENGTHS = Units(
    _WORDS,
    signs={"feet": (0.3048, r"'(?:(?!\d)|(?=\d+(?:[./ ]\d+)*\s?(?:\"|in|[),;.!?]|$)))"), "inches": (0.0254, r'"')},
    chains=(
        ("kilometers", "meters", "decimeters", "centimeters", "millimeters"),
        ("miles", "yards", "feet", "inches"),
    ),
)
# "2m30cm", "5ft3in"
_GLUED = re.compile(r"(?<=\d)(km|m|cm|yd|ft)(?=\d[\d.,]*\s?(?:m|cm|mm|ft|in)(?![A-Za-z]))", re.IGNORECASE)


def metres(text: str, tagged: bool = False) -> float | None:
    """The length that an answer gives, in metres; a bare number is metres (`measures.quantity`)."""
    found = quantity(_GLUED.sub(r"\1 ", text), LENGTHS, tagged)
    # 35 * 0.01 is not 0.35.
    return None if found is None or found.middle is None else round(found.middle, 12)
