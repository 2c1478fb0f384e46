"""Complete tiny HF directories (config, weights, tokenizer, processor) for tests, the demo and first experiments."""

import dataclasses
import json
import pathlib

import numpy as np
import safetensors.numpy
from tokenizers import Tokenizer

from vlm3_jax.checkpoint import hf, tiny_tokenizer
from vlm3_jax.errors import UserError
from vlm3_jax.files import replace_dir
from vlm3_jax.model import params as parameters
from vlm3_jax.model.config import TextConfig, VisionConfig, VLMConfig
from vlm3_jax.storage import local_path


@dataclasses.dataclass(frozen=True)
class TinySize:
    """The numbers of a tiny model; the defaults learn depth on two cores in minutes."""

    hidden: int = 96
    mlp: int = 192
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    vision_hidden: int = 64
    vision_mlp: int = 128
    vision_depth: int = 2
    vision_heads: int = 4
    taps: tuple[int, ...] = (0,)
    patch: int = 16
    table_side: int = 8
    tie: bool = False
    vocab: str = "tiny"
    experts: int = 0
    experts_per_token: int = 0
    expert_mlp: int = 0


SIZES = {
    "demo": TinySize(),
    # Small enough for tests, odd enough to catch mistakes: q width != hidden, uneven stacks, taps out of order, tied.
    "test": TinySize(
        hidden=48, mlp=80, layers=3, heads=4, kv_heads=1, head_dim=24, vision_hidden=40, vision_mlp=72, vision_depth=4,
        vision_heads=2, taps=(2, 0), patch=4, table_side=6, tie=True,
    ),
    "moe": TinySize(
        hidden=48, mlp=80, layers=3, heads=4, kv_heads=2, head_dim=24, vision_hidden=32, vision_mlp=48, vision_depth=3,
        vision_heads=2, taps=(0, 1), patch=4, table_side=6, experts=6, experts_per_token=2, expert_mlp=40,
    ),
}  # fmt: skip


def make(out_dir, size: str = "demo", seed: int = 0) -> pathlib.Path:
    """Writes the model directory; transformers loads it, and so does every `--model` of this project."""
    if size not in SIZES:
        raise UserError(f"tiny checkpoint: unknown size {size!r}; choose one of {', '.join(SIZES)}")
    out_dir, shape = local_path(out_dir), SIZES[size]
    tmp = out_dir.with_name(out_dir.name + ".writing")
    tiny_tokenizer.write_tokenizer(tmp, shape.vocab)
    for name, tree in _json_files(shape).items():
        (tmp / name).write_text(json.dumps(tree, indent=2) + "\n")
    cfg = VLMConfig.from_dir(tmp)
    tokenizer = Tokenizer.from_file(str(tmp / "tokenizer.json"))
    flat = parameters.flatten(initialize(cfg, seed, [tokenizer.token_to_id(str(digit)) for digit in range(10)]))
    tensors = {
        key: np.ascontiguousarray(row.to_hf(flat[row.path][i] if row.stacked else flat[row.path]))
        for row in parameters.table(cfg)
        for i, key in enumerate(row.hf_keys)
    }
    safetensors.numpy.save_file(tensors, tmp / hf.SINGLE, metadata={"format": "pt"})
    replace_dir(tmp, out_dir)
    return out_dir


def initialize(cfg: VLMConfig, seed: int, digits: list[int]) -> dict:
    """Random parameters from which a tiny model learns to see: larger than usual, pixels centred, places marked.

    Token embeddings have standard deviation 0.7, matrices 0.06 (those that write to the residual stream less, by
    1 / sqrt(2 layers)), the patch embedding removes the mean brightness, the position table holds 2-D sinusoids, and
    the embeddings of the `digits` (token ids of 0 to 9) share a random code of their value: near numbers look alike.
    """
    flat = parameters.flatten(parameters.initialize(cfg, seed, std=0.06))
    for path, value in flat.items():
        depth = cfg.vision.depth if path[0] == "vision" else cfg.text.layers
        if (
            path[-1] in ("o_proj", "down_proj", "experts_out", "proj", "fc2")
            and len(path) == 3
            and "merge" not in path[1]
        ):
            value *= (2 * depth) ** -0.5
        elif path == ("text", "embed"):
            value *= 0.7 / 0.06
    patch = flat["vision", "patch"]
    patch *= 1.5
    flat["vision", "patch_bias"] -= 0.25 * patch.sum((0, 1))
    flat["vision", "table"][:] = _sinusoids(cfg.vision.table_side, cfg.vision.hidden_size)
    embed = flat["text", "embed"]
    code = _waves(np.arange(10) / 9, embed.shape[1], 2.0)
    mix = np.random.default_rng(seed + 1).standard_normal((code.shape[1], embed.shape[1])) * code.shape[1] ** -0.5
    embed[digits] = 0.7 * embed[digits] + 0.7 * code @ mix
    return parameters.nest(flat)


def _waves(place: np.ndarray, width: int, octaves: float) -> np.ndarray:
    """Sines and cosines of `place` in [0, 1], [n, about width]: half a wave and up, over `octaves` + 1 octaves."""
    waves = np.pi * 2.0 ** np.linspace(-1, octaves, -(-width // 2))
    return np.concatenate([np.sin(place[:, None] * waves), np.cos(place[:, None] * waves)], -1)


def _sinusoids(side: int, width: int) -> np.ndarray:
    """[side * side, width]: a quarter each of sin and cos of the row and of the column, from slow to fast waves."""
    axis = _waves(np.arange(side) / max(1, side - 1), -(-width // 2), np.log2(side))
    rows, columns = np.broadcast_to(axis[:, None], (side, side, axis.shape[1])), axis[None].repeat(side, 0)
    return np.concatenate([rows, columns], -1).reshape(side * side, -1)[:, :width].astype(np.float32)


def _config(shape: TinySize, ids: dict[str, int]) -> VLMConfig:
    third = shape.head_dim // 2 // 3
    text = TextConfig(
        vocab_size=ids["vocab_size"],
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        layers=shape.layers,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        rms_norm_eps=1e-6,
        rope_theta=10000.0,
        mrope_section=(shape.head_dim // 2 - 2 * third, third, third),
        tie_word_embeddings=shape.tie,
        experts=shape.experts,
        experts_per_token=shape.experts_per_token,
        expert_size=shape.expert_mlp,
    )
    vision = VisionConfig(
        hidden_size=shape.vision_hidden,
        intermediate_size=shape.vision_mlp,
        depth=shape.vision_depth,
        heads=shape.vision_heads,
        in_channels=3,
        patch_size=shape.patch,
        temporal_patch_size=2,
        merge_size=2,
        table_side=shape.table_side,
        out_hidden_size=shape.hidden,
        taps=shape.taps,
        rope_theta=10000.0,
    )
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return VLMConfig(text, vision, *(ids[name] for name in names))


def _json_files(shape: TinySize) -> dict[str, dict]:
    ids = tiny_tokenizer.special_ids(shape.vocab)
    config = _config(shape, ids).to_hf() | {"dtype": "float32"}
    config["text_config"]["max_position_embeddings"] = 32768
    processor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": shape.patch,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "size": {"shortest_edge": (2 * shape.patch) ** 2, "longest_edge": 16777216},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    stops = [ids["im_end_token_id"], ids["endoftext_token_id"]]
    generation = {"eos_token_id": stops, "pad_token_id": ids["endoftext_token_id"], "do_sample": False}
    return {"config.json": config, "preprocessor_config.json": processor, "generation_config.json": generation}
