"""Numbers in answers: how they are found in text, and the best constant answer to a set of them."""

import math
import re

import numpy as np

NUMBER = r"(?<![\w.])[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
METERS = r"(?:met(?:er|re)s?|m)\b"
DEGREES = r"(?:degrees?\b|deg\b|°)"

_ANY = re.compile(NUMBER)
_BARE = re.compile(rf"\s*({NUMBER})\s*\.?\s*")


def finite(text: str) -> float | None:
    """The number, or None from 1e9 on: an endless run of digits says nothing, and one would drown every mean."""
    value = float(text)
    return value if abs(value) < 1e9 else None


def first_number(text: str) -> float | None:
    """The first number (sign, decimals, exponent) in the text."""
    match = _ANY.search(text)
    return finite(match[0]) if match else None


def number_before(text: str, unit: str) -> float | None:
    """The first number directly followed by the unit (a regular expression)."""
    match = re.search(rf"({NUMBER})\s*{unit}", text, re.IGNORECASE)
    return finite(match[1]) if match else None


def bare_number(text: str) -> float | None:
    """The number if the text is nothing else (the short wording's answers)."""
    match = _BARE.fullmatch(text)
    return finite(match[1]) if match else None


def first_tuple(text: str, length: int) -> tuple[float, ...] | None:
    """The first `length` numbers separated by commas, with or without brackets."""
    match = re.search(r"\s*,\s*".join([f"({NUMBER})"] * length), text)
    if not match:
        return None
    values = tuple(finite(v) for v in match.groups())
    return None if None in values else values


def plain_minus(text: str) -> str:
    """The text with typographic minus signs written as hyphens."""
    return text.replace("\u2212", "-").replace("\u2013", "-")


def signed(value: float, decimals: int) -> str:
    """`+1.2`, `-0.3`; zero is always `+0.0`, so that an answer has one spelling."""
    return f"{round(value, decimals) + 0.0:+.{decimals}f}"


def best_ratio_constant(truths, low: float, high: float) -> float:
    """The constant c that has low < c / g < high for the most of the positive truths g [N].

    Truth g accepts the interval (low g, high g); the count only rises where an interval opens, so the best c lies
    between such an opening and the next end point.
    """
    truths = np.asarray(truths, np.float64)
    opens, closes = np.sort(low * truths), np.sort(high * truths)
    counts = np.searchsorted(opens, opens, "right") - np.searchsorted(closes, opens, "right")
    start = opens[np.argmax(counts)]
    ends = np.concatenate([opens, closes])
    return float((start + ends[ends > start].min()) / 2)


def mean_or_nan(values) -> float:
    """Mean of the values as a plain float; NaN where there is none."""
    return float(np.mean(values)) if len(values) else math.nan
