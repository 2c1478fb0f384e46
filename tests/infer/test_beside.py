"""Attention to the shared prefix is a softmax, by the largest score or by a bound of it, whole or in parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm3_jax.infer import beside

B, Q, K, X, C, S = 2, 3, 4, 6, 32, 50


@pytest.mark.parametrize(("size", "bounded"), [(0.1, True), (1.0, True), (8.0, False), (20.0, False)])
@pytest.mark.parametrize("scores", [1 << 21, 400])
def test_shared_attention_is_a_softmax(monkeypatch, size, bounded, scores):
    """Queries whose scores may be beyond what a bound is good for, up to some hundred, find the largest score."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=shape).astype(np.float32) for shape in ((B, Q, K, X, C), (B, K, C, S), (B, K, S, C)))
    q, seen = size * q, rng.random((B, S)) < 0.8
    limit = np.linalg.norm(q, axis=-1).max() * np.linalg.norm(k, axis=-2).max() * C**-0.5
    monkeypatch.setattr(beside, "_MOST_SCORES", {"cpu": scores})
    largest, total, values = jax.jit(beside._shared)(*map(jnp.asarray, (q, k, v, seen)))
    assert bounded == (limit < beside.SAFE)
    exact = np.einsum("bqkxc,bkct->bqkxt", q.astype(np.float64), k.astype(np.float64)) * C**-0.5
    exact = np.where(seen[:, None, None, None], exact, -np.inf)
    # The reference is the largest score itself, or above it.
    at_largest = np.isclose(largest, exact.max(-1, keepdims=True), rtol=1e-5, atol=1e-4)
    assert at_largest.all() != bounded
    assert (largest >= exact.max(-1, keepdims=True) - 1e-3).all()
    weights = np.exp(exact - exact.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(values / total, np.einsum("bqkxt,bktc->bqkxc", weights, v), rtol=2e-4, atol=2e-5)
