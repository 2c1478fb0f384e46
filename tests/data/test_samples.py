"""Samples: positions against transformers, targets, weights, the two question modes, prompts."""

import dataclasses
import json

import numpy as np
import pytest

from vlm3_jax import records
from vlm3_jax.camera import Camera
from vlm3_jax.checkpoint import tiny_tokenizer
from vlm3_jax.data.samples import build_sample
from vlm3_jax.processor import image
from vlm3_jax.processor.chat import ChatFormat
from vlm3_jax.processor.prompt import prompt_sample
from vlm3_jax.tasks.base import Example

SPEC = image.VisionSpec(4, 2, 2, 64, 16_384, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 8)
SIZES = [(24, 16), (16, 40), (8, 8)]
QUESTIONS = [("<d> 45,67 =", "2.3"), ("where (12, 3)?", "(4, 5)"), ("how far", "12.75 meters")]


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny_tokenizer.write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(tiny_tokenizer.special_ids()))
    return ChatFormat.from_dir(folder)


def make_record(n_images):
    views = []
    for number, (width, height) in enumerate(SIZES[:n_images]):
        pixels = np.full((height, width, 3), number, np.uint8)
        camera = Camera(20.0, 20.0, width / 2, height / 2, width, height)
        views.append(records.View(records.encode_image(pixels, "x.png"), camera))
    return records.Record("r", tuple(views))


def make_sample(chat, n_images=1, questions=QUESTIONS, **settings):
    examples = [Example(q, a, {}, tuple(range(n_images))) for q, a in questions]
    return build_sample(make_record(n_images), examples, chat, SPEC, **settings)


def reference_positions(chat, tokens, grids):
    """transformers' get_rope_index of one row, int [3, n]."""
    import torch
    from transformers import Qwen3VLConfig
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

    text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    text |= {"num_key_value_heads": 1, "head_dim": 8, "vocab_size": 512, "pad_token_id": None}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
    vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 1, "out_hidden_size": 8}
    vision |= {"patch_size": 4, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    model = Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=vision, image_token_id=chat.image_id))
    ids = torch.tensor(tokens)[None]
    thw = torch.tensor([[1, *grid] for grid in grids]) if grids else None
    return model.get_rope_index(ids, (ids == chat.image_id).int(), thw)[0][:, 0].numpy()


@pytest.mark.parametrize("n_images", [0, 1, 2, 3])
def test_positions_equal_transformers(chat, n_images):
    sample = make_sample(chat, n_images)
    expected = reference_positions(chat, sample.tokens, [layout.grid for layout in sample.images])
    np.testing.assert_array_equal(sample.positions, expected)
    assert [layout.grid for layout in sample.images] == [(h // 4, w // 4) for w, h in SIZES[:n_images]]
    np.testing.assert_array_equal(np.flatnonzero(sample.tokens == chat.image_id), sample.visual_slot)


@pytest.mark.parametrize("n_images", [0, 1, 2])
def test_independent_questions_are_as_if_alone(chat, n_images):
    sample = make_sample(chat, n_images, mode="independent")
    shared = sample.questions == 0
    for number, question in enumerate(QUESTIONS, 1):
        alone = make_sample(chat, n_images, [question])
        mine = shared | (sample.questions == number)
        np.testing.assert_array_equal(sample.tokens[mine], alone.tokens)
        np.testing.assert_array_equal(sample.positions[:, mine], alone.positions)
        targets = mine[sample.target_slot]
        np.testing.assert_array_equal(np.cumsum(mine)[sample.target_slot[targets]] - 1, alone.target_slot)
        np.testing.assert_array_equal(sample.target_tokens[targets], alone.target_tokens)
    assert not sample.target_later.any()


@pytest.mark.parametrize("mode", ["turns", "independent"])
def test_targets_are_the_answers(chat, mode):
    sample = make_sample(chat, 2, mode=mode, first_answer_weight=3.0)
    newline = chat.encode_text("\n")
    expected = [[*chat.encode_text(answer), chat.stop_ids[0], *newline] for _, answer in QUESTIONS]
    assert sample.target_tokens.tolist() == [token for answer in expected for token in answer]
    np.testing.assert_array_equal(sample.tokens[sample.target_slot + 1], sample.target_tokens)
    np.testing.assert_array_equal(
        sample.target_weight, np.concatenate([[3.0] + [1.0] * (len(answer) - 1) for answer in expected])
    )
    later = np.repeat([False, True, True], [len(answer) for answer in expected])
    np.testing.assert_array_equal(sample.target_later, later if mode == "turns" else np.zeros_like(later))
    kinds = {field.name: getattr(sample, field.name).dtype for field in dataclasses.fields(sample)[2:6]}
    assert set(kinds.values()) == {np.dtype(np.int32)}


def test_views_are_shown_in_the_order_of_the_example(chat):
    sample = build_sample(make_record(3), [Example("q", "a", {}, (2, 0))], chat, SPEC, id="x", component=4)
    assert [layout.final for layout in sample.images] == [SIZES[2], SIZES[0]]
    assert (sample.id, sample.component) == ("x", 4)
    assert sample.n_patches == 4 + 24


@pytest.mark.parametrize("n_images", [0, 2])
def test_prompt_is_the_sample_up_to_the_answer(chat, n_images):
    layouts = [image.image_layout(view, SPEC) for view in make_record(n_images).views]
    prompt = prompt_sample(layouts, [q for q, _ in QUESTIONS], chat)
    for i, question in enumerate(QUESTIONS):
        alone = make_sample(chat, n_images, [question])
        tokens = np.concatenate([prompt.prefix_tokens, prompt.suffix_tokens[i]])
        places = np.concatenate([prompt.prefix_positions, prompt.suffix_positions[i]], 1)
        np.testing.assert_array_equal(tokens, alone.tokens[: alone.target_slot[0] + 1])
        np.testing.assert_array_equal(places, alone.positions[:, : len(tokens)])
    np.testing.assert_array_equal(prompt.visual_slot, alone.visual_slot)
    single = prompt_sample(layouts, QUESTIONS[0][0], chat)
    np.testing.assert_array_equal(single.suffix_tokens[0], prompt.suffix_tokens[0])
