"""Weights proposed from scores of drawn mixtures: better where scores follow the weights, none where they do not."""

import numpy as np
import pytest

from vlm3_jax.data import mixing_law

OWN = [0.7, 0.2, 0.05, 0.05]
# What each of three held-out sets gains from each component: losses fall exponentially with shares (Ye et al. 2024).
GAINS = np.array([[1.0, 0.2, 3.0, 0.0], [0.0, 2.0, 0.5, 0.0], [0.3, 0.0, 4.0, 0.0]])


def losses(shares, noise=0.0, seed=0):
    clean = 0.5 + np.exp(-np.asarray(shares) @ GAINS.T)
    return clean + noise * np.random.default_rng(seed).normal(size=clean.shape)


def test_draws_are_mixtures_around_the_own_one():
    drawn = mixing_law.draw_shares(OWN, 200, 3)
    np.testing.assert_allclose(drawn.sum(1), 1)
    np.testing.assert_allclose(drawn[0], OWN)
    assert drawn.min() > 0.9 * mixing_law.LEAST
    # Every component is tried at small and at large shares, and on average they lie between the own and even ones.
    assert (drawn.min(0) < 0.01).all()
    assert (drawn.max(0) > 0.3).all()
    np.testing.assert_allclose(drawn.mean(0), (np.array(OWN) + 0.25) / 2, atol=0.05)
    # Draw n is the same however many there are.
    np.testing.assert_array_equal(mixing_law.draw_shares(OWN, 5, 3, first=7), drawn[7:12])
    assert not np.allclose(mixing_law.draw_shares(OWN, 5, 4)[1], drawn[1])


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_the_proposal_is_better_and_near_the_best_there_is(noise):
    drawn = mixing_law.draw_shares(OWN, 24, 0)
    law = mixing_law.fit(drawn, losses(drawn, noise))
    assert law.r2.shape == (3,)
    assert law.r2.mean() > 0.8
    found = mixing_law.propose(law, OWN, 0)
    assert found.sum() == pytest.approx(1)
    own, proposed = losses([OWN, found]).mean(1)
    best = losses(mixing_law.draw_shares(OWN, 5000, 9)).mean(1).min()
    assert proposed < losses(drawn).mean(1).min() + 0.01
    # At least four fifths of what there is to gain; the component that helps nothing gets least.
    assert own - proposed > 0.8 * (own - best)
    assert found.argmin() == 3
    # Out of sample the law predicts what the score is.
    fresh = mixing_law.draw_shares(OWN, 300, 5)
    error = law.predict(fresh) - losses(fresh)
    assert (error.var(0) < 0.3 * losses(fresh).var(0)).all()


def test_scores_that_do_not_follow_the_weights_are_told_apart():
    drawn = mixing_law.draw_shares(OWN, 24, 0)
    for seed in range(5):
        law = mixing_law.fit(drawn, np.random.default_rng(seed).normal(size=(24, 3)))
        assert law.r2.mean() < 0.3
    flat = mixing_law.fit(drawn, np.full((24, 2), 1.5))
    assert (flat.r2 <= 0).all()
    np.testing.assert_allclose(flat.predict(drawn), 1.5)


def test_the_explained_part_is_that_of_runs_really_left_out():
    """Leaving each run out and fitting anew with the same penalty gives the errors that r2 is made of."""
    drawn = mixing_law.draw_shares(OWN, 12, 1)
    scores = losses(drawn, 0.05)[:, :1]
    found = mixing_law._ridge(drawn, scores, "log shares")
    x = np.log(drawn)
    x = (x - x.mean(0)) / x.std(0)
    by_penalty = []
    for penalty in mixing_law.PENALTIES:
        errors = []
        for out in range(12):
            rest = np.arange(12) != out
            # The intercept is not penalised; features are standardised once, as in the fit.
            a = np.concatenate([x[rest], np.ones((11, 1))], 1)
            weights = np.linalg.solve(a.T @ a + penalty * np.diag([1, 1, 1, 1, 0]), a.T @ scores[rest])
            errors.append(scores[out] - np.append(x[out], 1) @ weights)
        by_penalty.append(np.mean(np.square(errors)))
    none = np.mean([(scores[n] - np.delete(scores, n).mean()) ** 2 for n in range(12)])
    assert found.r2[0] == pytest.approx(1 - min(by_penalty) / none, rel=1e-6)
