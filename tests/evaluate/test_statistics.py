import math

import numpy as np
import pytest
import scipy.stats

from vlm3_jax.evaluate.statistics import bootstrap_interval, mean, paired_difference
from vlm3_jax.train.held_out import answer_entropy


def clustered(rng, clusters=40, size=10):
    """Scores that share most of their spread within a cluster."""
    ids = np.repeat(np.arange(clusters), size)
    return rng.normal(size=clusters)[ids] + 0.2 * rng.normal(size=len(ids)), ids


def test_interval_agrees_with_scipy_on_cluster_means(rng):
    scores, ids = clustered(rng)
    low, high = bootstrap_interval(scores, ids, n=4000)
    means = scores.reshape(40, 10).mean(1)
    theirs = scipy.stats.bootstrap(
        (means,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert abs(low - theirs.low) < 0.05 * width
    assert abs(high - theirs.high) < 0.05 * width


def test_interval_is_wider_than_one_over_questions(rng):
    scores, ids = clustered(rng)
    low, high = bootstrap_interval(scores, ids)
    naive_low, naive_high = bootstrap_interval(scores, range(len(scores)))
    assert high - low > 2 * (naive_high - naive_low)


def test_interval_covers_the_true_mean():
    covered = 0
    for seed in range(100):
        scores, ids = clustered(np.random.default_rng(seed))
        low, high = bootstrap_interval(scores, ids, n=300)
        covered += low <= 0 <= high
    assert 86 <= covered <= 99


def test_clusters_of_unequal_size_weigh_by_their_questions():
    scores = np.tile([1.0] * 9 + [0.0], 50)
    ids = [(k, last) for k in range(50) for last in [False] * 9 + [True]]
    low, high = bootstrap_interval(scores, ids)
    assert 0.8 < low < mean(scores) == 0.9 < high < 1


def test_nan_scores_do_not_count(rng):
    scores, ids = clustered(rng, 20, 5)
    padded = np.concatenate([scores, np.full(30, np.nan)])
    padded_ids = np.concatenate([ids, np.repeat([3, 98, 99], 10)])
    assert bootstrap_interval(padded, padded_ids) == bootstrap_interval(scores, ids)
    assert mean(padded) == pytest.approx(scores.mean())
    assert all(map(math.isnan, bootstrap_interval([math.nan], ["a"])))
    assert math.isnan(mean([]))


def test_blocks_of_replicates_do_not_change_the_interval(rng, monkeypatch):
    scores, ids = clustered(rng)
    whole = bootstrap_interval(scores, ids)
    monkeypatch.setattr("vlm3_jax.evaluate.statistics._BLOCK", 4000)
    assert bootstrap_interval(scores, ids) == whole


def test_paired_difference_sees_what_two_intervals_hide(rng):
    a, ids = clustered(rng)
    b = a - 0.05 + 0.01 * rng.normal(size=len(a))
    difference, low, high = paired_difference(a, b, ids)
    assert difference == pytest.approx(0.05, abs=0.005)
    assert 0 < low < difference < high
    assert bootstrap_interval(a, ids)[0] < bootstrap_interval(b, ids)[1]
    assert paired_difference(a, a, ids) == (0, 0, 0)


def test_answer_entropy_of_many_answers_is_their_entropy(rng):
    """Words drawn independently: the entropy of whole answers over their mean length."""
    words = [(1, 9), (1, 2, 9), (3, 9), (3, 4, 4, 9)]
    shares = np.array([0.4, 0.3, 0.2, 0.1])
    answers = [words[i] for i in rng.choice(4, 20_000, p=shares)]
    exact = -(shares * np.log(shares)).sum() / (shares * [len(w) for w in words]).sum()
    assert answer_entropy(answers) == pytest.approx(exact, rel=0.02)


def test_answer_entropy_of_few_answers_is_not_too_low(rng):
    """Answers of six random digits are all different; what one knows from 200 of them is the digits' own entropy."""
    answers = [(*row, 10) for row in rng.integers(0, 10, (200, 6)).tolist()]
    assert answer_entropy(answers) == pytest.approx(6 * np.log(10) / 7, rel=0.2)
    assert answer_entropy(answers) >= 6 * np.log(10) / 7
    assert np.isnan(answer_entropy([(1, 2)]))
    assert answer_entropy([(1, 2)] * 50) == pytest.approx(0, abs=0.02)
