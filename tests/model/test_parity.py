"""Logits equal transformers', and every subtle piece is seen to matter: switched off, the gate fails."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.model import reference as ref
from vlm3_jax.model import rope, text, vision
from vlm3_jax.model.layers import layer_norm

ROWS = {
    "one image": [[(24, 40)]],
    "several images, one row": [[(64, 24), (16, 48), (40, 40)]],
    "text only and images": [[], [(48, 16)], [(20, 90), (33, 17)]],
}


@pytest.mark.parametrize("kind", list(ref.KINDS))
@pytest.mark.parametrize("sizes", list(ROWS))
def test_logits_equal_transformers(kind, sizes, rng):
    pair = ref.pair(kind)
    samples = [ref.row(rng, s) for s in ROWS[sizes]]
    # All samples packed into one row and each in a row of its own; an empty row beside them.
    packed = ref.our_logits(pair, ref.to_batch(pair, [samples, []]))[0]
    unpacked = ref.our_logits(pair, ref.to_batch(pair, [[s] for s in samples]))
    start = 0
    for number, sample in enumerate(samples):
        theirs = ref.their_logits(pair, sample)
        for ours in (packed[start : start + len(theirs)], unpacked[number, : len(theirs)]):
            kl, difference = ref.gate(ours, theirs)
            assert 0 <= kl <= 1e-9
            assert difference <= 1e-4
        start += len(theirs)


def test_bfloat16_is_as_close_to_float32_as_transformers(rng):
    pair = ref.pair("plain")
    samples = [ref.row(rng, [(48, 32), (24, 56)]) for _ in range(4)]
    ours = ref.our_logits(pair, ref.to_batch(pair, [[s] for s in samples]), jnp.bfloat16)
    kl_ours, kl_theirs = [], []
    for number, sample in enumerate(samples):
        exact = ref.their_logits(pair, sample)
        try:
            rounded = ref.their_logits(pair, sample, torch.bfloat16)
        finally:
            ref.pair.cache_clear()
            pair = ref.pair("plain")
        kl_ours.append(ref.gate(ours[number, : len(exact)], exact)[0])
        kl_theirs.append(ref.gate(rounded, exact)[0])
    assert np.mean(kl_ours) <= 1.2 * np.mean(kl_theirs)
    assert np.mean(kl_ours) > 1e-9, "bfloat16 was not used"


def _contiguous_mrope(config):
    frequencies, _ = real_text_frequencies(config)
    return frequencies, np.repeat(np.arange(3), config.mrope_section)


def _merger_norm_swapped(self, x, unit, joined_norm):
    """The norm of the main merger after joining the patches."""
    B, P, D = x.shape
    x = x.reshape(B, P // unit, unit * D)
    tile = x.shape[-1] // self.norm[...].shape[0]
    x = layer_norm(x, jnp.tile(self.norm[...], tile), jnp.tile(self.norm_bias[...], tile))
    x = jax.nn.gelu(self.linear("fc1", x, "bvi,ij->bvj"), approximate=False)
    return self.linear("fc2", x, "bvi,ij->bvj")


def _no_rotation(config, positions):
    return rope._cos_sin(jnp.zeros((*positions.shape[:2], config.head_dim // 2)), jnp.float32)


real_text_frequencies, real_gelu = rope.text_frequencies, jax.nn.gelu
real_vision_call = vision.VisionTower.__call__


def _swap_taps(self, *args):
    tokens, taps = real_vision_call(self, *args)
    return tokens, taps[::-1]


def _drop_taps(self, *args):
    tokens, taps = real_vision_call(self, *args)
    return tokens, jnp.zeros_like(taps)


PATCHES = {
    "interleaved M-RoPE": (rope, "text_frequencies", _contiguous_mrope),
    "vision rotary": (vision.rope, "vision_rotary", lambda v, p: _no_rotation(v, p)),
    "taps": (vision.VisionTower, "__call__", _drop_taps),
    "order of the taps": (vision.VisionTower, "__call__", _swap_taps),
    "exact GELU of the mergers": (jax.nn, "gelu", lambda x, approximate: real_gelu(x, approximate=True)),
    "tanh GELU of the vision MLP": (jax.nn, "gelu", lambda x, approximate: real_gelu(x, approximate=False)),
    "place of the merger norm": (vision.Merger, "__call__", _merger_norm_swapped),
    "q and k norms": (text.TextLayer, "__call__", None),
}  # fmt: skip


def _without_qk_norm(monkeypatch):
    real = text.rms_norm
    monkeypatch.setattr(text, "rms_norm", lambda x, weight, eps: x if x.ndim == 4 else real(x, weight, eps))


@pytest.fixture(scope="module")
def passing():
    """A pair, a batch of one sample and transformers' logits, for which the gate passes as it is."""
    pair = ref.pair("plain")
    sample = ref.row(np.random.default_rng(3), [(40, 24), (16, 56)])
    theirs = ref.their_logits(pair, sample)
    batch = ref.to_batch(pair, [[sample]])
    assert ref.passes(ref.our_logits(pair, batch)[0, : len(theirs)], theirs)
    return pair, batch, theirs


@pytest.mark.parametrize("piece", list(PATCHES))
def test_gate_fails_without(piece, passing, monkeypatch):
    pair, batch, theirs = passing
    target, name, replacement = PATCHES[piece]
    if replacement is None:
        _without_qk_norm(monkeypatch)
    else:
        monkeypatch.setattr(target, name, replacement)
    assert not ref.passes(ref.our_logits(pair, batch)[0, : len(theirs)], theirs)


def _nearest(batch):
    index, weight = batch["table_index"], batch["table_weight"]
    best = weight.argmax(-1)[..., None]
    return {"table_index": np.repeat(np.take_along_axis(index, best, -1), 4, -1)}


INPUTS = {
    "M-RoPE of images": lambda b: {"positions": np.broadcast_to(np.arange(b["tokens"].shape[1]), b["positions"].shape)},
    "image separation": lambda b: {"patch_images": np.minimum(b["patch_images"], 1)},
    "interpolation of the position table": _nearest,
    "rows and columns": lambda b: {"patch_positions": b["patch_positions"][..., ::-1].copy()},
}


@pytest.mark.parametrize("piece", list(INPUTS))
def test_gate_fails_without_input(piece, passing):
    pair, batch, theirs = passing
    changed = batch | INPUTS[piece](batch)
    assert not ref.passes(ref.our_logits(pair, changed)[0, : len(theirs)], theirs)


def test_float_patches_of_a_still_image_equal_the_folded_ones(rng):
    """Both temporal slices of a still image hold the same pixels: summing their weights changes nothing."""
    pair = ref.pair("plain")
    sample = ref.row(rng, [(32, 40)])
    batch = ref.to_batch(pair, [[sample]])
    folded = ref.our_logits(pair, batch)
    pixels = ref.their_inputs(pair, sample)["pixel_values"].numpy()
    whole = np.zeros((1, batch["patches"].shape[1], pixels.shape[1]), np.float32)
    whole[0, : len(pixels)] = pixels
    unfolded = ref.our_logits(pair, batch | {"patches": whole})
    n = len(ref.to_sample(sample, pair.spec).tokens)
    np.testing.assert_allclose(unfolded[0, :n], folded[0, :n], atol=1e-5)


def test_neighbours_are_bit_equal(rng):
    """Other tokens and pixels of one sample leave the logits of the others in its row bit-equal."""
    pair = ref.pair("plain")
    first, second, third = (ref.row(rng, s) for s in ([(24, 24)], [(40, 16)], []))
    changed = [p.copy() for p in second]
    changed[0] = (changed[0] + 7) % 280
    changed[1] = 255 - changed[1]
    before = ref.our_logits(pair, ref.to_batch(pair, [[first, second, third], []]))[0]
    after = ref.our_logits(pair, ref.to_batch(pair, [[first, changed, third], []]))[0]
    sizes = [len(ref.to_sample(s, pair.spec).tokens) for s in (first, second, third)]
    middle = slice(sizes[0], sizes[0] + sizes[1])
    outside = np.ones(len(before), bool)
    outside[middle] = False
    outside[sum(sizes) :] = False
    np.testing.assert_array_equal(before[outside], after[outside])
    assert np.abs(before[middle] - after[middle]).max() > 1e-3
