"""transformers' model beside ours on the same images and tokens: tiny random configs, everything randomised."""

import dataclasses
import functools
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import torch
from PIL import Image
from transformers import (
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from vlm3_jax.camera import Camera
from vlm3_jax.checkpoint import hf
from vlm3_jax.data.packing import RowBudget, pack
from vlm3_jax.data.samples import Sample, unsupervised
from vlm3_jax.model.vlm import VLM
from vlm3_jax.processor.chat import Encoding
from vlm3_jax.processor.image import VisionSpec, image_layout
from vlm3_jax.processor.prompt import positions
from vlm3_jax.records import View, encode_image

VOCAB, IMAGE, VIDEO, START, END = 300, 290, 291, 292, 293

# An ordinary one, one whose sizes no power of two divides, with one kv head and taps out of order, and experts.
KINDS = {
    "plain": dict(
        text=dict(hidden_size=64, intermediate_size=96, num_hidden_layers=5, num_attention_heads=4,
                  num_key_value_heads=2, head_dim=32),
        vision=dict(depth=5, hidden_size=32, intermediate_size=48, num_heads=2, deepstack_visual_indexes=[0, 1, 3],
                    num_position_embeddings=64),
        sections=[6, 5, 5], tie=False,
    ),
    "odd": dict(
        text=dict(hidden_size=42, intermediate_size=70, num_hidden_layers=3, num_attention_heads=3,
                  num_key_value_heads=1, head_dim=18),
        vision=dict(depth=3, hidden_size=36, intermediate_size=50, num_heads=3, deepstack_visual_indexes=[2, 0],
                    num_position_embeddings=25),
        sections=[3, 3, 3], tie=True,
    ),
    "moe": dict(
        text=dict(hidden_size=48, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
                  num_key_value_heads=2, head_dim=16, num_experts=7, num_experts_per_tok=3, moe_intermediate_size=20),
        vision=dict(depth=3, hidden_size=32, intermediate_size=48, num_heads=2, deepstack_visual_indexes=[0, 2],
                    num_position_embeddings=36),
        sections=[3, 3, 2], tie=False,
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """A transformers model and our parameters of the same checkpoint."""

    theirs: Qwen3VLForConditionalGeneration | Qwen3VLMoeForConditionalGeneration
    folder: pathlib.Path
    cfg: object
    params: dict
    spec: VisionSpec


@functools.cache
def pair(kind: str) -> Pair:
    shape = KINDS[kind]
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": shape["sections"], "mrope_interleaved": True}
    text = dict(vocab_size=VOCAB, rms_norm_eps=1e-6, rope_parameters=rope, pad_token_id=None, **shape["text"])
    vision = dict(in_channels=3, patch_size=4, spatial_merge_size=2, temporal_patch_size=2, **shape["vision"])
    vision["out_hidden_size"] = text["hidden_size"]
    moe = "num_experts" in text
    make_config, make_model = (
        (Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration)
        if moe
        else (Qwen3VLConfig, Qwen3VLForConditionalGeneration)
    )
    config = make_config(
        text_config=text, vision_config=vision, image_token_id=IMAGE, video_token_id=VIDEO,
        vision_start_token_id=START, vision_end_token_id=END, tie_word_embeddings=shape["tie"],
    )  # fmt: skip
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = make_model(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            # transformers leaves norms at 1 and biases at 0, where mistakes in them would not show.
            # The router's scale decides whether the choice of experts matters.
            scale = 8 if name.startswith("model.visual") or "mlp.gate." in name else 2.5
            p.add_(0.1 * torch.randn(p.shape, generator=generator)) if p.ndim == 1 else p.mul_(scale)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="vlm3-parity-"))
    model.save_pretrained(folder)
    processor(shape).save_pretrained(folder)
    cfg, params = hf.load(folder)
    return Pair(model, folder, cfg, params, VisionSpec.from_dir(folder))


def processor(shape) -> Qwen2VLImageProcessorPil:
    return Qwen2VLImageProcessorPil(
        patch_size=4, temporal_patch_size=2, merge_size=2, image_mean=[0.5] * 3, image_std=[0.5] * 3,
        size={"shortest_edge": 64, "longest_edge": 1 << 20},
    )  # fmt: skip


def row(rng, sizes) -> list:
    """A sample: images (uint8, of the given (width, height)) with text before, between and after."""
    parts = [rng.integers(0, 280, 3)]
    for width, height in sizes:
        parts += [rng.integers(0, 256, (height, width, 3), dtype=np.uint8), rng.integers(0, 280, rng.integers(1, 5))]
    return [*parts, rng.integers(0, 280, 4)]


def to_sample(parts, spec: VisionSpec) -> Sample:
    """Our sample of `row`'s parts."""
    tokens, images, layouts = [], [], []
    for part in parts:
        if part.ndim == 1:
            tokens += part.tolist()
            continue
        height, width = part.shape[:2]
        ref = encode_image(part, "image")
        layouts.append(image_layout(View(ref, Camera(100, 100, 0, 0, width, height)), spec))
        images.append((len(tokens) + 1, layouts[-1].n_visual))
        tokens += [START, *[IMAGE] * layouts[-1].n_visual, END]
    tokens = np.array(tokens, np.int32)
    encoding = Encoding(tokens, np.zeros_like(tokens), tuple(images), ())
    slots = np.concatenate([np.arange(a, a + n) for a, n in images]) if images else np.zeros(0, int)
    return unsupervised(tokens, positions(encoding, layouts), slots.astype(np.int32), layouts)


def to_batch(pair: Pair, rows, budget=None) -> dict[str, np.ndarray]:
    """A packed batch of samples (`rows`: a list of lists of `row` parts)."""
    samples = [[to_sample(parts, pair.spec) for parts in row] for row in rows]
    longest = max(sum(len(s.tokens) for s in row) for row in samples)
    patches = max(sum(s.n_patches for s in row) for row in samples)
    budget = budget or RowBudget(longest + 5, max(4, patches + 8), 1)
    pixels = [[[layout.load(pair.spec) for layout in s.images] for s in row] for row in samples]
    return pack(samples, pixels, budget, pair.spec)


def their_logits(pair: Pair, parts, dtype=torch.float32) -> np.ndarray:
    """transformers on one sample, with its own image processor and its own positions: float32 [n, vocabulary]."""
    inputs = their_inputs(pair, parts)
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    pair.theirs.model.rope_deltas = None
    with torch.no_grad():
        return pair.theirs.to(dtype)(**inputs).logits[0].float().numpy()


def their_inputs(pair: Pair, parts) -> dict:
    images = [Image.fromarray(part) for part in parts if part.ndim == 3]
    inputs, tokens, grids = {}, [], iter(())
    if images:
        inputs = dict(processor(None)(images=images, return_tensors="pt"))
        grids = iter(inputs["image_grid_thw"].tolist())
    for part in parts:
        if part.ndim == 1:
            tokens += part.tolist()
        else:
            _, h, w = next(grids)
            tokens += [START, *[IMAGE] * (h * w // 4), END]
    ids = torch.tensor([tokens])
    return {**inputs, "input_ids": ids, "mm_token_type_ids": (ids == IMAGE).int(), "attention_mask": ids * 0 + 1}


def check_loads(pair: Pair, folder, rng) -> None:
    """transformers loads the directory without missing or unexpected keys; its logits are the pair's bit for bit."""
    model, info = type(pair.theirs).from_pretrained(folder, output_loading_info=True, attn_implementation="eager")
    assert {name: sorted(found) for name, found in info.items() if found} == {}
    inputs = their_inputs(pair, row(rng, [(24, 16), (32, 24)]))
    with torch.no_grad():
        pair.theirs.model.rope_deltas = None
        ours, theirs = (m(**inputs).logits.numpy() for m in (model.eval(), pair.theirs))
    np.testing.assert_array_equal(ours, theirs)


def our_logits(pair: Pair, batch, dtype=jnp.float32) -> np.ndarray:
    """float32 [B, S, vocabulary], compiled anew on every call so that patched pieces take effect."""
    with jax.default_matmul_precision("highest"):
        run = jax.jit(lambda params, batch: VLM(pair.cfg, params, dtype).logits(batch))
        return np.asarray(run(pair.params, batch))


def gate(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """(mean KL(theirs || ours) in float64, largest difference of logits)."""
    p, q = (x.astype(np.float64) for x in (theirs, ours))
    p, q = (x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True)
            for x in (p, q))  # fmt: skip
    return float((np.exp(p) * (p - q)).sum(-1).mean()), float(np.abs(ours - theirs).max())


def passes(ours, theirs) -> bool:
    kl, difference = gate(ours, theirs)
    return kl <= 1e-9 and difference <= 1e-4
