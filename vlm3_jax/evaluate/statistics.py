"""Intervals and paired differences of mean scores, and the loss of a model that has learnt nothing from the images."""

import math
from collections.abc import Hashable, Sequence

import numpy as np

# Replicates are drawn in blocks of at most so many counts, so that memory does not grow with their number.
_BLOCK = 4_000_000


def bootstrap_interval(
    scores: Sequence[float] | np.ndarray, clusters: Sequence[Hashable], n: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of the mean of `scores` [N], resampling whole `clusters` [N] (image ids).

    Questions about one image share its difficulty, so images and not questions are drawn (with replacement); the
    statistic is the mean over all questions of the drawn images. NaN scores do not count. (nan, nan) if fewer than two
    clusters count: one image does not tell how others differ from it.
    """
    scores = np.asarray(scores, np.float64)
    cluster = _labels(clusters)
    counts = ~np.isnan(scores)
    totals = np.bincount(cluster, np.where(counts, scores, 0.0))
    sizes = np.bincount(cluster, counts)
    totals, sizes = totals[sizes > 0], sizes[sizes > 0]
    if len(sizes) < 2:
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    means = []
    step = max(1, _BLOCK // len(sizes))
    for start in range(0, n, step):
        drawn = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=min(step, n - start))
        means.append(drawn @ totals / (drawn @ sizes))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)


def paired_difference(
    scores_a: Sequence[float] | np.ndarray,
    scores_b: Sequence[float] | np.ndarray,
    clusters: Sequence[Hashable],
) -> tuple[float, float, float]:
    """Mean of a - b over the items that count in both, with its 95 % interval (see `bootstrap_interval`).

    Both answered the same items: the difference is far more certain than its two means.
    """
    difference = np.asarray(scores_a, np.float64) - np.asarray(scores_b, np.float64)
    return mean(difference), *bootstrap_interval(difference, clusters)


def mean(scores: Sequence[float] | np.ndarray) -> float:
    """Mean of the scores that are not NaN; NaN if there is none."""
    scores = np.asarray(scores, np.float64)
    scores = scores[~np.isnan(scores)]
    return float(scores.mean()) if len(scores) else math.nan


def _labels(clusters: Sequence[Hashable]) -> np.ndarray:
    """Cluster names as integers, in the order they first appear (`np.unique` cannot sort tuples)."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(c, len(numbers)) for c in clusters], np.int64)
