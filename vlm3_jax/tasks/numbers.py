"""Numbers in answers: the one place that says what a run of digits and separators means (docs/conventions.md).

Text is cut into whole numbers first ("3.5.2" or "1,234.5" is one run), and a run that is no number is unread: no part
of it is ever taken for another number. All functions expect text as `plain.plain` writes it.
"""

import dataclasses
import re

# Digits with what may stand between them; a space, an apostrophe or a low line only before exactly three digits.
_RUN = r"(?:\d+(?:[.,]\d+|[ '_]\d{3}(?!\d))*|\.\d+)(?:[eE][-+]?\d+)?"
_FRACTION = r"(?:\d+(?: |-| and ))?\d+ ?/ ?\d+(?! ?[/\d]|[.,]\d)"
NUMBER = re.compile(rf"(?<![\w.^/])[-+]?(?:{_FRACTION}|{_RUN})")

_PLAIN = re.compile(r"\d+(?:\.\d+)?|\.\d+")
_GROUPED = re.compile(r"[1-9]\d{0,2}([,' _])\d{3}(?:\1\d{3})*(?:\.\d+)?")
_GROUPED_WITH_COMMA = re.compile(r"[1-9]\d{0,2}([.' _])\d{3}(?:\1\d{3})*,\d+|[1-9]\d{0,2}(?:\.\d{3}){2,}")
_DECIMAL_COMMA = re.compile(r"\d+,\d+")
_PARTS = re.compile(r"(?:(\d+)(?: |-| and ))?(\d+) ?/ ?(\d+)")

_MARK = r"(?: ?(?:°|deg(?:rees?)?\b|rad(?:ians?)?\b|px\b|pixels?\b|m\b|met(?:er|re)s?\b))?"
_ITEM = rf"[-+]?{_RUN}{_MARK}"
_LIST = re.compile(rf"(?<![\w.,^/])(?P<items>{_ITEM}(?: ?[,;] ?{_ITEM})*)")
_ITEM = re.compile(rf"([-+]?{_RUN})({_MARK})")
# A comma before a space or a sign, or after a space or a unit, parts two numbers; any other may belong to one.
_LOOSE = re.compile(r" ?,(?=[\s+-]) ?|(?<=[ °a-zA-Z]),")
_COORDINATES = re.compile(rf"[(\[] ?[-+]?{_RUN}(?: ?[,;] ?[-+]?{_RUN})* ?[)\]]")

_BELOW_TEN = {
    **{"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9}
}
_TEENS = {
    **{"ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16},
    **{"seventeen": 17, "eighteen": 18, "nineteen": 19},
}
_TENS = {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}
_WORDS = _BELOW_TEN | _TEENS | _TENS
_SCALES = {"hundred": 100, "thousand": 1000, "million": 1e6}
_SHARES = {"half": 0.5, "quarter": 0.25, "three quarters": 0.75, "3 quarters": 0.75}
_NUMERALS = {*_WORDS, *_SCALES, "half", "quarter", "quarters"}
# "One" is a pronoun too ("the one that ..."): a number only where a number must follow or be followed.
_TWO_TO_NINETEEN = "|".join(word for word in (*_BELOW_TEN, *_TEENS) if word != "one")
_SPELLED = re.compile(
    rf"\b(?:({'|'.join(_TENS)})(?:[ -]({'|'.join(_BELOW_TEN)}))?|({_TWO_TO_NINETEEN}))\b", re.IGNORECASE
)
_POINT = re.compile(r"\b(\d+) point (\d+)\b", re.IGNORECASE)
_SCALED = re.compile(rf"({NUMBER.pattern}|\ba) ({'|'.join(_SCALES)})\b(?: (?:and )?(\d\d?)(?![\d.,]))?", re.IGNORECASE)
_AND_SHARE = re.compile(r"(?<![\w.,])(\d+) and (?:an? |1 )?(half|quarter|3 quarters)\b", re.IGNORECASE)


def finite(number: float) -> float | None:
    """The number, or None from 1e9 on: an endless run of digits says nothing, and one would drown every mean."""
    return number if abs(number) < 1e9 else None


def value(run: str) -> float | None:
    """What a run says, or None. A comma before exactly three digits groups thousands, any other is a decimal comma.

    Thousands may be grouped by comma, space, apostrophe or low line ("1,234.5", "1 234.5"), or by points beside a
    decimal comma ("1.234,5"); a single point is always decimal. Fractions: "1/2", "5 1/2".
    """
    sign, body = (-1 if run[0] == "-" else 1), run.lstrip("+-")
    if fraction := _PARTS.fullmatch(body):
        whole, top, bottom = (float(part or 0) for part in fraction.groups())
        sensible = bottom > 0 and not (fraction[1] and top >= bottom)
        return finite(sign * (whole + top / bottom)) if sensible else None
    mantissa, _, exponent = body.lower().partition("e")
    if _GROUPED.fullmatch(mantissa):
        mantissa = re.sub(r"[,' _]", "", mantissa)
    elif _GROUPED_WITH_COMMA.fullmatch(mantissa):
        mantissa = re.sub(r"[.' _]", "", mantissa).replace(",", ".")
    elif _DECIMAL_COMMA.fullmatch(mantissa):
        mantissa = mantissa.replace(",", ".")
    elif not _PLAIN.fullmatch(mantissa):
        return None
    return finite(sign * float(f"{mantissa}e{exponent or 0}"))


def signed(number: float, decimals: int) -> str:
    """`+1.2`, `-0.3`; zero is always `+0.0`, so that an answer has one spelling."""
    return f"{round(number, decimals) + 0.0:+.{decimals}f}"


@dataclasses.dataclass(frozen=True)
class Numbers:
    """A list of numbers in a text: where it stands, its values and the unit written behind each ("" for none)."""

    start: int
    end: int
    values: tuple[float, ...]
    marks: tuple[str, ...]
    bracketed: bool


def lists(text: str, length: int) -> list[Numbers]:
    """All lists of exactly `length` numbers, those in brackets first.

    Semicolons part numbers; so do commas before a space or a sign. Tight commas part numbers only where the list has
    too few otherwise: "(524,612)" is two numbers, and so is "(1,234, 56)".
    """
    found = []
    for match in _LIST.finditer(text):
        before, after = text[max(0, match.start() - 3) : match.start()], text[match.end() : match.end() + 3]
        # A part of a range, a fraction or a name is no number of a list.
        if re.search(r"[\d.] ?[-/×x] ?$", before) or re.match(r" ?[-/×] ?[\d.]|[\w^]|[.,]\d", after):
            continue
        items = match["items"]
        for separator in (re.compile(" ?; ?") if ";" in items else _LOOSE, re.compile(" ?[,;] ?")):
            parts = [_ITEM.fullmatch(part.strip()) for part in separator.split(items)]
            values = [value(part[1]) for part in parts if part]
            if len(values) == len(parts) == length and None not in values:
                bracketed = bool(re.search(r"[(\[] ?$", before))
                marks = tuple(part[2].strip() for part in parts)
                found.append(Numbers(match.start(), match.end(), tuple(values), marks, bracketed))
                break
    return sorted(found, key=lambda numbers: not numbers.bracketed)


def without_coordinates(text: str) -> str:
    """The text without lists of numbers in brackets, which are coordinates."""
    return _COORDINATES.sub(lambda m: " | " if re.search("[,;]", m[0]) else m[0], text)


def in_digits(text: str, unit: str) -> str:
    """The text with its numbers in words written in digits; `unit` (a regular expression) tells what they count.

    "two and a half meters" -> "2.5 meters", "half a meter" -> "0.5 meter", "3 hundred meters" -> "300 meters".
    """
    words = set(re.findall("[a-z]+", text.lower()))
    if _NUMERALS.isdisjoint(words) and not ("and" in words and words & {"a", "an"}):
        return text

    def spelled(match):
        return str(sum(_WORDS[word.lower()] for word in match.groups() if word))

    def scaled(match):
        number = 1 if match[1].lower() == "a" else value(match[1])
        return match[0] if number is None else f"{number * _SCALES[match[2].lower()] + float(match[3] or 0):.12g}"

    text = _SPELLED.sub(spelled, text)
    text = re.sub(rf"\bone(?= (?:and an? |or \d|to \d|point |hundred|thousand)|[ -](?:{unit}))", "1", text, flags=re.I)
    text = _POINT.sub(r"\1.\2", text)
    text = _SCALED.sub(scaled, text)
    text = _AND_SHARE.sub(lambda m: f"{int(m[1]) + _SHARES[m[2].lower()]:g}", text)
    text = re.sub(
        rf"\b(?:an? |one )?(3[ -]quarters|half|quarter)(?: of)?(?: an?)?(?=[ -](?:{unit}))",
        lambda m: str(_SHARES[m[1].lower().replace("-", " ")]),
        text,
        flags=re.I,
    )
    return re.sub(rf"\ban?(?= (?:{unit}) (?:and )?(?:a half|a quarter|\d))", "1", text, flags=re.I)
