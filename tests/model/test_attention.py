"""The back ends of attention agree, and independent questions are what a question of its own would be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm3_jax.camera import Camera
from vlm3_jax.checkpoint import hf, tiny
from vlm3_jax.data.packing import RowBudget, needs, pack
from vlm3_jax.data.samples import build_sample
from vlm3_jax.data.visibility import sparse_rows
from vlm3_jax.model import attention, block_pairs
from vlm3_jax.model.attention import BackEnd
from vlm3_jax.model.block_pairs import Pairs
from vlm3_jax.model.vlm import VLM
from vlm3_jax.processor.chat import ChatFormat
from vlm3_jax.processor.image import VisionSpec
from vlm3_jax.records import Record, View, encode_image
from vlm3_jax.tasks.base import Example


def _reference(q, k, v, mask):
    """Softmax attention in float64 numpy, one head at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    group = q.shape[2] // k.shape[2]
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            scores = q[b, :, h] @ k[b, :, h // group].T / np.sqrt(q.shape[-1])
            scores = np.where(mask[b], scores, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out[b, :, h] = weights / weights.sum(-1, keepdims=True) @ v[b, :, h // group]
    return out


@pytest.fixture
def inputs(rng):
    B, S, H, K, C = 2, 48, 4, 2, 8
    q, k, v = (rng.standard_normal((B, S, h, C)).astype(np.float32) for h in (H, K, K))
    segments = np.repeat([[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 0, 0]], 8, 1).astype(np.int32)
    questions = np.array([[*[0] * 5, *[1] * 6, *[2] * 5, *[0] * 12, *[1] * 12, *[0] * 8], [0] * 48], np.int32)
    ids = attention.Ids(segments, questions, np.broadcast_to(np.arange(S), (B, S)))
    order = np.arange(S)
    mask = (segments[:, :, None] == segments[:, None]) & (order[None, None] <= order[None, :, None])
    mask &= (questions[:, None] == 0) | (questions[:, None] == questions[:, :, None])
    return q, k, v, ids, mask


def _pairs(mask, block):
    B, S, _ = mask.shape
    seen = mask.reshape(B, S // block, block, S // block, block).any((2, 4))
    capacity = seen.sum((1, 2)).max() + 2
    return Pairs(*(jnp.stack(part) for part in zip(*(sparse_rows(row, capacity) for row in seen))))


@pytest.mark.parametrize("kind", ["dense", "chunks", "pairs"])
def test_back_ends_equal_the_formula(kind, inputs, monkeypatch):
    q, k, v, ids, mask = inputs
    if kind == "chunks":
        monkeypatch.setattr(attention, "MAX_PAIRS", 7 * 48)
    pairs = _pairs(mask & (ids.segments[..., None] > 0), 8) if kind == "pairs" else None
    ids = jax.tree.map(jnp.asarray, ids)

    @jax.jit
    def run(q, k, v, direction):
        out, pull = jax.vjp(attention.prepare(ids, pairs), q, k, v)
        return out, pull(direction)

    with jax.default_matmul_precision("highest"):
        direction = np.where(ids.segments[..., None, None] > 0, np.cos(np.arange(q.size)).reshape(q.shape), 0)
        out, gradients = run(q, k, v, direction.astype(np.float32))
    used = np.asarray(ids.segments) > 0
    np.testing.assert_allclose(np.asarray(out)[used], _reference(q, k, v, mask)[used], atol=2e-6)
    # The gradient along a random direction against a central difference in float64.
    step, rng = 1e-5, np.random.default_rng(1)
    for number, gradient in enumerate(gradients):
        moved = [np.asarray(x, np.float64) for x in (q, k, v)]
        along = rng.standard_normal(moved[number].shape)
        values = []
        for sign in (1, -1):
            shifted = list(moved)
            shifted[number] = moved[number] + sign * step * along
            values.append((_reference(*shifted, mask) * direction).sum())
        assert (values[0] - values[1]) / (2 * step) == pytest.approx((np.asarray(gradient) * along).sum(), rel=2e-4)


@pytest.mark.parametrize(("size", "bounded"), [(0.1, True), (1.0, True), (10.0, False), (40.0, False)])
def test_without_a_gradient_it_is_the_same_softmax(size, bounded, inputs):
    """Without the largest score so far, or with it where scores may be some hundred; who sees nothing gets 0."""
    q, k, v, ids, mask = inputs
    q = size * q
    limit = np.linalg.norm(q, axis=-1).max() * np.linalg.norm(k, axis=-1).max() * q.shape[-1] ** -0.5
    assert bounded == (limit < block_pairs.SAFE)
    pairs = _pairs(mask & (ids.segments[..., None] > 0), 8)
    with jax.default_matmul_precision("highest"):
        attend = attention.prepare(jax.tree.map(jnp.asarray, ids), pairs, back_end=BackEnd(forward_only=True))
        out = np.asarray(jax.jit(attend)(q, k, v))
    used = ids.segments > 0
    np.testing.assert_allclose(out[used], _reference(q, k, v, mask)[used], rtol=1e-5, atol=2e-6 * max(1, size))
    assert not out[~used].any()


def test_keys_that_all_point_away(inputs):
    """The lowest scores that do without the largest, and small values: not a digit is lost."""
    q, k, v, ids, mask = inputs
    k = np.broadcast_to(k[0, 0, 0], k.shape)
    k = k * np.sqrt(0.99 * block_pairs.SAFE * k.shape[-1] ** 0.5) / np.linalg.norm(k, axis=-1, keepdims=True)
    q, v = np.broadcast_to(-k[:, :, :1], q.shape), 1e-5 * v
    pairs = _pairs(mask & (ids.segments[..., None] > 0), 8)
    attend = attention.prepare(jax.tree.map(jnp.asarray, ids), pairs, back_end=BackEnd(forward_only=True))
    with jax.default_matmul_precision("highest"):
        out = np.asarray(jax.jit(attend)(q, k, v))
    used = ids.segments > 0
    np.testing.assert_allclose(out[used], _reference(q, k, v, mask)[used], rtol=1e-4, atol=1e-10)


@pytest.mark.parametrize("kind", ["dense", "chunks", "pairs", "forward only"])
@pytest.mark.parametrize("broken", [0, 1])
def test_nan_stays(kind, broken, inputs, monkeypatch):
    """Who is NaN, or sees a key that is, has not seen nothing: broken weights must not end in answers."""
    *arrays, ids, mask = inputs
    place = 1, 17
    arrays[broken][place] = np.nan
    if kind == "chunks":
        monkeypatch.setattr(attention, "MAX_PAIRS", 7 * 48)
    pairs = None if kind in ("dense", "chunks") else _pairs(mask & (ids.segments[..., None] > 0), 8)
    back_end = BackEnd(forward_only=kind == "forward only")
    attend = attention.prepare(jax.tree.map(jnp.asarray, ids), pairs, back_end=back_end)
    nan = np.isnan(np.asarray(jax.jit(attend)(*arrays)))
    expected = np.zeros(ids.segments.shape, bool)
    expected[place] = True
    if broken == 1:
        expected[1] = mask[1, :, 17]
    used = ids.segments > 0
    np.testing.assert_array_equal(nan[used].all((1, 2)), expected[used])
    np.testing.assert_array_equal(nan[used].any((1, 2)), expected[used])


def test_independent_questions_equal_single_ones(tmp_path, rng):
    """Logits of each question in one sample equal those of the question asked alone, whatever the back end."""
    folder = tiny.make(tmp_path / "model", "test")
    chat, spec = ChatFormat.from_dir(folder), VisionSpec.from_dir(folder)
    cfg, params = hf.load(folder)
    pixels = rng.integers(0, 256, (24, 40, 3), dtype=np.uint8)
    record = Record("r", (View(encode_image(pixels, "i"), Camera(30.0, 30.0, 20, 12, 40, 24)),))
    examples = [Example(f"how far is point {i} of {10**i}", f"{i}.{i}5", {}) for i in range(4)]
    together = build_sample(record, examples, chat, spec, mode="independent")
    alone = [build_sample(record, [e], chat, spec, mode="independent") for e in examples]
    pairs = RowBudget(256, 128, 64, pair_block=16, pairs=300, patch_pairs=200)
    blocks = -(-len(together.tokens) // pairs.pair_block)
    assert needs([together], pairs).pairs < blocks * (blocks + 1) // 2, "lists of blocks would save nothing"

    def logits(rows, budget, back_end=None):
        loaded = [[[layout.load(spec) for layout in s.images] for s in row] for row in rows]
        batch = pack(rows, loaded, budget, spec)
        with jax.default_matmul_precision("highest"):
            return np.asarray(jax.jit(lambda p, b: VLM(cfg, p, back_end=back_end).logits(b))(params, batch))

    expected = logits([[s] for s in alone], RowBudget(256, 128, 64))
    kernels = attention.BackEnd("pallas", "gpu", interpret=True)
    for budget, back_end in ((RowBudget(256, 128, 64), None), (pairs, None), (pairs, kernels)):
        # Second in its row, so that starts and segments are those of a packed row.
        found = logits([[alone[0], together]], budget, back_end)[0]
        start = len(alone[0].tokens)
        for number, sample in enumerate(alone):
            own = start + np.flatnonzero(together.questions == number + 1)
            np.testing.assert_allclose(
                found[own], expected[number, : len(sample.tokens)][sample.questions == 1], atol=1e-5
            )
