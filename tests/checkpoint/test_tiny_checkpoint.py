"""The tiny model directories are complete: transformers loads each part, and sees what we see."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoTokenizer, Qwen2VLImageProcessorPil, Qwen3VLForConditionalGeneration

from tests.support import blocks
from vlm3_jax.camera import Camera
from vlm3_jax.checkpoint import hf, tiny
from vlm3_jax.errors import UserError
from vlm3_jax.model import params as parameters
from vlm3_jax.model.config import VLMConfig
from vlm3_jax.model.sizes import NAMES, released
from vlm3_jax.processor.chat import ChatFormat
from vlm3_jax.processor.image import VisionSpec, image_layout
from vlm3_jax.records import View, encode_image


@pytest.fixture(scope="module", params=["demo", "test"])
def folder(request, tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("tiny") / "model", request.param)


def test_transformers_loads_the_weights(folder):
    model, info = Qwen3VLForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert {name: sorted(found) for name, found in info.items() if found} == {}
    cfg, params = hf.load(folder)
    assert model.num_parameters() == parameters.count(cfg)
    theirs = model.model.language_model.layers[1].self_attn.q_proj.weight.detach().numpy()
    name, row = ("layers_tap", 1) if len(cfg.vision.taps) > 1 else ("layers", 0)
    np.testing.assert_array_equal(params["text"][name]["q_proj"][row].reshape(cfg.text.hidden_size, -1).T, theirs)


def test_transformers_reads_the_same_text(folder):
    tokenizer, chat = AutoTokenizer.from_pretrained(folder), ChatFormat.from_dir(folder)
    content = [{"type": "image"}, {"type": "text", "text": "How far is (12, 7)?"}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    prefix, suffix = chat.prompt([1], "How far is (12, 7)?")
    assert tokenizer(text).input_ids == [*prefix, *suffix]
    cfg = hf.load(folder)[0]
    assert len(tokenizer) == cfg.text.vocab_size
    assert tokenizer.convert_tokens_to_ids("<|image_pad|>") == cfg.image_token_id == chat.image_id
    assert tokenizer.eos_token_id in chat.stop_ids


def test_transformers_sees_the_same_pixels(folder, rng):
    processor, spec = Qwen2VLImageProcessorPil.from_pretrained(folder), VisionSpec.from_dir(folder)
    pixels = blocks(rng, (100, 60))
    theirs = processor(images=[Image.fromarray(pixels)], return_tensors="pt")
    layout = image_layout(View(encode_image(pixels, "image"), Camera(50.0, 50.0, 50.0, 30.0, 100, 60)), spec)
    assert theirs["image_grid_thw"].tolist() == [[1, *layout.grid]]
    ours = layout.load(spec).reshape(layout.n_patches, 3, 1, -1) / 255.0
    ours = ((ours - 0.5) / 0.5).repeat(spec.temporal_patch_size, 2).reshape(layout.n_patches, -1)
    torch.testing.assert_close(theirs["pixel_values"], torch.tensor(ours, dtype=torch.float32), atol=1e-6, rtol=0)


def test_a_directory_follows_from_its_seed(tmp_path):
    files = [
        {path.name: path.read_bytes() for path in tiny.make(tmp_path / name, "test", seed).iterdir()}
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert files[0] == files[1]
    assert files[0].pop(hf.SINGLE) != files[2].pop(hf.SINGLE)
    assert files[0] == files[2]


def test_an_unknown_size_is_refused(tmp_path):
    with pytest.raises(UserError, match="unknown size 'huge'; choose one of demo, test"):
        tiny.make(tmp_path / "x", "huge")
    assert not any(tmp_path.iterdir())


def test_the_model_normalises_as_the_image_processor_wherever_it_stands(folder, tmp_path):
    """transformers 5 writes the settings into processor_config.json, and reads them there first."""
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    for number, name in enumerate(("preprocessor_config.json", "processor_config.json"), 1):
        fields = {"image_mean": [0.1 * number] * 3, "image_std": [0.2 * number] * 3}
        nested = fields if number == 1 else {"image_processor": fields}
        (tmp_path / name).write_text(json.dumps(nested))
        cfg = VLMConfig.from_dir(tmp_path)
        assert (cfg.mean, cfg.std) == (tuple(fields["image_mean"]), tuple(fields["image_std"]))


@pytest.mark.parametrize("size", NAMES)
def test_a_config_goes_to_hf_and_back(size):
    cfg = released(size)
    theirs = AutoConfig.for_model(**cfg.to_hf())
    assert VLMConfig.from_hf(cfg.to_hf()) == cfg == VLMConfig.from_hf(theirs.to_dict())
