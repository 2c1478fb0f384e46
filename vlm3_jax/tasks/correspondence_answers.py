"""Which pair of numbers in an answer is its result: the query that it repeats is not."""

import re

from vlm3_jax.tasks import numbers

_NOUN = r"(?:image|view|picture|photo|frame|one)"
_IMAGE_1 = rf"(?:the )?(?:(?:(?:first|1st|left|reference|source) {_NOUN}|(?:image|view) (?:1|one|a))\b|first\b)"
_IMAGE_2 = rf"(?:the )?(?:(?:(?:second|2nd|right|other|target) {_NOUN}|(?:image|view) (?:2|two|b))\b|second\b)"
_POINT = (
    r"(?:(?:the|a|pixel|point|coordinates?|position|location|at|is|are|approximately|about|around|=|:|~)\s?)*[(\[]?\s?$"
)
# What may stand before or after a pair in the first image, and before one that is the result.
_OF_IMAGE_1 = re.compile(rf"\s?[)\]]?,?\s?(?:\(?(?:in|of|from|on|within) )?{_IMAGE_1}", re.IGNORECASE)
_IMAGE_1_HAS = re.compile(rf"\b(?:{_IMAGE_1}|query|asked)(?:'s)?\s?[,:]?\s?{_POINT}", re.IGNORECASE)
_RANGE = re.compile(
    r"\b(?:range|between|within|normali[sz]ed)(?: (?:to|of|in|the|range|from|between))*\s?[(\[]?\s?$", re.I
)
_RESULT = re.compile(
    rf"(?:[-=]>|\b(?:correspond|match|map|mov|appear|locat|l[iy]|found|seen|visible)\w*(?: (?:to|with|at|in|by|as))?"
    rf"|\b{_IMAGE_2}(?:'s)?)\s?[,:]?\s?(?:(?:in|of) {_IMAGE_2}\s?)?{_POINT}",
    re.IGNORECASE,
)
_IS = re.compile(r"(?:\b(?:is|are|at)\b|[=:])(?: (?:at|approximately|about|around|~))*\s?[(\[]?\s?$", re.IGNORECASE)
_QUERY = re.compile(r"\b(?:for|of|from)(?: (?:the|pixel|point))*\s?[(\[]?\s?$", re.IGNORECASE)


def second_image_pair(text: str, query: tuple[float, ...] | None = None) -> tuple[float, ...] | None:
    """The pair that the text gives for the second image, or None.

    A pair said to be in the first image is the query, and so is one equal to `query` beside another. Of the others the
    first one told as the result counts ("corresponds to", "->", "in the second image", else "is"), else the first.
    """
    pairs, told_until = [], 0
    for pair in sorted(numbers.lists(text, 2), key=lambda pair: pair.start):
        before, after = text[max(told_until, pair.start - 80) : pair.start], text[pair.end :][:40]
        if of_image_1 := _OF_IMAGE_1.match(after):
            told_until = pair.end + of_image_1.end()
        elif not _IMAGE_1_HAS.search(before) and not (_RANGE.search(before) and not pair.values[0]):
            rank = next((i for i, told in enumerate((_RESULT, _IS)) if told.search(before)), 2)
            pairs.append((rank + bool(_QUERY.search(before)), not pair.bracketed, pair))
    pairs = [found for found in pairs if found[-1].values != query] or pairs
    return min(pairs, key=lambda found: found[:2])[-1].values if pairs else None
