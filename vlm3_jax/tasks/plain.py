"""One spelling for what answers write in many ways, and where in an answer its result stands.

Signs, digits and quotes of any script, LaTeX, Markdown, HTML and powers of ten are rewritten as plain text, so that the
readers of numbers, lengths and angles know one form of each.
"""

import html
import re
import string
import unicodedata

from vlm3_jax.tasks.base import drop_think

_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d", "-"),
        # Dashes that part sentences are no signs.
        **dict.fromkeys("\u2014\u2015", " - "),
        **dict.fromkeys("\u2018\u2019\u201b\u02bc\u2032\u00b4", "'"),
        **dict.fromkeys("\u201c\u201d\u201f\u2033", '"'),
        **dict.fromkeys("\u00ba\u02da", "°"),
        **dict.fromkeys("\u2248\u223c\u2243\u2245", "~"),
        **dict.fromkeys("\u00b7\u22c5\u2219\u2715\u2a09", "×"),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad\u200e\u200f", None),
        "\u066b": ".",
        "\u066c": ",",
        "\u3001": ", ",
        "\u3002": ". ",
        "\u2192": "->",
        "\u2044": "/",
        "\u2215": "/",
    }
)
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")

_LATEX = [
    (re.compile(pattern), to)
    for pattern, to in (
        (r"\\[dt]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}", r" \1/\2"),
        (r"\^\s*\{?\s*\\(?:circ|degree)\b\s*\}?|\\(?:text)?degrees?\b", "°"),
        (r"\\(?:times|cdot)\b", "×"),
        (r"\\pm\b", "±"),
        (r"\\(?:approx|sim|simeq)\b", "~"),
        (r"\\(?:rightarrow|mapsto|to)\b", "->"),
        (r"\{,\}", ","),
        (r"\{~", "{ "),
        (r"\\!", ""),
        (r"\\(?:[,;:> ]|quad\b|qquad\b)", " "),
        (r"\\(?:text(?:bf|it|rm)?|math(?:rm|bf|it|sf)|boxed|operatorname|left(?=[\[(])|right(?=[\])]))\b", ""),
        (r"\\[()\[\]]|[${}]", " "),
    )
]
_POWER = r"10\s?\^\s?([-+]?\d+)"
_MARKUP = [
    (re.compile(pattern), to)
    for pattern, to in (
        (r"[ \t\r\f\v]+", " "),
        (r"\n\s+", "\n"),
        (r"(?<=\d)~(?=[A-Za-z])", " "),
        (r"\+ ?/ ?-|\+-(?= ?[\d.])", "±"),
        (r"</?(?!think\b|answer\b)[A-Za-z][^<>]{0,60}>", ""),
        (r"(?<=[oO])\s?`\s?(?=[cC]lock)", "'"),
        (r"\*\*|(?<!_)__(?!_)|`", ""),
        (r"(\d)\s?[×x*]\s?" + _POWER, r"\1e\2"),
        (r"(?<![\w.])" + _POWER, r"1e\1"),
        # Emphasis is at the border of a word; between two numbers it is a product.
        (r"(?<![\w)\]])[*_](?=\S)|(?<=[^\s*_])[*_](?![\w(\[])", ""),
        # "= - 4.5" is a sign, a hyphen that opens a line is a bullet.
        (r"([=:(\[,~][ \t]?)([-+])[ \t]+(?=[\d.])", r"\1\2"),
        (r"''", '"'),
    )
]

# What most answers are made of: nothing in them is to be rewritten.
_USUAL = frozenset(string.ascii_letters + string.digits + " .,;:()[]=?!%/'+-\n")
_UNUSUAL = ("  ", "''", "\n ", "\n\n", "- ", "+ ", "+/", "+-")
# An answer without its thinking is read up to here; a model that never stops says nothing more.
LONGEST = 100_000
_TAG = re.compile(r"<\s*(/?)\s*(think|answer)\s*>", re.IGNORECASE)
_CORRECTION = re.compile(
    r"(?:^|[.!?;,:(>\n]\s*|\s-\s+|\bbut\s+|\bno,?\s+)"
    r"(?:actually|in fact|wait|sorry|correction|i mean|i meant|scratch that|or rather|make that)\b[,:]?\s*",
    re.IGNORECASE,
)


def plain(text: str) -> str:
    """The text with one spelling of digits, signs, quotes, spaces, fractions, powers of ten; without markup."""
    if _USUAL.issuperset(text) and not any(pair in text for pair in _UNUSUAL):
        return text
    if "&" in text:
        text = html.unescape(text)
    if not text.isascii():
        text = "".join(map(_ascii, _raised(text.translate(_CHARACTERS))))
    text = _TAG.sub(lambda m: f"<{m[1]}{m[2].lower()}>", text)
    if any(mark in text for mark in "\\${}"):
        for pattern, to in _LATEX:
            text = pattern.sub(to, text)
    for pattern, to in _MARKUP:
        text = pattern.sub(to, text)
    return text


def _raised(text: str) -> str:
    return re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+", lambda m: "^" + m[0].translate(_RAISED), text)


def _ascii(char: str) -> str:
    """The character, or what stands for it in plain text."""
    if char.isascii():
        return char
    if unicodedata.category(char) == "Nd":
        return str(unicodedata.digit(char))
    if char.isspace():
        return "\n" if char in "\u0085\u2028\u2029" else " "
    # Full-width forms and squared units ("㎝", "㎞").
    if 0xFF01 <= ord(char) <= 0xFF5E or 0x3380 <= ord(char) <= 0x33DF:
        return unicodedata.normalize("NFKC", char)
    if unicodedata.decomposition(char).startswith("<fraction>"):
        return " " + unicodedata.normalize("NFKC", char).replace("\u2044", "/")
    return char


def corrected(text: str) -> list[str]:
    """What follows the last "Actually, ...", "In fact, ...", "No, wait, ..."; then, and else only, the whole text."""
    corrections = list(_CORRECTION.finditer(text))
    return [text[corrections[-1].end() :], text] if corrections else [text]


def readings(text: str) -> list[tuple[str, bool]]:
    """Where the result of an answer may stand, the best place first: (plain text, whether it stood in `<answer>`).

    A correction goes before what it corrects, the first `<answer>` before the text around it. Thinking is left out,
    also where its opening tag belonged to the prompt.
    """
    text = drop_think(plain(text)).rpartition("</think>")[2].strip()[:LONGEST]
    places = []
    for part in corrected(text):
        inside = re.search(r"<answer>(.*?)(?:</answer>|\Z)", part, re.DOTALL)
        if inside:
            places.append((inside[1].strip(), True))
        closing = part.find("</answer>")
        if not inside and closing >= 0:
            places.append((part[:closing].strip(), True))
        else:
            places.append((re.sub(r"</?answer>", " ", part).strip(), False))
    return places
