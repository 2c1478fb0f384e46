"""Every subtle piece of the model, switched off one at a time: the gate must see it (docs/parity.md says how well)."""

import contextlib
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from tests.model import reference as ref
from vlm3_jax.model import moe, rope, text, vision
from vlm3_jax.model.layers import layer_norm

_text_frequencies, _gelu, _vision_call = rope.text_frequencies, jax.nn.gelu, vision.VisionTower.__call__
_rms_norm, _route, _apply = text.rms_norm, moe.route, moe._apply


def _contiguous_mrope(config):
    frequencies, _ = _text_frequencies(config)
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


def _taps(change):
    def call(self, *args, **kwargs):
        tokens, taps, told = _vision_call(self, *args, **kwargs)
        return tokens, change(taps), told

    return call


# piece: (object, attribute, replacement)
PATCHES = {
    "interleaved M-RoPE": (rope, "text_frequencies", _contiguous_mrope),
    "vision rotary": (rope, "vision_rotary", _no_rotation),
    "taps": (vision.VisionTower, "__call__", _taps(jnp.zeros_like)),
    "order of the taps": (vision.VisionTower, "__call__", _taps(lambda taps: taps[::-1])),
    "exact GELU of the mergers": (jax.nn, "gelu", lambda x, approximate: _gelu(x, approximate=True)),
    "tanh GELU of the vision MLP": (jax.nn, "gelu", lambda x, approximate: _gelu(x, approximate=False)),
    "place of the merger norm": (vision.Merger, "__call__", _merger_norm_swapped),
    "q and k norms": (text, "rms_norm", lambda x, weight, eps: x if x.ndim == 4 else _rms_norm(x, weight, eps)),
}


def _nearest(batch):
    index, weight = batch["table_index"], batch["table_weight"]
    best = weight.argmax(-1)[..., None]
    return {"table_index": np.repeat(np.take_along_axis(index, best, -1), 4, -1)}


# piece: what is changed in the batch
INPUTS = {
    "M-RoPE of images": lambda b: {"positions": np.broadcast_to(np.arange(b["tokens"].shape[1]), b["positions"].shape)},
    "image separation": lambda b: {"patch_images": np.minimum(b["patch_images"], 1)},
    "interpolation of the position table": _nearest,
    "rows and columns": lambda b: {"patch_positions": b["patch_positions"][..., ::-1].copy()},
}


def _sharper(logits, k):
    weights, experts = _route(logits, k)
    return weights**2 / (weights**2).sum(-1, keepdims=True), experts


EXPERTS = {
    "expert weights scaled to 1": (moe, "route", lambda logits, k: jax.lax.top_k(jax.nn.softmax(logits, -1), k)),
    "router softmax": (moe, "route", _sharper),
    "number of experts": (moe, "route", lambda logits, k: _route(logits, k - 1)),
    "gate and up of experts": (moe, "_apply", lambda x, w, e, matrix, out: _apply(x, w, e, matrix[:, :, ::-1], out)),
}
PIECES = (*PATCHES, *INPUTS, *EXPERTS)


@functools.cache
def _passing(kind: str):
    """A pair, a batch of one sample with two images, and transformers' logits, for which the gate passes as it is."""
    pair = ref.pair(kind)
    sample = ref.row(np.random.default_rng(3), [(40, 24), (16, 56)])
    theirs = ref.their_logits(pair, sample)
    batch = ref.to_batch(pair, [[sample]])
    assert ref.passes(ref.our_logits(pair, batch)[0, : len(theirs)], theirs)
    return pair, batch, theirs


def measure(piece: str) -> tuple[float, float]:
    """(mean KL, largest difference of logits) of the model without this piece."""
    pair, batch, theirs = _passing("moe" if piece in EXPERTS else "plain")
    change = contextlib.nullcontext()
    if piece in INPUTS:
        batch = batch | INPUTS[piece](batch)
    else:
        change = mock.patch.object(*(PATCHES | EXPERTS)[piece])
    with change:
        return ref.gate(ref.our_logits(pair, batch)[0, : len(theirs)], theirs)
