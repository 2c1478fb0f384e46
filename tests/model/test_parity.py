"""Logits equal transformers', and every subtle piece is seen to matter: switched off, the gate fails."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.model import negatives
from tests.model import reference as ref

ROWS = {
    "one image": [[(24, 40)]],
    "several images, one row": [[(64, 24), (16, 48), (40, 40)]],
    "text only and images": [[], [(48, 16)], [(20, 90), (33, 17)]],
}


# Every model with the largest of the rows, all rows with one model; the others by make test-slow.
QUICK = {*itertools.product(ref.KINDS, ["text only and images"]), *itertools.product(["plain"], ROWS)}
CASES = [
    pytest.param(*case, marks=[pytest.mark.slow] * (case not in QUICK)) for case in itertools.product(ref.KINDS, ROWS)
]


@pytest.mark.parametrize(("kind", "sizes"), CASES)
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


@pytest.mark.parametrize("piece", negatives.PIECES)
def test_gate_fails_without(piece):
    kl, difference = negatives.measure(piece)
    assert kl > 1e-9
    assert difference > 1e-4


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
