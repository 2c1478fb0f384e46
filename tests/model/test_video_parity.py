"""Logits of prompts with videos equal transformers', and each piece of a video is seen to matter."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.model import reference as ref
from vlm3_jax.camera import Camera
from vlm3_jax.data.packing import RowBudget, pack
from vlm3_jax.data.samples import Sample, unsupervised
from vlm3_jax.processor.chat import Encoding
from vlm3_jax.processor.image import image_layout
from vlm3_jax.processor.prompt import positions
from vlm3_jax.processor.video import VideoLayout, VideoSpec, video_layout, video_patches
from vlm3_jax.records import View, encode_image

# Groups of two frames: 2, 2 (the last one filled up) and 3.
FRAMES = {"four": (4, 24, 40), "three": (3, 48, 16), "six": (6, 17, 33)}
MEDIA = {
    "a video": ["four"],
    "a video, an image": ["three", (40, 24)],
    "two videos": ["six", "four"],
    "an image between videos": ["three", (24, 56), "six"],
}


@dataclasses.dataclass(frozen=True, eq=False)
class Shown:
    """A sample with videos, its float patches, and transformers' inputs for it."""

    sample: Sample
    patches: list[np.ndarray]
    inputs: dict


def draw(rng, shape):
    return rng.integers(0, 256, (*shape, 3), dtype=np.uint8)


def show(pair, rng, media) -> Shown:
    """Random text around and between the media; the marks as transformers' processor sets them."""
    spec = VideoSpec.from_dir(pair.folder)
    tokens, spans, looks = rng.integers(0, 280, 3).tolist(), [], []
    layouts = []
    for item in media:
        tokens.append(ref.START)
        if isinstance(item, str):
            layout = video_layout(draw(rng, FRAMES[item]), spec, times_s=range(FRAMES[item][0]))
            for group in layout.groups:
                tokens += [*rng.integers(0, 280, 4), ref.START]
                spans.append((len(tokens), group.n_visual))
                tokens += [ref.VIDEO] * group.n_visual + [ref.END]
        else:
            width, height = item
            ref_image = encode_image(draw(rng, (height, width)), "image")
            layout = image_layout(View(ref_image, Camera(100, 100, 0, 0, width, height)), spec.vision)
            spans.append((len(tokens), layout.n_visual))
            tokens += [ref.IMAGE] * layout.n_visual
        layouts.append(layout)
        looks += layout.groups if isinstance(layout, VideoLayout) else [layout]
        tokens += [ref.END, *rng.integers(0, 280, 2)]
    tokens = np.array(tokens, np.int32)
    encoding = Encoding(tokens, np.zeros_like(tokens), tuple(spans), ())
    slots = np.concatenate([np.arange(first, first + count) for first, count in spans]).astype(np.int32)
    sample = unsupervised(tokens, positions(encoding, looks), slots, looks)
    return Shown(sample, video_patches(layouts, spec), their_inputs(tokens, layouts, spec))


def their_inputs(tokens, layouts, spec) -> dict:
    ids = torch.tensor(tokens)[None].long()
    inputs = {"input_ids": ids, "mm_token_type_ids": (ids == ref.IMAGE).int() + 2 * (ids == ref.VIDEO).int()}
    for kind, pixels, grid in (
        (True, "pixel_values_videos", "video_grid_thw"),
        (False, "pixel_values", "image_grid_thw"),
    ):
        mine = [layout for layout in layouts if isinstance(layout, VideoLayout) == kind]
        if mine:
            inputs[pixels] = torch.tensor(np.concatenate(video_patches(mine, spec)))
            inputs[grid] = torch.tensor([[len(p.times_s), *p.group.grid] if kind else [1, *p.grid] for p in mine])
    return {**inputs, "attention_mask": ids * 0 + 1}


def their_logits(pair, shown) -> np.ndarray:
    pair.theirs.model.rope_deltas = None
    with torch.no_grad():
        return pair.theirs(**shown.inputs).logits[0].numpy()


def to_batch(pair, rows):
    samples = [[shown.sample for shown in row] for row in rows]
    budget = RowBudget(
        max(sum(len(s.tokens) for s in row) for row in samples) + 5,
        max(sum(s.n_patches for s in row) for row in samples) + 8,
        1,
    )
    return pack(samples, [[shown.patches for shown in row] for row in rows], budget, pair.spec)


@pytest.mark.parametrize("kind", list(ref.KINDS))
def test_logits_equal_transformers(kind, rng):
    """All kinds of media, each in a row of its own, and two samples that share a row."""
    pair = ref.pair(kind)
    samples = [show(pair, rng, media) for media in MEDIA.values()]
    theirs = [their_logits(pair, shown) for shown in samples]
    rows = [*([shown] for shown in samples), samples[:2]]
    ours = ref.our_logits(pair, to_batch(pair, rows))
    first = len(theirs[0])
    checks = [*zip(ours, theirs), (ours[4], theirs[0]), (ours[4, first:], theirs[1])]
    for mine, their in checks:
        kl, difference = ref.gate(mine[: len(their)], their)
        assert 0 <= kl <= 1e-9
        assert difference <= 1e-4


@pytest.fixture(scope="module")
def passing():
    """A pair, a batch with a video and an image, and transformers' logits, for which the gate passes as it is."""
    pair = ref.pair("plain")
    shown = show(pair, np.random.default_rng(3), MEDIA["a video, an image"])
    theirs, batch = their_logits(pair, shown), to_batch(pair, [[shown]])
    assert ref.passes(ref.our_logits(pair, batch)[0, : len(theirs)], theirs)
    return pair, batch, theirs


def _one_frame(batch):
    """Both moments of a group show the first: what summed patch weights would see."""
    B, P, X = batch["patches"].shape
    first = batch["patches"].reshape(B, P, 3, 2, X // 6)[:, :, :, :1]
    return {"patches": np.repeat(first, 2, 3).reshape(B, P, X)}


def _time_order(batch):
    B, P, X = batch["patches"].shape
    return {"patches": batch["patches"].reshape(B, P, 3, 2, X // 6)[:, :, :, ::-1].reshape(B, P, X)}


INPUTS = {
    "attention within a group": lambda b: {"patch_images": np.minimum(b["patch_images"], 1)},
    "the second frame": _one_frame,
    "the order of the frames": _time_order,
    "M-RoPE of the groups": lambda b: {
        "positions": np.broadcast_to(np.arange(b["tokens"].shape[1]), b["positions"].shape)
    },
}


@pytest.mark.parametrize("piece", list(INPUTS))
def test_gate_fails_without(piece, passing):
    pair, batch, theirs = passing
    changed = batch | INPUTS[piece](batch)
    assert not ref.passes(ref.our_logits(pair, changed)[0, : len(theirs)], theirs)
