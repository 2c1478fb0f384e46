"""A deterministic judge of free-text answers about objects, where the published scores used a language model.

Every function returns None for an answer that it cannot read. Rules, in this order: a correction ("Actually, ...",
"In fact, ...") wins, then the polarity at the start, then what the first sentence with a relation claims, where the
opposite word, a negation and exchanged regions each turn the claim around.
"""

import re

from vlm3_jax.tasks.numbers import NUMBER, bare_number, finite
from vlm3_jax.tasks.objects_words import METRES_PER_UNIT, OPPOSITE

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

_CORRECTION = re.compile(r"(?:^|[.!?;,\n]\s*|\bbut\s+)(?:actually|in fact)\b[,:]?\s*", re.IGNORECASE)
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
_BOX = re.compile(_NOUN + r"[(\[]?\s*" + r"\s*,\s*".join([r"(\d+(?:\.\d+)?)"] * 4) + r"\s*[)\]]?", re.IGNORECASE)
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

_UNITS = {
    "meters": r"met(?:er|re)s?|m",
    "centimeters": r"centimet(?:er|re)s?|cms?",
    "feet": r"feet|foot|ft",
    "inches": r"inch(?:es)?|in(?!\s+(?:the|a|an|front|this)\b)",
}
_QUANTITY = re.compile(
    rf"({NUMBER})[\s-]*(?:{'|'.join(f'(?P<{name}>{pattern})' for name, pattern in _UNITS.items())})\b", re.IGNORECASE
)
_AND_INCHES = re.compile(rf"\s*(?:,|and)?\s*({NUMBER})\s*(?:inch(?:es)?|in)\b", re.IGNORECASE)
_HOURS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_HOUR = re.compile(rf"\b(\d{{1,2}}|{'|'.join(_HOURS)})(?::00)?[\s-]*o\s*['’`]?\s*clock", re.IGNORECASE)


def metres(text: str) -> float | None:
    """The first number with a unit of length, in metres ("5 feet 3 inches" is one); a bare number is metres."""
    match = _QUANTITY.search(text)
    if not match:
        return bare_number(text)
    value = finite(match[1])
    if value is None:
        return None
    value *= METRES_PER_UNIT[match.lastgroup]
    if match.lastgroup == "feet" and (inches := _AND_INCHES.match(text, match.end())):
        value += float(inches[1]) * METRES_PER_UNIT["inches"]
    return value


def hour(text: str) -> int | None:
    """The first "N o'clock" (digits or a word), or a bare number, from 1 to 12."""
    match = _HOUR.search(text)
    if match:
        word = match[1].lower()
        value = _HOURS.index(word) + 1 if word in _HOURS else int(word)
    else:
        value = bare_number(text)
    return int(value) if value in range(1, 13) else None


def polarity(text: str) -> bool | None:
    """Yes (True) or no (False) at the start of the text."""
    text = text.replace("’", "'")
    if _NO.match(text):
        return False
    return True if _YES.match(text) else None


def predicate(text: str, word: str, boxes) -> bool | None:
    """Whether the answer says that box 0 is `word` (left, bigger, behind, ...) compared with box 1."""
    text = text.replace("’", "'")
    corrections = list(_CORRECTION.finditer(text))
    if corrections:
        said = _yes_or_claim(text[corrections[-1].end() :], word, boxes)
        if said is not None:
            return said
    return _yes_or_claim(text, word, boxes)


def choice(text: str, word: str, boxes) -> int | None:
    """Which of the two boxes (0 or 1) the answer says is more `word`."""
    text = text.replace("’", "'")
    corrections = list(_CORRECTION.finditer(text))
    parts = [text[corrections[-1].end() :], text] if corrections else [text]
    for part in parts:
        claimed = _claim(part, word, boxes, None)
        if claimed is not None:
            return claimed
        marked = _mark_regions(part, boxes)
        subjects = [int(m[1]) for m in _MENTION.finditer(marked) if not _OF.search(marked[: m.start()])]
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
    mentions = [(m.start(), int(m[1]), bool(_OF.search(sentence[: m.start()]))) for m in _MENTION.finditer(sentence)]
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

    text = _BOX.sub(box, text)
    text = _NUMBERED.sub(r"«\1»", text)
    return _ORDINAL.sub(lambda m: f"«{int(m[1].lower() in ('second', 'latter'))}»", text)
