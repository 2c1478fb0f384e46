"""Intervals and paired differences of mean scores, and the loss of a model that has learnt nothing from the images."""

import collections
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
    statistic is the mean over all questions of the drawn images. NaN scores do not count. (nan, nan) if none counts.
    """
    scores = np.asarray(scores, np.float64)
    cluster = _labels(clusters)
    counts = ~np.isnan(scores)
    totals = np.bincount(cluster, np.where(counts, scores, 0.0))
    sizes = np.bincount(cluster, counts)
    totals, sizes = totals[sizes > 0], sizes[sizes > 0]
    if not len(sizes):
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
    n: int = 1000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Mean of a - b over the items that count in both, with its 95 % interval (see `bootstrap_interval`).

    Both answered the same items: the difference is far more certain than its two means.
    """
    difference = np.asarray(scores_a, np.float64) - np.asarray(scores_b, np.float64)
    return mean(difference), *bootstrap_interval(difference, clusters, n, seed)


def mean(scores: Sequence[float] | np.ndarray) -> float:
    """Mean of the scores that are not NaN; NaN if there is none."""
    scores = np.asarray(scores, np.float64)
    scores = scores[~np.isnan(scores)]
    return float(scores.mean()) if len(scores) else math.nan


def answer_entropy(answers: Sequence[Sequence[int]], given: str = "position") -> float:
    """Nats per supervised token of the answers' own marginal distribution: the loss of a model that ignores its input.

    `answers` holds each answer's supervised tokens, the end included. With n_k answers that have a k-th token,

    - given "position": sum_k n_k H(token k) / sum_k n_k. The model knows only which token of the answer it writes.
    - given "prefix": sum_k n_k H(token k | tokens before it) / sum_k n_k, by the chain rule the entropy of whole
      answers over their mean length. A language model sees its own prefix, so this lower value is where a blind one
      settles; estimated from few answers it is too low (never above ln(number of answers) / mean length).

    A training loss at this value has learnt nothing from the images. NaN without answers.
    """
    if given not in ("position", "prefix"):
        raise ValueError(f"unknown condition {given!r}; choose 'position' or 'prefix'")
    contexts: dict[Hashable, collections.Counter] = collections.defaultdict(collections.Counter)
    for tokens in answers:
        for k, token in enumerate(tokens):
            contexts[k if given == "position" else tuple(tokens[:k])][token] += 1
    total, nats = 0, 0.0
    for counter in contexts.values():
        size = counter.total()
        nats -= sum(c * math.log(c / size) for c in counter.values())
        total += size
    return nats / total if total else math.nan


def _labels(clusters: Sequence[Hashable]) -> np.ndarray:
    """Cluster names as integers, in the order they first appear (`np.unique` cannot sort tuples)."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(c, len(numbers)) for c in clusters], np.int64)
