"""Numbers with their units: sums ("2 m 30 cm"), ranges ("2-3 m"), tolerances ("3 ± 0.2 m"), and which of them counts.

The rules are the same for lengths, angles and hours (docs/conventions.md): a number bound to a unit goes before a bare
one, the middle of a range is its value, what cannot be read is never replaced by another number of the answer.
"""

import dataclasses
import re
from collections.abc import Mapping

from vlm3_jax.tasks import numbers, plain

_APPROXIMATELY = r"(?:about|around|approximately|approx\.?|roughly|nearly|almost|exactly|some|~)"
_PLUS = re.compile(r"[\s,&+-]*(?:and|plus)?\s*", re.IGNORECASE)
_TOLERANCE = re.compile(r"\s?\(?\s?(?:±|plus or minus)\s?", re.IGNORECASE)
_TO = re.compile(rf"\s?(?:-|~|\.\.+|\bto\b|\bor\b|\bup to\b)\s?(?:{_APPROXIMATELY}\s?)?", re.IGNORECASE)
_AND = re.compile(rf"\s?\band\s(?:{_APPROXIMATELY}\s?)?", re.IGNORECASE)
_BETWEEN = re.compile(rf"\b(?:between|from)\s(?:{_APPROXIMATELY}\s?)?$", re.IGNORECASE)
_PRODUCT = re.compile(r"\s?(?:[x×*/]|\bby\b)\s?", re.IGNORECASE)
_AND_SHARE = re.compile(r" and (?:a|one) (half|quarter)\b", re.IGNORECASE)
_NEGATED = re.compile(rf"(?:\bnot|n't|\brather than|\binstead of)\s(?:{_APPROXIMATELY}\s?)?$", re.IGNORECASE)
_LABEL = re.compile(
    r"(?:\b(?:region|object|box|image|view|point|pixel|step|figure)s?\s?[\[(]?|#|±|±\s)\s?$", re.IGNORECASE
)
# A number that goes on with another word counts something else ("3 chairs").
_GOES_ON = re.compile(
    r"\s*(?:$|[.,;:!?)\]}\"'|(]|[-+]?\d|-?(?:away|apart|from|approx\w*|or|about|roughly|in|is|for|to|at|and|with|as|ish)\b)",
    re.IGNORECASE,
)
_LEAD_IN = re.compile(
    rf"(?:\W|\b(?:final|the|answer|distance|depth|height|width|length|angle|rotation|translation|value|result|estimated?"
    rf"|estimation|is|it|its|it's|be|would|of|at|by|clock|hour|direction|{_APPROXIMATELY})\b)*",
    re.IGNORECASE,
)
_LEAD_OUT = re.compile(
    r"(?:[\s.!*\"')\]|]|\b(?:away|apart|approximately|approx|or so|from the camera)\b)*", re.IGNORECASE
)


_QUOTES = ("'", '"')
_ENDS = re.compile(r"\s*(?:$|[.,;)!?\"])")


def _quoted(before: str, quote: str) -> bool:
    """Whether a quotation is open at the end of the text, so that a quote mark there closes it (and is no inch)."""
    before = before[-200:]
    opened = len(re.findall(rf"(?:^|(?<=[\s(\[:=,>])){quote}", before))
    return opened > len(re.findall(rf"(?<=[A-Za-z.!?,)\]%]){quote}(?![A-Za-z])", before))


class Units:
    """The units of one quantity. `words` and `signs`: name -> (size in the base unit, how it is written).

    A word ends where letters end ("3 m" but not "3 mph", "3 m/s" or "3 m^2"); signs are quote marks and degrees.
    `chains`: names from large to small, whose neighbours may be added up ("2 m 30 cm").
    """

    def __init__(self, words: Mapping, signs: Mapping, chains=()):
        self.sizes = {name: size for table in (words, signs) for name, (size, _) in table.items()}
        self.word = "|".join(pattern for _, pattern in words.values())
        pattern = "|".join(f"(?P<{name}>{pattern})" for name, (_, pattern) in words.items())
        signs_pattern = "|".join(f"(?P<{name}_sign>{pattern})" for name, (_, pattern) in signs.items())
        ends = r"(?![\w^]|\s?/\s?[A-Za-z])"
        self._after = re.compile(
            rf"(?:\s?-?\s?|\s?[(\[]\s?)(?:(?:{pattern}){ends}" + (rf"|{signs_pattern}" if signs else "") + ")",
            re.IGNORECASE,
        )
        self._mention = re.compile(rf"(?:\bin\s|[(\[]\s?)(?:{pattern}){ends}\s?[)\]]?", re.IGNORECASE)
        self._below = {name: chain[i + 1 :] for chain in chains for i, name in enumerate(chain)}

    def after(self, text: str, end: int) -> tuple[str, int] | None:
        """The unit written behind a number that ends at `end`, and where it ends."""
        match = self._after.match(text, end)
        if not match:
            return None
        name, sign = match.lastgroup.removesuffix("_sign"), match[0].strip()
        if sign in _QUOTES and _quoted(text[:end], sign):
            return None
        return name, match.end()

    def smaller(self, name: str) -> tuple[str, ...]:
        """The units that may follow this one in a sum."""
        return self._below.get(name, ())

    def without_mention(self, text: str) -> str:
        """The text without units that have no number."""
        return self._mention.sub(" ", text)

    def mentioned(self, text: str) -> set[str]:
        """The units that the text names without a number: "in cm", "(m)"."""
        return {match.lastgroup for match in self._mention.finditer(text)}


@dataclasses.dataclass
class Quantity:
    """A number or range in a text, in base units where `unit` is set, else as written; None where it is unread."""

    start: int
    end: int
    low: float | None
    high: float | None
    unit: str | None

    @property
    def middle(self) -> float | None:
        """The value: the middle of a range."""
        return None if self.low is None or self.high is None else numbers.finite((self.low + self.high) / 2)

    def scaled(self, unit: str | None, size: float) -> "Quantity":
        """The same number, if it has no unit yet, of that one."""
        if self.unit or not unit:
            return self
        low, high = (None if v is None else v * size for v in (self.low, self.high))
        return dataclasses.replace(self, low=low, high=high, unit=unit)


def quantities(text: str, units: Units) -> list[Quantity]:
    """All numbers of the text in their order, sums, ranges and tolerances put together."""
    tokens = list(numbers.NUMBER.finditer(text))
    found, i = [], 0
    while i < len(tokens):
        quantity, i = _sum(text, tokens, i, units)
        is_range = False
        while i < len(tokens):
            gap = text[quantity.end : tokens[i].start()]
            signed = tokens[i][0][0] in "+-"
            # "1.75 m / 5.74 ft" says the same twice.
            product = _PRODUCT.fullmatch(gap) and not (quantity.unit and "/" in gap)
            tolerance = _TOLERANCE.fullmatch(gap)
            descends = gap == " " and tokens[i][0][0] == "-" and not quantity.unit
            ranges = not signed and (
                _TO.fullmatch(gap) or (_AND.fullmatch(gap) and _BETWEEN.search(text[: quantity.start][-40:]))
            )
            if not (product or tolerance or ranges or descends):
                break
            other, i = _sum(text, tokens, i, units)
            if other.unit:
                quantity = quantity.scaled(other.unit, units.sizes[other.unit])
            elif quantity.unit:
                other = other.scaled(quantity.unit, units.sizes[quantity.unit])
            if product or is_range:
                quantity.low = None
            elif not tolerance:
                quantity.high = None if other.high is None else abs(other.high) if descends else other.high
                is_range = True
            quantity.end = other.end
        found.append(quantity)
    return found


def _sum(text: str, tokens, i: int, units: Units) -> tuple[Quantity, int]:
    """The quantity at token i with the smaller units that follow, and the token after it."""
    start, unit = tokens[i].start(), units.after(text, tokens[i].end())
    # What follows a mark without being its part ("1'23") is the rest of a number that is none.
    total = None if re.search(r"\d'$", text[:start][-2:]) else numbers.value(tokens[i][0])
    if not unit:
        return Quantity(start, tokens[i].end(), total, total, None), i + 1
    (first, end), i = unit, i + 1
    last, sign = first, -1 if tokens[i - 1][0][0] == "-" else 1
    total = None if total is None else total * units.sizes[first]
    while i < len(tokens) and units.smaller(last):
        gap, token = text[end : tokens[i].start()], tokens[i]
        unit = units.after(text, token.end())
        if not unit and not gap.strip() and _ENDS.match(text, token.end()):
            unit = _implied(last, token[0], token.end())
        if not unit or unit[0] not in units.smaller(last) or not _PLUS.fullmatch(gap):
            break
        # In 5'-3" the hyphen is no sign.
        part = numbers.value(token[0] if gap else token[0].lstrip("-"))
        if part is not None and not 0 <= part * units.sizes[unit[0]] < units.sizes[last]:
            break
        total = None if total is None or part is None else total + sign * part * units.sizes[unit[0]]
        (last, end), i = unit, i + 1
    share = _AND_SHARE.match(text, end)
    if share and total is not None and last == first:
        total += sign * {"half": 0.5, "quarter": 0.25}[share[1].lower()] * units.sizes[first]
        end = share.end()
    return Quantity(start, end, total, total, first), i


def _implied(unit: str, number: str, end: int) -> tuple[str, int] | None:
    """The unit of a last number without one: "5 ft 3" is in feet and inches, "1 m 80" in metres and centimetres."""
    if unit == "feet":
        return "inches", end
    return ("centimeters", end) if unit == "meters" and re.fullmatch(r"\d\d", number) else None


def quantity(text: str, units: Units, tagged: bool = False) -> Quantity | None:
    """The one quantity that an answer gives, or None.

    It is the first one with a unit that is not negated ("not 3 m"). Without any, a bare number counts where it is all
    that the text says, or the only one in `<answer>` (`tagged`); it has the unit that the text names ("in cm: 350"),
    and is written in digits.
    """
    written = text
    text = numbers.in_digits(text, units.word)
    spelled, text = text != written, numbers.without_coordinates(text)
    found = quantities(text, units)
    bound = [q for q in found if q.unit and not _NEGATED.search(text[: q.start][-40:])]
    if bound:
        return bound[0]
    if spelled:
        return None
    mentioned = units.mentioned(text)
    bare = [q for q in found if not _LABEL.search(text[: q.start][-20:]) and _GOES_ON.match(text, q.end)]
    if not bare or len({(q.low, q.high) for q in bare}) > 1 or len(mentioned) > 1:
        return None
    if not tagged:
        around = units.without_mention(text[: bare[0].start]), units.without_mention(text[bare[0].end :])
        if len(found) > 1 or not _LEAD_IN.fullmatch(around[0]) or not _LEAD_OUT.fullmatch(around[1]):
            return None
    unit = next(iter(mentioned), None)
    return bare[0].scaled(unit, units.sizes.get(unit, 1.0))


def read(answer: str, reader):
    """`reader(text, tagged)` of the best place of the answer that has a result (`plain.readings`), or None.

    An `<answer>` that holds digits decides: what stands around it never takes the place of what cannot be read in it.
    """
    for text, tagged in plain.readings(answer):
        result = reader(text, tagged)
        if result is not None or (tagged and re.search(r"\d", text)):
            return result
    return None
