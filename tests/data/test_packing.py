"""Packing: every array of a row gives back what went into it."""

import numpy as np
import pytest

from vlm3_jax import records
from vlm3_jax.camera import Camera
from vlm3_jax.data.packing import Needs, RowBudget, batch_stats, check_fits, fits, lengths, needs, pack
from vlm3_jax.data.samples import Sample
from vlm3_jax.errors import BadRecord
from vlm3_jax.model import flops
from vlm3_jax.processor import image

SPEC = image.VisionSpec(4, 2, 2, 64, 16_384, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 8)
BUDGET = RowBudget(tokens=90, patches=112, targets=20)


def random_sample(rng, sizes, n_text=8, n_targets=3, component=0, name="s"):
    """A sample with images of the given (w, h) sizes, a text token between them, everything else random."""
    layouts = []
    for width, height in sizes:
        ref = records.encode_image(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), "x.png")
        layouts.append(image.image_layout(records.View(ref, Camera(9.0, 9.0, 3, 3, width, height)), SPEC))
    slots, n = [], 1
    for layout in layouts:
        slots.append(np.arange(n, n + layout.n_visual))
        n += layout.n_visual + 1
    n += n_text
    return Sample(
        id=name,
        component=component,
        tokens=rng.integers(1, 400, n).astype(np.int32),
        positions=rng.integers(1, 99, (3, n)).astype(np.int32),
        questions=rng.integers(0, 4, n).astype(np.int32),
        visual_slot=np.concatenate([np.zeros(0, np.int32), *slots]).astype(np.int32),
        images=tuple(layouts),
        target_slot=np.sort(rng.choice(n - 1, n_targets, replace=False)).astype(np.int32),
        target_tokens=rng.integers(1, 400, n_targets).astype(np.int32),
        target_weight=rng.uniform(1, 3, n_targets).astype(np.float32),
        target_later=rng.random(n_targets) < 0.5,
    )


def load(samples):
    return [[layout.load(SPEC) for layout in s.images] for s in samples]


def make_rows(rng):
    return [
        [random_sample(rng, [(16, 8), (8, 24)], component=1), random_sample(rng, []), random_sample(rng, [(24, 16)])],
        [],
        [random_sample(rng, [], component=3)],
        [random_sample(rng, [(8, 8)], component=2)],
    ]


def check_row(row, samples, pixels, budget):
    S, P = budget.tokens, budget.patches
    V = P // 4
    start = patch = target = n_images = 0
    for segment, (sample, arrays) in enumerate(zip(samples, pixels, strict=True), 1):
        mine = np.flatnonzero(row["segments"] == segment)
        np.testing.assert_array_equal(mine, np.arange(start, start + len(sample.tokens)))
        np.testing.assert_array_equal(row["tokens"][mine], sample.tokens)
        np.testing.assert_array_equal(row["positions"][:, mine], sample.positions)
        np.testing.assert_array_equal(row["questions"][mine], sample.questions)
        here = slice(target, target + len(sample.target_tokens))
        np.testing.assert_array_equal(row["target_slot"][here] - start, sample.target_slot)
        np.testing.assert_array_equal(row["target_tokens"][here], sample.target_tokens)
        np.testing.assert_array_equal(row["target_weight"][here], sample.target_weight)
        np.testing.assert_array_equal(row["target_group"][here] // 2, sample.component)
        np.testing.assert_array_equal(row["target_group"][here] % 2, sample.target_later)
        visual = row["visual_index"][mine]
        np.testing.assert_array_equal(np.flatnonzero(visual < V), sample.visual_slot)
        np.testing.assert_array_equal(visual[visual < V], patch // 4 + np.arange(len(sample.visual_slot)))
        for layout, array in zip(sample.images, arrays, strict=True):
            n_images += 1
            here_patches = np.flatnonzero(row["patch_images"] == n_images)
            np.testing.assert_array_equal(here_patches, np.arange(patch, patch + layout.n_patches))
            np.testing.assert_array_equal(row["patches"][here_patches], array)
            np.testing.assert_array_equal(
                row["patch_positions"][here_patches], image.patch_positions(layout.grid, SPEC)
            )
            index, weight = image.table_lookup(layout.grid, SPEC)
            np.testing.assert_array_equal(row["table_index"][here_patches], index)
            np.testing.assert_array_equal(row["table_weight"][here_patches], weight)
            patch += layout.n_patches
        start += len(sample.tokens)
        target += len(sample.target_tokens)
    for name in ("tokens", "segments", "questions"):
        assert not row[name][start:].any()
    assert (row["visual_index"][start:] == V).all()
    for name in ("patches", "patch_images", "table_index", "table_weight"):
        assert not row[name][patch:].any()
    assert not row["target_weight"][target:].any()
    # visual_slot is the inverse of visual_index.
    used = np.flatnonzero(row["visual_slot"] < S)
    np.testing.assert_array_equal(used, np.arange(patch // 4))
    np.testing.assert_array_equal(row["visual_index"][row["visual_slot"][used]], used)
    assert (row["visual_slot"][patch // 4 :] == S).all()


def test_rows_give_back_their_samples(rng):
    rows = make_rows(rng)
    pixels = [load(samples) for samples in rows]
    batch = pack(rows, pixels, BUDGET, SPEC)
    for number, samples in enumerate(rows):
        check_row({name: array[number] for name, array in batch.items()}, samples, pixels[number], BUDGET)
    shapes = {name: (array.dtype.name, array.shape) for name, array in batch.items()}
    assert shapes == {
        "tokens": ("int32", (4, 90)),
        "positions": ("int32", (4, 3, 90)),
        "segments": ("int32", (4, 90)),
        "questions": ("int32", (4, 90)),
        "visual_index": ("int32", (4, 90)),
        "visual_slot": ("int32", (4, 28)),
        "patches": ("uint8", (4, 112, 48)),
        "patch_images": ("int32", (4, 112)),
        "patch_positions": ("int32", (4, 112, 2)),
        "table_index": ("int32", (4, 112, 4)),
        "table_weight": ("float32", (4, 112, 4)),
        "target_slot": ("int32", (4, 20)),
        "target_tokens": ("int32", (4, 20)),
        "target_weight": ("float32", (4, 20)),
        "target_group": ("int32", (4, 20)),
    }


def test_failed_pixels_mask_their_sample_only(rng):
    rows = make_rows(rng)
    pixels = [load(samples) for samples in rows]
    whole = pack(rows, pixels, BUDGET, SPEC)
    pixels[0][0][1] = None
    broken = pack(rows, pixels, BUDGET, SPEC)
    assert (broken["target_weight"][0, :3] == 0).all()
    np.testing.assert_array_equal(broken["target_weight"][0, 3:], whole["target_weight"][0, 3:])
    np.testing.assert_array_equal(broken["target_weight"][1:], whole["target_weight"][1:])
    for name in set(whole) - {"patches", "target_weight"}:
        np.testing.assert_array_equal(broken[name], whole[name], err_msg=name)


def test_budget(rng):
    sample = random_sample(rng, [(16, 8)], n_text=10, n_targets=4, name="big")
    assert needs([sample, sample], BUDGET) == Needs(2 * len(sample.tokens), 16, 8, 0, 0)
    exact = RowBudget(len(sample.tokens), 8, 4)
    assert fits([sample], exact)
    assert not fits([sample, sample], exact)
    assert fits([], exact)
    for small, message in [
        (RowBudget(13, 8, 4), "big: too large for a row .14 tokens, a row holds 13.$"),
        (RowBudget(14, 4, 4), "8 patches, a row holds 4"),
        (RowBudget(14, 8, 3), "4 supervised tokens, a row holds 3"),
    ]:
        with pytest.raises(BadRecord, match=message):
            check_fits([sample], small)
        with pytest.raises(BadRecord, match=message):
            pack([[sample]], [load([sample])], small, SPEC)


def test_stats(rng):
    rows = make_rows(rng)
    stats = batch_stats(rows, lengths(rows), BUDGET)
    batch = pack(rows, [load(samples) for samples in rows], BUDGET, SPEC)
    assert stats["token_fill"] == pytest.approx((batch["segments"] > 0).mean())
    assert stats["patch_fill"] == pytest.approx((batch["patch_images"] > 0).mean())
    assert lengths(rows) == flops.lengths(batch)


def test_pairs_of_blocks_are_those_that_see_each_other(rng):
    """Against every pair of tokens and patches, in a row with questions of their own, spill-over blocks and padding."""
    own = random_sample(rng, [(32, 16)], n_text=30)
    own.questions[-24:] = np.repeat([1, 2, 3], 8)
    samples = [random_sample(rng, [(16, 16), (24, 8)], n_text=11), own, random_sample(rng, [(16, 8)], n_text=9)]
    taken = needs(samples, RowBudget(1, 1, 1))
    block = 8
    size = [-(-n // block) * block + block for n in (taken.tokens, taken.patches)]
    budget = RowBudget(*size, 90, pair_block=block, pairs=99, patch_pairs=99)
    pixels = [[np.zeros((p.n_patches, 48), np.uint8) for p in s.images] for s in samples]
    batch = pack([samples], [pixels], budget, SPEC)

    def blocks(visible):
        n = len(visible) // block
        return visible.reshape(n, block, n, block).any((1, 3))

    segments, questions = batch["segments"][0], batch["questions"][0]
    text = np.tril(segments[:, None] == segments) & (segments > 0)
    text &= (questions == 0) | (questions == questions[:, None])
    images = batch["patch_images"][0]
    for name, expected in (("pair", text), ("patch_pair", (images[:, None] == images) & (images > 0))):
        starts, keys = batch[f"{name}_starts"][0], batch[f"{name}_keys"][0]
        listed = np.zeros_like(blocks(expected))
        for i in range(len(listed)):
            listed[i, keys[starts[i] : starts[i + 1]]] = True
        assert (listed >= blocks(expected)).all()
        # A block of several samples may list a pair too many, never one of strangers.
        assert listed.sum() <= 1.1 * blocks(expected).sum()
        assert (keys[starts[-1] :] == -1).all()
        assert starts[-1] == getattr(needs(samples, budget), f"{name}s")
    tight = RowBudget(*size, 90, pair_block=block, pairs=5, patch_pairs=99)
    with pytest.raises(BadRecord, match="pairs of text blocks, a row holds 5"):
        pack([samples], [pixels], tight, SPEC)
