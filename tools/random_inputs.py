"""Random models and inputs of a given size, for the benchmarks here. Needs neither grain nor ml_collections."""

import math

import checkout  # noqa: F401
import numpy as np

from vlm3_jax.data.samples import Sample
from vlm3_jax.model.config import VLMConfig
from vlm3_jax.processor.chat import Encoding
from vlm3_jax.processor.image import ImageLayout, VisionSpec
from vlm3_jax.processor.prompt import positions
from vlm3_jax.records import ImageRef


def random_layout(spec: VisionSpec, visual: float, aspect: float = 4 / 3) -> ImageLayout:
    """An image of about `visual` tokens."""
    rows = max(1, round(math.sqrt(visual / aspect)))
    grid = rows * spec.merge_size, max(1, round(visual / rows)) * spec.merge_size
    size = grid[1] * spec.patch_size, grid[0] * spec.patch_size
    return ImageLayout(ImageRef(*size, "random"), size, size, grid, spec.merge_size)


def supervised_sample(cfg: VLMConfig, layout: ImageLayout, rng, text: int, answers: int, questions: int) -> Sample:
    """One image, then `text` tokens, of which `answers` are supervised, spread over `questions` turns."""
    n = layout.n_visual
    tokens = rng.integers(0, cfg.image_token_id - 1, n + text).astype(np.int32)
    tokens[1], tokens[n + 2] = cfg.vision_start_token_id, cfg.vision_end_token_id
    tokens[2 : 2 + n] = cfg.image_token_id
    encoding = Encoding(tokens, np.zeros_like(tokens), ((2, n),), ())
    ends = np.linspace(n + 2, n + text - 1, questions + 1)[1:].astype(int)
    slots = np.concatenate([np.arange(end - answers // questions, end) for end in ends])
    return Sample(
        "random", 0, tokens, positions(encoding, (layout,)), encoding.questions, np.arange(2, 2 + n, dtype=np.int32),
        (layout,), slots - 1, tokens[slots], np.ones(len(slots), np.float32), np.zeros(len(slots), bool),
    )  # fmt: skip


def random_patches(spec: VisionSpec, layout: ImageLayout, rng) -> np.ndarray:
    """uint8 [n, C * p * p]."""
    return rng.integers(0, 256, (layout.n_patches, 3 * spec.patch_size**2), np.uint8)


def torch_model(cfg: VLMConfig, attention: str | None = None):
    """transformers' model of the config, with its own random weights of one seed."""
    import torch
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    config = Qwen3VLConfig.from_dict(cfg.to_hf())
    config._attn_implementation = attention
    torch.manual_seed(0)
    return Qwen3VLForConditionalGeneration(config)
