"""Settings beside the weights: taken as transformers takes them, or refused in one line that names file and field."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
import torch
from transformers import Qwen3VLForConditionalGeneration

from vlm3_jax.checkpoint import hf
from vlm3_jax.checkpoint.sources import open_source
from vlm3_jax.errors import UserError
from vlm3_jax.infer.sampling import Sampling, stored_max_new_tokens
from vlm3_jax.model.config import VLMConfig
from vlm3_jax.processor.chat import ChatFormat
from vlm3_jax.processor.image import VisionSpec
from vlm3_jax.processor.video import VideoSpec

CONFIG, IMAGES, GENERATION = "config.json", "preprocessor_config.json", "generation_config.json"
HEAD, EMBED = "lm_head.weight", "model.language_model.embed_tokens.weight"


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A copy of the tied model "test" that a test may change."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def edit(path, *keys, value=None, drop=False):
    """Sets (or drops) the field at `keys` of a JSON file."""
    tree = node = json.loads(path.read_text())
    for key in keys[:-1]:
        node = node[key]
    if drop:
        node.pop(keys[-1], None)
    else:
        node[keys[-1]] = value
    path.write_text(json.dumps(tree))


def read(folder):
    """All that is read of a model but its weights."""
    VLMConfig.from_dir(folder), VisionSpec.from_dir(folder), VideoSpec.from_dir(folder)
    Sampling.from_dir(folder), stored_max_new_tokens(folder)
    return ChatFormat(folder)


def refused(folder) -> str:
    """The one line in which the settings are refused, from the name of the file on."""
    with pytest.raises(UserError) as caught:
        read(folder)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{folder}/")
    return line.removeprefix(f"{folder}/")


ROPE = "text_config", "rope_parameters"
FAULTS = [
    (GENERATION, ("eos_token_id",), "<|im_end|>", "eos_token_id must be a whole number of at least 0, got '<|im_e"),
    (GENERATION, ("eos_token_id",), [99999999], "eos_token_id must be a list of whole numbers from 0 to 511"),
    (GENERATION, ("eos_token_id",), 512, "eos_token_id is 512, but must be at most 511"),
    (GENERATION, ("eos_token_id",), [True], "eos_token_id must be a list of whole numbers"),
    (GENERATION, ("temperature",), -1.0, "temperature is -1.0, expected 0 (greedy) or a positive number"),
    (GENERATION, ("max_new_tokens",), "7", "max_new_tokens must be a whole number of at least 1, got '7'"),
    (IMAGES, ("size", "shortest_edge"), "64", "size: shortest_edge must be a whole number of at least 1, got '64'"),
    (IMAGES, ("size", "shortest_edge"), 2**30, "the smallest number of pixels, 1,073,741,824, is above the largest"),
    (IMAGES, ("image_std",), 0.5, "image_std must be a list of 3 numbers above 0, got 0.5"),
    (IMAGES, ("image_std",), [0.5, 0.5, 0.0], "image_std must be a list of 3 numbers above 0"),
    (IMAGES, ("do_normalize",), False, "do_normalize = False is not supported, only True"),
    (IMAGES, ("do_rescale",), False, "do_rescale = False is not supported, only True"),
    (IMAGES, ("rescale_factor",), 1, "rescale_factor = 1 is not supported, only 1 / 255"),
    (IMAGES, ("resample",), 2, "resample = 2 is not supported, only 3"),
    (CONFIG, (*ROPE, "mrope_section"), "444", "mrope_section must be a list of 3 whole numbers"),
    (CONFIG, ("text_config", "rope_theta"), 5e6, "rope_theta and rope_parameters.rope_theta disagree (5000000.0 and"),
    (CONFIG, ("text_config", "rope_scaling"), {"mrope_section": [2, 2, 8]}, "rope_parameters.mrope_section disagree"),
    (CONFIG, ("text_config", "rope_scaling"), {"type": "yarn"}, "rope_scaling.type and rope_parameters.rope_type disa"),
    (CONFIG, (*ROPE, "rope_type"), "yarn", "rope type 'yarn' is not supported, only 'default'"),
    (CONFIG, (*ROPE, "mrope_interleaved"), False, "mrope_interleaved = False is not supported, only True"),
    (CONFIG, ("text_config", "rms_norm_eps"), None, "rms_norm_eps must be a number above 0, got null"),
    (CONFIG, ("vision_config", "deepstack_visual_indexes"), None, "deepstack_visual_indexes must be a list of whole"),
    (CONFIG, ("tie_word_embeddings",), "yes", "tie_word_embeddings must be true or false, got 'yes'"),
    (CONFIG, ("text_config", "num_hidden_layers"), 10**9, "num_hidden_layers is 1000000000, but must be at most 4096"),
    (CONFIG, ("image_token_id",), [3], "image_token_id must be a whole number of at least 0, got [3]"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "keys", "value", "message"), FAULTS, ids=[f"{k[-1]}={v}" for _, k, v, _ in FAULTS])
def test_faults_are_named(folder, name, keys, value, message):
    edit(folder / name, *keys, value=value)
    line = refused(folder)
    assert line.startswith(f"{name}: ")
    assert message in line


@pytest.mark.parametrize("text", ["[1]", "{", "3", "[" * 100_000], ids=["a list", "cut", "a number", "nested"])
@pytest.mark.parametrize("name", [CONFIG, IMAGES, GENERATION, "processor_config.json", "chat_template.json"])
def test_files_that_are_no_object(folder, name, text):
    (folder / name).write_text(text)
    assert refused(folder).startswith(f"{name}: ")


def fields(tree, above=()):
    """The place of every field of a JSON object, nested ones too."""
    for key, value in tree.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from fields(value, (*above, key))


def refusal(folder, chat: bool) -> str | None:
    """Why the settings are refused, if they are; `chat`: the tokenizer is loaded too, which takes long."""
    try:
        VLMConfig.from_dir(folder), VisionSpec.from_dir(folder), VideoSpec.from_dir(folder)
        Sampling.from_dir(folder), stored_max_new_tokens(folder)
        return ChatFormat(folder) and None if chat else None
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("name", [CONFIG, IMAGES, GENERATION])
def test_any_value_anywhere_is_read_or_refused_in_one_line(folder, name):
    """Every field with values of every JSON type, and without it: no traceback, and the file's name in the line."""
    path = folder / name
    whole, refusals = json.loads(path.read_text()), 0
    for keys in list(fields(whole)):
        for value in (None, True, -1, 0, 10**400, 0.5, float("inf"), float("nan"), "7", "x" * 500, [], [[]], ["3"], {}):
            path.write_text(json.dumps(whole))
            edit(path, *keys, value=value)
            line = refusal(folder, keys[-1].endswith("token_id"))
            if line:
                refusals += 1
                assert len(line.splitlines()) == 1, (keys, value)
                assert str(folder) in line, (keys, value)
                assert len(line) < len(str(folder)) + 220, (keys, value)
    assert refusals > {CONFIG: 300, IMAGES: 50, GENERATION: 8}[name]


@pytest.mark.parametrize("stored", ["<|endoftext|>", "[]", "nothing", "null", "the turn end"])
def test_the_end_of_a_turn_always_stops(folder, stored):
    ids = ChatFormat(folder).specials
    end, text = ids["<|im_end|>"], ids["<|endoftext|>"]
    values = {"<|endoftext|>": text, "[]": [], "null": None, "the turn end": [end, text]}
    edit(folder / GENERATION, "eos_token_id", value=values.get(stored), drop=stored == "nothing")
    assert ChatFormat(folder).stop_ids == {"<|endoftext|>": (text, end), "the turn end": (end, text)}.get(
        stored, (end,)
    )


def test_a_missing_tokenizer_is_named(folder):
    (folder / "tokenizer.json").unlink()
    assert refused(folder) == "tokenizer.json: no such file; a model directory holds its tokenizer"


def rewrite(path, change):
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})


def test_a_head_beside_a_tied_embedding(folder):
    """transformers keeps them apart where they differ; an equal one is the embedding once more."""
    path = folder / hf.SINGLE
    rewrite(path, lambda t: t.update({HEAD: t[EMBED].copy()}))
    assert open_source(folder).cfg.text.tie_word_embeddings
    rewrite(path, lambda t: t[HEAD].__setitem__((-1, -1), 9.0))
    theirs = Qwen3VLForConditionalGeneration.from_pretrained(folder)
    assert theirs.lm_head.weight[-1, -1] == 9.0
    assert theirs.get_input_embeddings().weight[-1, -1] != 9.0
    with pytest.raises(
        UserError, match=rf"{hf.SINGLE}: {HEAD} is not the embedding, though config\.json says tie_word"
    ):
        open_source(folder)
    edit(folder / CONFIG, "tie_word_embeddings", value=False)
    assert hf.load(folder)[1]["text"]["head"][-1, -1] == 9.0


def test_a_single_file_counts_for_more_than_an_index(folder):
    """As in transformers, which looks for the single file first."""
    other = folder / "model-00001-of-00001.safetensors"
    shutil.copyfile(folder / hf.SINGLE, other)
    rewrite(other, lambda t: [np.add(value, 1, out=value) for value in t.values()])
    weight_map = dict.fromkeys(safetensors.numpy.load_file(other), other.name)
    (folder / hf.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    theirs = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).get_input_embeddings()
    np.testing.assert_array_equal(hf.load(folder)[1]["text"]["embed"], theirs.weight.detach().numpy())


def test_files_that_belong_to_no_model_stay_behind(folder, tmp_path):
    """What training tools leave beside the weights."""
    cfg, params = hf.load(folder)
    before = {path.name for path in folder.iterdir()}
    for name in ("all_results.json", "trainer_state.json", "train_results.json", "training_args.txt", "notes.txt"):
        (folder / name).write_text("{}")
    (folder / "vlm3.json").write_text("{}")
    assert {path.name for path in hf.save(tmp_path / "out", cfg, params, folder).iterdir()} == before | {"vlm3.json"}
