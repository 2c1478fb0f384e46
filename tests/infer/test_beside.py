"""Attention to the shared prefix is a softmax, with its largest score or without, whole or in parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm3_jax.infer import beside

B, Q, K, X, C, S = 2, 3, 4, 6, 32, 50


@pytest.mark.parametrize(("size", "bounded"), [(0.1, True), (1.0, True), (8.0, False), (20.0, False)])
@pytest.mark.parametrize("scores", [1 << 21, 400])
def test_shared_attention_is_a_softmax(monkeypatch, size, bounded, scores):
    """Queries whose scores may be beyond what can do without, up to some hundred, find the largest score."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=shape).astype(np.float32) for shape in ((B, Q, K, X, C), (B, K, C, S), (B, K, S, C)))
    q, seen = size * q, rng.random((B, S)) < 0.8
    limit = np.linalg.norm(q, axis=-1).max() * np.linalg.norm(k, axis=-2).max() * C**-0.5
    monkeypatch.setattr(beside, "_MOST_SCORES", {"cpu": scores})
    largest, total, values = jax.jit(beside._shared)(*map(jnp.asarray, (q, k, v, seen)))
    assert bounded == (limit < beside.SAFE)
    exact = np.einsum("bqkxc,bkct->bqkxt", q.astype(np.float64), k.astype(np.float64)) * C**-0.5
    exact = np.where(seen[:, None, None, None], exact, -np.inf)
    np.testing.assert_allclose(largest, 0 if bounded else exact.max(-1, keepdims=True), rtol=1e-5, atol=1e-4)
    weights = np.exp(exact - exact.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(values / total, np.einsum("bqkxt,bktc->bqkxc", weights, v), rtol=2e-4, atol=2e-5)


def test_keys_that_all_point_away():
    """The lowest scores that do without the largest, and small values: not a digit is lost."""
    rng = np.random.default_rng(0)
    k = np.broadcast_to(rng.normal(size=(C, 1)), (B, K, C, S)).astype(np.float32)
    k *= np.sqrt(0.99 * beside.SAFE * C**0.5) / np.linalg.norm(k, axis=-2, keepdims=True)
    q = np.broadcast_to(-k[:, None, :, None, :, 0], (B, Q, K, X, C))
    v = (1e-5 * rng.normal(size=(B, K, S, C))).astype(np.float32)
    seen = np.arange(S) < np.array([[20], [0]])
    largest, total, values = map(np.asarray, jax.jit(beside._shared)(q, k, v, seen))
    expected = np.broadcast_to(v[0, :, :20].mean(1)[:, None], (Q, K, X, C))
    np.testing.assert_allclose(values[0] / total[0], expected, rtol=1e-4, atol=1e-10)
    # Beside a prefix without a token only the own part counts, however low its scores.
    own = np.full_like(total, -200), np.ones_like(total), np.full_like(values, 3)
    np.testing.assert_array_equal(beside._join([(largest, total, values), own])[1], 3)
