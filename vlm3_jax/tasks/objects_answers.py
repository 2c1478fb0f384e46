"""A deterministic judge of free-text answers about objects, where the published scores used a language model.

Every function returns None for an answer that it cannot read. Rules, in this order: a correction ("Actually, ...",
"In fact, ...") wins, then the polarity at the start, then what the first sentence with a relation claims, where the
opposite word, a negation and exchanged regions each turn the claim around.
"""

import re

from vlm3_jax.tasks import lengths, measures, numbers
from vlm3_jax.tasks.measures import Units
from vlm3_jax.tasks.objects_words import OPPOSITE
from vlm3_jax.tasks.plain import corrected

_BEATS = r"exceeds?|surpass(?:es)?"
_MORE, _LESS = r"(?:great|larg|bigg|high|long)er|more", r"(?:small|less|low|short)er|less|reduced"
# How each word may appear in an answer; only the two words of the question's group are ever looked for.
_LEXICON = {
    "below": r"below|beneath|under(?:neath)?|lower|lowest|down",
    "above": r"above|over|higher|highest|upper|on top|up",
    "left": r"left(?:most)?",
    "right": r"right(?:most)?",
    "big": rf"{_BEATS}|big(?:ger|gest)?|large[rst]*|greater|(?:{_MORE})(?: in)? (?:size|volume|space)",
    "small": rf"small(?:er|est)?|little|tin(?:y|ier|iest)|(?:{_LESS})(?: in)? (?:size|volume|space)",
    "tall": rf"{_BEATS}|tall(?:er|est)?|higher|highest|(?:{_MORE})(?: in)? (?:height|stature)",
    "short": rf"short(?:er|est)?|lower|lowest|(?:{_LESS})(?: in)? (?:height|stature)",
    "wide": rf"{_BEATS}|wide(?:r|st)?|broad(?:er|est)?|(?:{_MORE})(?: in)? width",
    "thin": rf"thin(?:ner|nest)?|narrow(?:er|est)?|slim(?:mer|mest)?|(?:{_LESS})(?: in)? width",
    "behind": r"behind|(?:far|fur)the(?:r|st)|back|rear|beyond",
    "front": r"front|close(?:r|st)|near(?:er|est)|ahead",
}

_LEAD_IN = r"^\W*(?:(?:well|hmm|so|answer|(?:i|we) (?:think|believe|would say)|i'd say)[,:]?\s+)*"
_IT_IS = r"(?:(?:that|this|it)(?:'s| is)\s+)?"
_NO = re.compile(
    rf"{_LEAD_IN}{_IT_IS}(?:no|nope|nah|false|incorrect|untrue|wrong|negative"
    r"|(?:absolutely|certainly|definitely|of course|probably|surely) not"
    r"|not(?=\s*(?:[,.!;]|$|quite|really|exactly|at all|true|correct|right(?! of)))"
    r"|(?:that|this|it) (?:isn't|doesn't|is not|does not)(?=\s*(?:[,.!;]|$|true|correct|so\b|the case)))\b",
    re.IGNORECASE,
)
_YES = re.compile(
    rf"{_LEAD_IN}{_IT_IS}(?:yes|yeah|yep|yup|correct|true|indeed|certainly|surely|sure|absolutely|affirmative"
    r"|definitely|of course|exactly|right(?=\s*(?:[,.!;]|$))|(?:that|this|it) (?:is|does)(?=\s*(?:[,.!;]|$)))\b",
    re.IGNORECASE,
)
_RIGHT_START = re.compile(rf"{_LEAD_IN}right\s*(?:[,.!;]+|$)", re.IGNORECASE)
_NEGATION = re.compile(r"\b(?:not|never|neither|nor)\b|n't\b", re.IGNORECASE)
_CLAUSE = re.compile(r"[,;:]|\bbut\b|\band\b", re.IGNORECASE)
_SENTENCE = re.compile(r"(?<=[.!?;])\s+|\n+")

_NOUN = r"(?:the\s+)?(?:bounding\s+box\s+)?(?:region|bounding\s+box|box|object)?\s*"
_FOUR = r"\s*,\s*".join([r"(\d+(?:\.\d+)?)"] * 4)
_BOX = re.compile(rf"{_NOUN}[(\[]?\s*(?<![\d.]){_FOUR}\s*[)\]]?", re.IGNORECASE)
_NUMBERED = re.compile(r"(?:the\s+)?region\s*\[?\s*([01])\s*\]?", re.IGNORECASE)
_ORDINAL = re.compile(
    r"\bthe\s+(first|second|former|latter)\b(?:\s+(?:one|region|object|box|bounding box))*", re.IGNORECASE
)
_BOTH = re.compile(r"\b(?:between|of|out of|among)\s+«[01]»\s+(?:and|or)\s+«[01]»\s*,?\s*", re.IGNORECASE)
_MENTION = re.compile(r"«([01])»")
_OF = re.compile(
    r"\b(?:to|than|with|of|from|by|as|against|versus|vs\.?|not|below|above|beneath|under|underneath|over|behind|beyond)"
    r"\s*$",
    re.IGNORECASE,
)

_CLOCK = Units({"hours": (1.0, r"o\s?'?\s?clock")}, signs={})
_MINUTES = re.compile(r"(?<![\d:.])(\d{1,2}):([0-5]\d)(?![\d:])")
_HALF_PAST = re.compile(r"\bhalf past (\d{1,2})\b", re.IGNORECASE)
# The question's own reference ("with 12 o'clock pointing away from the viewer") is not its answer.
_NOON = re.compile(
    r"\b(?:with|if|where|when|taking|assuming|let|and)\s(?:the\s)?12\s?o\s?'?\s?clock\b(?=.*o\s?'?\s?clock)",
    re.I | re.S,
)


def metres(text: str) -> float | None:
    """The length that an answer gives, in metres (`lengths.metres`)."""
    return measures.read(text, lengths.metres)


def hour(text: str) -> int | None:
    """The "N o'clock" that an answer gives, or a bare number, from 1 to 12.

    A part of an hour and the middle of a range are rounded to the nearest hour, halves up ("2.5 o'clock" is 3, "2-3
    o'clock" too); a bare number must be a whole hour.
    """
    return measures.read(text, _hour)


def _hour(text: str, tagged: bool) -> int | None:
    text = _NOON.sub("", numbers.in_digits(text, _CLOCK.word))
    text = _HALF_PAST.sub(r"\1.5", _MINUTES.sub(lambda m: f"{int(m[1]) + int(m[2]) / 60:g}", text))
    found = measures.quantity(text, _CLOCK, tagged)
    if found is None or found.low is None or found.high is None:
        return None
    low, high = found.low, found.high + 12 * (found.high < found.low)
    if not 1 <= low < 13 or not high < 25 or not (found.unit or low == high == int(low)):
        return None
    return int((low + high) / 2 + 0.5 - 1) % 12 + 1


def polarity(text: str) -> bool | None:
    """Yes (True) or no (False) at the start of the text."""
    text = text.replace("’", "'")
    if _NO.match(text):
        return False
    return True if _YES.match(text) else None


def predicate(text: str, word: str, boxes) -> bool | None:
    """Whether the answer says that box 0 is `word` (left, bigger, behind, ...) compared with box 1."""
    text = text.replace("’", "'")
    said = (_yes_or_claim(part, word, boxes) for part in corrected(text))
    return next((claim for claim in said if claim is not None), None)


def choice(text: str, word: str, boxes) -> int | None:
    """Which of the two boxes (0 or 1) the answer says is more `word`."""
    text = text.replace("’", "'")
    for part in corrected(text):
        claimed = _claim(part, word, boxes, None)
        if claimed is not None:
            return claimed
        marked = _mark_regions(part, boxes)
        subjects = [int(m[1]) for m in _MENTION.finditer(marked) if not _OF.search(marked[: m.start()][-40:])]
        if subjects:
            return subjects[0]
    return None


def _yes_or_claim(text: str, word: str, boxes) -> bool | None:
    start = _RIGHT_START.match(text) if word in ("left", "right") else None
    if start:
        # "Right." may be the direction or a yes: what follows tells, and alone it is the direction asked about.
        rest = text[start.end() :].strip()
        claimed = _claim(rest, word, boxes, 0) if rest else int(word == "left")
        return True if claimed is None else claimed == 0
    said = polarity(text)
    if said is not None:
        return said
    claimed = _claim(text, word, boxes, 0)
    return None if claimed is None else claimed == 0


def _claim(text: str, word: str, boxes, default_subject: int | None) -> int | None:
    """Which box the first sentence with a relation says is more `word`."""
    pattern = re.compile(rf"\b(?:(less\s+)?(?:({_LEXICON[word]})|({_LEXICON[OPPOSITE[word]]})))\b", re.IGNORECASE)
    for sentence in _SENTENCE.split(_BOTH.sub("", _mark_regions(text, boxes))):
        relation = pattern.search(sentence)
        if not relation:
            continue
        subject = _subject(sentence, relation, default_subject)
        if subject is None:
            continue
        before = _CLAUSE.split(sentence[: relation.start()])[-1]
        turned = bool(relation[3]) + bool(relation[1]) + bool(_NEGATION.search(before))
        return subject ^ (turned % 2)
    return None


def _subject(sentence: str, relation: re.Match, default: int | None) -> int | None:
    """The box that the relation is said of: named before it, else the one that is not its object."""
    mentions = [
        (m.start(), int(m[1]), bool(_OF.search(sentence[: m.start()][-40:]))) for m in _MENTION.finditer(sentence)
    ]
    subjects = [box for _, box, is_object in mentions if not is_object]
    if subjects and (mentions[0][0] < relation.start() or default is None):
        return subjects[0]
    objects = [box for _, box, is_object in mentions if is_object]
    return 1 - objects[0] if objects else default


def _mark_regions(text: str, boxes) -> str:
    """The text with every mention of a region replaced by «0» or «1»; a misquoted box counts as the nearer one."""

    def box(match):
        quoted = [float(v) for v in match.groups()]
        distances = [sum(abs(q - v) for q, v in zip(quoted, box)) for box in boxes]
        return f"«{distances.index(min(distances))}»"

    # A box may be written with grouped or decimal commas.
    for quoted in sorted(numbers.lists(text, 4), key=lambda found: -found.start):
        text = text[: quoted.start] + ", ".join(f"{v:g}" for v in quoted.values) + text[quoted.end :]
    text = _BOX.sub(box, text)
    text = _NUMBERED.sub(r"«\1»", text)
    return _ORDINAL.sub(lambda m: f"«{int(m[1].lower() in ('second', 'latter'))}»", text)
