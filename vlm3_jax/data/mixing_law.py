"""From runs with drawn weights to better ones: held-out scores regressed on the logarithms of the shares.

As in RegMix (Liu et al. 2024, arXiv 2407.01492): mixtures are drawn from Dirichlet distributions around the weights
that one has, a small model is trained on each, its scores are regressed on the mixture, and of many more drawn mixtures
the best by the regression are averaged. That losses follow the shares smoothly, so that few runs do, is what the laws
of data mixing say (Ye et al. 2024, arXiv 2403.16952). The regression is ridge on the logarithms of the shares, with
their squares where these predict runs that were left out better; its penalty is chosen by leaving out a run at a time.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

# Smaller shares than this cannot be told apart by a short run, and none has no logarithm.
LEAST = 0.002
# How narrowly drawn mixtures lie around the weights that one has: Dirichlet parameters a component, on average.
STRENGTHS = (0.5, 4.0)
CANDIDATES, BEST = 20_000, 50
PENALTIES = np.geomspace(1e-4, 1e4, 49)
FEATURES = {"log shares": 1, "log shares and their squares": 2}


def draw_shares(own: Sequence[float], count: int, seed: int, first: int = 0) -> np.ndarray:
    """Mixtures [count, K], the first of all being `own` [K]; draw n depends on (seed, first + n) only.

    They lie around halfway between the own shares and even ones, so that every component is tried at many shares.
    """
    drawn = [_drawn(own, np.random.default_rng([seed, number]), 1)[0] for number in range(first, first + count)]
    if first == 0:
        drawn[0] = _floored(np.asarray(own, np.float64) / np.sum(own))
    return np.array(drawn).reshape(count, len(own))


def _drawn(own: Sequence[float], rng: np.random.Generator, count: int) -> np.ndarray:
    own = _floored(np.asarray(own, np.float64) / np.sum(own))
    strength = np.exp(rng.uniform(*np.log(STRENGTHS), (count, 1)))
    # Gamma variates over their sum are a draw from a Dirichlet distribution.
    drawn = rng.gamma(strength * len(own) * (own + 1 / len(own)) / 2) + 1e-300
    return _floored(drawn / drawn.sum(1, keepdims=True))


def _floored(shares: np.ndarray) -> np.ndarray:
    shares = np.maximum(shares, LEAST)
    return shares / shares.sum(-1, keepdims=True)


@dataclasses.dataclass(frozen=True, eq=False)
class Law:
    """A regression of M scores on mixtures of K components.

    `features`: one of FEATURES. `r2` [M]: the part of the variance that it explains of runs that were left out; 0 or
    less: the score does not follow the shares.
    """

    features: str
    r2: np.ndarray
    centre: np.ndarray
    scale: np.ndarray
    mean: np.ndarray
    slopes: np.ndarray

    def predict(self, shares: np.ndarray) -> np.ndarray:
        """Scores [N, M] of mixtures [N, K]."""
        return (_features(shares, self.features) - self.centre) / self.scale @ self.slopes + self.mean


def fit(shares: np.ndarray, scores: np.ndarray) -> Law:
    """The law that predicts runs that are left out best; shares [N, K], scores [N, M]."""
    return min((_ridge(shares, scores, name) for name in FEATURES), key=lambda law: -law.r2.mean())


def _features(shares: np.ndarray, name: str) -> np.ndarray:
    logs = np.log(np.asarray(shares, np.float64))
    return np.concatenate([logs**power for power in range(1, FEATURES[name] + 1)], axis=1)


def _ridge(shares: np.ndarray, scores: np.ndarray, name: str) -> Law:
    """Ridge on standardised features; the error of a run that is left out is its residual over 1 - leverage."""
    x, scores = _features(shares, name), np.asarray(scores, np.float64)
    centre, scale = x.mean(0), np.maximum(x.std(0), 1e-12)
    mean, count = scores.mean(0), len(x)
    u, s, vt = np.linalg.svd((x - centre) / scale, full_matrices=False)
    rotated = u.T @ (scores - mean)
    left_out = []
    for penalty in PENALTIES:
        kept = s**2 / (s**2 + penalty)
        leverage = (u**2 * kept).sum(1) + 1 / count
        residual = scores - mean - u @ (kept[:, None] * rotated)
        left_out.append((residual**2 / np.maximum(1 - leverage, 1e-9)[:, None] ** 2).mean(0))
    best = np.argmin(left_out, axis=0)
    # Without any features a run that is left out is predicted by the mean of the others.
    none = scores.var(0) * (count / (count - 1)) ** 2
    # Scores that are all alike leave nothing to explain.
    varies = none > (1e-9 * np.abs(mean)) ** 2
    r2 = np.where(varies, 1 - np.min(left_out, axis=0) / np.where(varies, none, 1), 0.0)
    slopes = vt.T @ (s[:, None] / (s[:, None] ** 2 + PENALTIES[best]) * rotated)
    return Law(name, r2, centre, scale, mean, slopes)


def propose(law: Law, own: Sequence[float], seed: int) -> np.ndarray:
    """The mean of the best of many mixtures [K], drawn as those of the runs, so that the law is asked where it was fit.

    Best is the lowest mean of the predicted scores.
    """
    drawn = _drawn(own, np.random.default_rng([seed]), CANDIDATES)
    best = np.argsort(law.predict(drawn).mean(1))[:BEST]
    return drawn[best].mean(0)
