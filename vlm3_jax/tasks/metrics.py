"""What the scores of several tasks are made of."""

import math

import numpy as np


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
