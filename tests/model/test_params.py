"""The parameter table against transformers' own models of the released sizes (built without memory)."""

import collections
import dataclasses
import math

import numpy as np
import pytest
import torch
from transformers import (
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from vlm3_jax.model import params as parameters
from vlm3_jax.model.config import VisionConfig, VLMConfig
from vlm3_jax.model.sizes import released

# hidden, mlp, layers, heads, kv heads, tied; vision hidden, mlp, depth, taps; parameters in thousand millions.
RELEASED = {
    "2b": (2048, 6144, 28, 16, 8, True, 1024, 4096, 24, (5, 11, 17), 2.13),
    "4b": (2560, 9728, 36, 32, 8, True, 1024, 4096, 24, (5, 11, 17), 4.44),
    "8b": (4096, 12288, 36, 32, 8, False, 1152, 4304, 27, (8, 16, 24), 8.77),
    "32b": (5120, 25600, 64, 64, 8, False, 1152, 4304, 27, (8, 16, 24), 33.36),
    "30b-a3b": (2048, 6144, 48, 32, 4, False, 1152, 4304, 27, (8, 16, 24), 31.07),
    "235b-a22b": (4096, 12288, 94, 64, 4, False, 1152, 4304, 27, (8, 16, 24), 235.67),
}
EXPERTS = {
    "30b-a3b": dict(num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768),
    "235b-a22b": dict(num_experts=128, num_experts_per_tok=8, moe_intermediate_size=1536),
}


def hf_config(name) -> Qwen3VLConfig | Qwen3VLMoeConfig:
    hidden, mlp, layers, heads, kv_heads, tied, v_hidden, v_mlp, depth, taps, _ = RELEASED[name]
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    text = dict(
        vocab_size=151936, hidden_size=hidden, intermediate_size=mlp, num_hidden_layers=layers, head_dim=128,
        num_attention_heads=heads, num_key_value_heads=kv_heads, rms_norm_eps=1e-6, rope_parameters=rope,
        **EXPERTS.get(name, {}),
    )  # fmt: skip
    vision = dict(
        hidden_size=v_hidden, intermediate_size=v_mlp, depth=depth, num_heads=16, deepstack_visual_indexes=list(taps),
        num_position_embeddings=2304, patch_size=16, spatial_merge_size=2, temporal_patch_size=2, in_channels=3,
        out_hidden_size=hidden,
    )  # fmt: skip
    ids = dict(zip(("image", "video", "vision_start", "vision_end"), (151655, 151656, 151652, 151653)))
    make = Qwen3VLMoeConfig if name in EXPERTS else Qwen3VLConfig
    return make(
        text_config=text, vision_config=vision, tie_word_embeddings=tied, **{f"{k}_token_id": v for k, v in ids.items()}
    )


@pytest.fixture(scope="module", params=list(RELEASED))
def sizes(request):
    """(name, our config, transformers' model on the meta device)."""
    config = hf_config(request.param)
    with torch.device("meta"):
        make = Qwen3VLMoeForConditionalGeneration if request.param in EXPERTS else Qwen3VLForConditionalGeneration
        model = make(config)
    return request.param, VLMConfig.from_hf(config.to_dict()), model


def test_table_is_a_bijection_onto_the_hf_tensors(sizes):
    name, cfg, model = sizes
    shapes = {row_key: row.hf_shape for row in parameters.table(cfg) for row_key in row.hf_keys}
    assert sum(len(row.hf_keys) for row in parameters.table(cfg)) == len(shapes), "a tensor stands twice in the table"
    theirs = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    if cfg.text.tie_word_embeddings:
        assert theirs.pop("lm_head.weight") == theirs["model.language_model.embed_tokens.weight"]
    # transformers exchanges the last two axes of the experts in memory; released checkpoints store them as we say.
    assert shapes == {k: (s[0], s[2], s[1]) if ".experts." in k else s for k, s in theirs.items()}
    assert all(row.accepts(theirs[key]) for row in parameters.table(cfg) for key in row.hf_keys)
    count = parameters.count(cfg)
    assert count == sum(map(math.prod, theirs.values())) == model.num_parameters()
    assert count / 1e9 == pytest.approx(RELEASED[name][-1], abs=0.005)
    assert released(name) == cfg


def test_rows_describe_themselves(sizes):
    _, cfg, _ = sizes
    rows = parameters.table(cfg)
    assert len({row.path for row in rows}) == len(rows)
    for row in rows:
        assert len(row.axes) == len(row.shape), row.name
        assert row.stacked == (row.axes[0] == "layers"), row.name
        assert len(row.hf_keys) == (row.shape[0] if row.stacked else 1), row.name
        assert math.prod(row.layer_shape) == math.prod(row.hf_shape), row.name
        assert row.group in parameters.GROUPS
    groups = collections.Counter()
    for row in rows:
        groups[row.group] += row.size
    vocabulary = cfg.text.vocab_size * cfg.text.hidden_size
    assert groups["embeddings"] == vocabulary * (1 if cfg.text.tie_word_embeddings else 2)


def test_layouts_are_inverse(rng):
    for layout, hf_shape, shape in (
        ("copy", (6,), (2, 3)),
        ("linear", (6, 5), (5, 2, 3)),
        ("patch", (7, 3, 2, 4, 4), (2, 48, 7)),
    ):
        row = parameters.Param(("x",), shape, (None,) * len(shape), ("x",), hf_shape, "decoder", layout=layout)
        tensor = rng.standard_normal(hf_shape)
        value = row.from_hf(tensor)
        assert value.shape == shape
        np.testing.assert_array_equal(row.to_hf(value), tensor)
    # The patch kernel's values: time, then channel, row and column of the pixel, then width.
    assert value[1, 2 * 16 + 3 * 4 + 1, 5] == tensor[5, 2, 1, 3, 1]
    # A projection's output is split into heads.
    row = dataclasses.replace(row, shape=(5, 2, 3), hf_shape=(6, 5), layout="linear")
    weight = rng.standard_normal((6, 5))
    assert row.from_hf(weight)[4, 1, 2] == weight[1 * 3 + 2, 4]


VISION = VisionConfig(8, 8, 6, 2, 3, 4, 2, 2, 3, 8, (), 1e4)


@pytest.mark.parametrize(
    ("taps", "expected"),
    [
        ((), [range(6)]),
        ((0,), [range(1), range(1, 6)]),
        ((5,), [range(6)]),
        ((3, 1), [range(2), range(2, 4), range(4, 6)]),
        ((4, 5), [range(5), range(5, 6)]),
    ],
)
def test_a_vision_stack_ends_at_each_tap(taps, expected):
    stacks = parameters.vision_stacks(dataclasses.replace(VISION, taps=taps))
    assert stacks == [(f"blocks_{i}", blocks) for i, blocks in enumerate(expected)]


def test_text_stacks_split_behind_the_taps():
    text = VLMConfig.from_hf(hf_config("2b").to_dict()).text
    assert parameters.text_stacks(text, 3) == [("layers_tap", range(3)), ("layers", range(3, 28))]
    assert parameters.text_stacks(text, 0) == [("layers", range(28))]
    assert parameters.text_stacks(dataclasses.replace(text, layers=3), 3) == [("layers_tap", range(3))]


def test_taps_out_of_order_keep_their_mergers(tiny_model):
    """The model "test" taps block 2 first: in block order its mergers are the second and the first."""
    cfg = VLMConfig.from_dir(tiny_model)
    assert cfg.vision.taps == (2, 0)
    (row,) = (row for row in parameters.table(cfg) if row.path == ("vision", "tap_mergers", "fc1"))
    assert row.hf_keys == tuple(f"model.visual.deepstack_merger_list.{i}.linear_fc1.weight" for i in (1, 0))


def test_nest_and_flatten_are_inverse():
    flat = {("a", "b"): 1, ("a", "c", "d"): 2, ("e",): 3}
    tree = parameters.nest(flat)
    assert tree == {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert parameters.flatten(tree) == flat


def test_random_parameters_follow_from_the_seed(tiny_model):
    cfg = VLMConfig.from_dir(tiny_model)
    one, two, three = (parameters.flatten(parameters.initialize(cfg, seed, 0.02)) for seed in (0, 0, 1))
    for row in parameters.table(cfg):
        value = one[row.path]
        assert (value.shape, value.dtype) == (row.shape, np.float32)
        np.testing.assert_array_equal(value, two[row.path])
        if row.init == "normal":
            assert value.std() == pytest.approx(0.02, rel=0.2)
            assert not np.array_equal(value, three[row.path])
        else:
            assert (value == (row.init == "ones")).all()
