"""The architecture's numbers, read from an HF `config.json` in either spelling."""

import dataclasses
import math
import pathlib
from typing import Any

from vlm3_jax.errors import UserError
from vlm3_jax.files import Fields

MODEL_TYPES = ("qwen3_vl", "qwen3_vl_moe")
# Where the settings for still images stand, for `processor_fields`.
IMAGE_PROCESSOR = ("image_processor", "preprocessor_config.json")
# Ways to say that positions are not scaled; "axial" in the vision tower.
_PLAIN_ROPE = ("default", "mrope", "axial")
# Far more than any model has: the table of parameters names every layer.
_MOST_LAYERS = 4096
_IDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The decoder. Letters of the shape legend: D hidden_size, F intermediate_size, H heads, K kv_heads, C head_dim.

    `experts` > 0: every layer has that many experts of `expert_size` in place of its MLP (`intermediate_size` is then
    unused), and each token goes to `experts_per_token` of them.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    mrope_section: tuple[int, int, int]
    tie_word_embeddings: bool
    experts: int = 0
    experts_per_token: int = 0
    expert_size: int = 0


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The vision tower. `taps`: blocks whose output feeds the decoder (DeepStack), in the order of the checkpoint."""

    hidden_size: int
    intermediate_size: int
    depth: int
    heads: int
    in_channels: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    table_side: int
    out_hidden_size: int
    taps: tuple[int, ...]
    rope_theta: float

    @property
    def head_dim(self) -> int:
        """Size of one attention head."""
        return self.hidden_size // self.heads

    @property
    def patch_values(self) -> int:
        """Values of one still patch (channels x patch x patch): the bytes that travel to the device."""
        return self.in_channels * self.patch_size**2


@dataclasses.dataclass(frozen=True)
class VLMConfig:
    """Qwen3-VL: the two towers and the ids that stand for images in the text. `mean`, `std`: pixel normalisation."""

    text: TextConfig
    vision: VisionConfig
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @classmethod
    def from_dir(cls, model_dir) -> "VLMConfig":
        """Reads config.json and, where present, the pixel normalisation of the image processor."""
        model_dir = pathlib.Path(model_dir)
        fields = model_fields(model_dir)
        mean, std = normalisation(processor_fields(model_dir, *IMAGE_PROCESSOR, required=False), (0.5,) * 3)
        return dataclasses.replace(cls.from_hf(fields.tree, fields.name), mean=mean, std=std)

    @classmethod
    def from_hf(cls, tree: dict[str, Any], name: str = "config.json") -> "VLMConfig":
        """From the parsed config.json of Qwen3-VL; UserError names the field that is missing or not supported."""
        fields = Fields(tree, name)
        kind = fields.tree.get("model_type")
        if kind not in MODEL_TYPES:
            raise UserError(f"{name}: model_type is {str(kind)[:40]!r}, expected one of {', '.join(MODEL_TYPES)}")
        text, vision = fields.child("text_config"), fields.child("vision_config")
        experts = _experts(text) if kind == "qwen3_vl_moe" else {}
        return cls(
            _text_config(text, tied=fields.flag("tie_word_embeddings", False), experts=experts),
            _vision_config(vision),
            *(fields.integer(key, 0) for key in _IDS),
        )._checked(name)

    def to_hf(self) -> dict[str, Any]:
        """The config.json (newer spelling) that `from_hf` reads; pixel normalisation is not in it."""
        t, v, kind = self.text, self.vision, MODEL_TYPES[bool(self.text.experts)]
        name = "Qwen3VLMoe" if t.experts else "Qwen3VL"
        text = {
            "model_type": f"{kind}_text",
            "vocab_size": t.vocab_size,
            "hidden_size": t.hidden_size,
            "intermediate_size": t.intermediate_size,
            "num_hidden_layers": t.layers,
            "num_attention_heads": t.heads,
            "num_key_value_heads": t.kv_heads,
            "head_dim": t.head_dim,
            "hidden_act": "silu",
            "attention_bias": False,
            "rms_norm_eps": t.rms_norm_eps,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": t.rope_theta,
                "mrope_section": list(t.mrope_section),
                "mrope_interleaved": True,
            },
        }
        if t.experts:
            text |= {
                "num_experts": t.experts, "num_experts_per_tok": t.experts_per_token, "norm_topk_prob": True,
                "moe_intermediate_size": t.expert_size, "decoder_sparse_step": 1, "mlp_only_layers": [],
            }  # fmt: skip
        vision = {
            "model_type": f"{kind}_vision",
            "depth": v.depth,
            "hidden_size": v.hidden_size,
            "intermediate_size": v.intermediate_size,
            "num_heads": v.heads,
            "hidden_act": "gelu_pytorch_tanh",
            "in_channels": v.in_channels,
            "patch_size": v.patch_size,
            "temporal_patch_size": v.temporal_patch_size,
            "spatial_merge_size": v.merge_size,
            "num_position_embeddings": v.table_side**2,
            "out_hidden_size": v.out_hidden_size,
            "deepstack_visual_indexes": list(v.taps),
            "rope_parameters": {"rope_type": "axial", "rope_theta": v.rope_theta},
        }
        return {
            "architectures": [f"{name}ForConditionalGeneration"],
            "model_type": kind,
            "tie_word_embeddings": t.tie_word_embeddings,
            **{key: getattr(self, key) for key in _IDS},
            "text_config": text,
            "vision_config": vision,
        }

    def _checked(self, name: str) -> "VLMConfig":
        text, vision = self.text, self.vision
        rules = [
            (vision.out_hidden_size == text.hidden_size, "vision out_hidden_size must equal text hidden_size"),
            (text.heads % text.kv_heads == 0, "num_attention_heads must be a multiple of num_key_value_heads"),
            (sum(text.mrope_section) == text.head_dim // 2, "mrope_section must add up to half of head_dim"),
            (vision.head_dim % 4 == 0, "the vision head size must be a multiple of 4"),
            (len(vision.taps) <= text.layers, "more DeepStack taps than decoder layers"),
            (text.experts_per_token <= text.experts, "num_experts_per_tok is larger than the number of experts"),
            (
                # Both orders of the experts' axes are in use; equal sizes would not tell which one a file has.
                text.hidden_size not in (text.expert_size, 2 * text.expert_size),
                "experts with moe_intermediate_size equal to hidden_size or half of it are not supported",
            ),
            (
                len(set(vision.taps)) == len(vision.taps) and all(0 <= t < vision.depth for t in vision.taps),
                "deepstack_visual_indexes must be distinct block numbers",
            ),
        ]
        for holds, message in rules:
            if not holds:
                raise UserError(f"{name}: {message}")
        return self


def model_fields(model_dir: pathlib.Path, *names: str) -> Fields:
    """A model's config.json, in which at least `names` stand; UserError if it is that of another kind of model."""
    fields = Fields.read(model_dir / "config.json")
    if missing := [name for name in names if name not in fields]:
        raise UserError(f"{fields.name}: no {', '.join(missing)}; expected a Qwen3-VL model")
    return fields


def processor_fields(model_dir: pathlib.Path, section: str, *names: str, required: bool = True) -> Fields:
    """Settings of an image or video processor where transformers looks for them.

    That is `section` of processor_config.json, else the first of the files `names` that exists. If none does: no
    settings, or where they are `required` a UserError.
    """
    joint = model_dir / "processor_config.json"
    if joint.exists() and section in (fields := Fields.read(joint, null=True)):
        return fields.child(section)
    path = next((model_dir / name for name in names if (model_dir / name).exists()), model_dir / names[0])
    return Fields.read(path, null=True) if required or path.exists() else Fields({}, str(path), null=True)


def normalisation(fields: Fields, default: Any = None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of pixel values in [0, 1], by channel (or `default`), of an image processor.

    UserError if its settings ask for other steps than those that are built in: resize, divide by 255, normalise.
    """
    for name in ("do_resize", "do_rescale", "do_normalize"):
        fields.require(name, True, True)
    # PIL's number for bicubic.
    fields.require("resample", 3, 3)
    if not math.isclose(fields.number("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-6):
        raise UserError(
            f"{fields.name}: rescale_factor = {fields.tree['rescale_factor']} is not supported, only 1 / 255"
        )
    given = {} if default is None else {"default": default}
    return fields.numbers("image_mean", 3, **given), fields.numbers("image_std", 3, above=0, **given)


def _rope(fields: Fields) -> Fields:
    """Rotary settings: `rope_parameters` (newer), `rope_theta` and `rope_scaling` (older); both only if they agree."""
    rope, said = {}, {}
    spellings = {name: fields.child(name).tree for name in ("rope_scaling", "rope_parameters") if fields.tree.get(name)}
    for name, tree in ({"": {k: v for k, v in fields.tree.items() if k == "rope_theta"}} | spellings).items():
        for key, value in tree.items():
            where = f"{name}.{key}".lstrip(".")
            key = "rope_type" if key == "type" else key
            value = "default" if key == "rope_type" and value in _PLAIN_ROPE else value
            if key in rope and rope[key] != value:
                raise UserError(f"{fields.name}: {said[key]} and {where} disagree ({rope[key]!r} and {value!r})")
            rope[key], said[key] = value, where
    if (kind := rope.get("rope_type", "default")) != "default":
        raise UserError(f"{fields.name}: rope type {str(kind)[:40]!r} is not supported, only 'default'")
    found = Fields(rope, fields.name)
    found.require("partial_rotary_factor", 1.0, 1.0)
    return found


def _experts(fields: Fields) -> dict[str, int]:
    """The fields of a mixture of experts in every layer; `num_local_experts` is the newer spelling."""
    fields.require("decoder_sparse_step", 1, 1)
    if fields.tree.get("mlp_only_layers"):
        raise UserError(f"{fields.name}: mlp_only_layers is not supported, every layer must have experts")
    fields.require("norm_topk_prob", True, True)
    return {
        "experts": fields.integer("num_local_experts" if "num_local_experts" in fields.tree else "num_experts"),
        "experts_per_token": fields.integer("num_experts_per_tok"),
        "expert_size": fields.integer("moe_intermediate_size"),
    }


def _text_config(fields: Fields, tied: bool, experts: dict[str, int]) -> TextConfig:
    fields.require("hidden_act", "silu", "silu")
    fields.require("attention_bias", False, False)
    rope = _rope(fields)
    if "rope_theta" not in rope:
        raise UserError(f"{fields.name}: rope_theta is missing (also looked in rope_parameters)")
    rope.require("mrope_interleaved", True, True)
    return TextConfig(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=fields.integer("hidden_size"),
        intermediate_size=fields.integer("intermediate_size"),
        layers=fields.integer("num_hidden_layers", maximum=_MOST_LAYERS),
        heads=fields.integer("num_attention_heads"),
        kv_heads=fields.integer("num_key_value_heads"),
        head_dim=fields.integer("head_dim", default=128),
        rms_norm_eps=float(fields.number("rms_norm_eps", 1e-6, above=0)),
        rope_theta=float(rope.number("rope_theta", above=0)),
        mrope_section=rope.integers("mrope_section", 3, (24, 20, 20)),
        tie_word_embeddings=tied,
        **experts,
    )


def _vision_config(fields: Fields) -> VisionConfig:
    fields.require("hidden_act", "gelu_pytorch_tanh", "gelu_pytorch_tanh")
    side = math.isqrt(fields.integer("num_position_embeddings"))
    if side * side != fields.tree["num_position_embeddings"]:
        raise UserError(f"{fields.name}: num_position_embeddings must be a square number")
    rope = _rope(fields)
    return VisionConfig(
        hidden_size=fields.integer("hidden_size"),
        intermediate_size=fields.integer("intermediate_size"),
        depth=fields.integer("depth", maximum=_MOST_LAYERS),
        heads=fields.integer("num_heads"),
        in_channels=fields.integer("in_channels"),
        patch_size=fields.integer("patch_size"),
        temporal_patch_size=fields.integer("temporal_patch_size"),
        merge_size=fields.integer("spatial_merge_size"),
        table_side=side,
        out_hidden_size=fields.integer("out_hidden_size"),
        taps=fields.integers("deepstack_visual_indexes"),
        rope_theta=float(rope.number("rope_theta", 10_000.0, above=0)),
    )
