"""HF directories both ways: every byte survives, transformers loads what we write, and damage is named."""

import copy
import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
import torch
from transformers import Qwen3VLForConditionalGeneration

from tests.checkpoint_files import stored
from tests.model import reference as ref
from vlm3_jax.checkpoint import hf
from vlm3_jax.errors import UserError
from vlm3_jax.model.config import VLMConfig


@pytest.fixture(scope="module", params=["plain", "odd"], ids=["untied", "tied"])
def pair(request):
    return ref.pair(request.param)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bytes_survive_the_way_there_and_back(pair, dtype, tmp_path):
    source = tmp_path / "source"
    copy.deepcopy(pair.theirs).to(getattr(torch, dtype)).save_pretrained(source)
    cfg, params = hf.load(source, dtype=None)
    before, after = stored(source), stored(hf.save(tmp_path / "out", cfg, params, source))
    assert {kind for kind, _, _ in before.values()} == {{"float32": "F32", "bfloat16": "BF16"}[dtype]}
    assert before.keys() == after.keys()
    assert ("lm_head.weight" in after) == (not cfg.text.tie_word_embeddings)
    for key in before:
        assert before[key] == after[key], key
    # bfloat16 widened to float32 for training and narrowed again is the same too.
    wide = hf.load(source)[1]
    assert stored(hf.save(tmp_path / "wide", cfg, wide, source, dtype)) == before


def test_transformers_loads_what_we_write(pair, tmp_path, rng):
    folder = hf.save(tmp_path / "out", pair.cfg, pair.params, pair.folder)
    ref.check_loads(pair, folder, rng)


def test_export_in_bfloat16_says_so(pair, tmp_path):
    folder = hf.save(tmp_path / "out", pair.cfg, pair.params, pair.folder, "bfloat16")
    assert {kind for kind, _, _ in stored(folder).values()} == {"BF16"}
    assert next(Qwen3VLForConditionalGeneration.from_pretrained(folder).parameters()).dtype == torch.bfloat16


def test_shards_hold_together(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(hf, "MAX_SHARD_BYTES", 60_000)
    folder = hf.save(tmp_path / "out", pair.cfg, pair.params, pair.folder)
    whole = stored(pair.folder)
    files = sorted(folder.glob("*.safetensors"))
    index = json.loads((folder / hf.INDEX).read_text())
    assert len(files) > 3
    assert not (folder / hf.SINGLE).exists()
    assert stored(folder) == whole
    assert index["metadata"]["total_size"] == sum(len(data) for _, _, data in whole.values())
    for file in files:
        keys = safetensors.numpy.load_file(file)
        assert len(keys) == 1 or sum(value.nbytes for value in keys.values()) <= 60_000
        assert {index["weight_map"][key] for key in keys} == {file.name}
    _, params = hf.load(folder)
    again = stored(hf.save(tmp_path / "again", pair.cfg, params, folder))
    assert again == whole
    assert Qwen3VLForConditionalGeneration.from_pretrained(folder, output_loading_info=True)[1]["missing_keys"] == set()


def test_a_shorter_save_leaves_no_old_shard_behind(pair, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(hf, "MAX_SHARD_BYTES", 60_000)
        folder = hf.save(tmp_path / "out", pair.cfg, pair.params, pair.folder)
    hf.save(folder, pair.cfg, pair.params, folder)
    assert [path.name for path in folder.glob("*.safetensors*")] == [hf.SINGLE]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("failing", ["write", "carry_files"])
def test_a_failed_save_leaves_the_old_directory_alone(failing, tmp_path, monkeypatch):
    pair = ref.pair("odd")
    folder = hf.save(tmp_path / "out", pair.cfg, pair.params, pair.folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    changed = hf.parameters.nest({k: v + 1 for k, v in hf.parameters.flatten(pair.params).items()})

    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(hf, failing, fail)
        with pytest.raises(OSError, match="No space"):
            hf.save(folder, pair.cfg, changed, pair.folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    hf.save(folder, pair.cfg, changed, pair.folder)
    np.testing.assert_array_equal(hf.load(folder)[1]["text"]["norm"], pair.params["text"]["norm"] + 1)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def edit_json(path, change):
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def edit_tensors(path, change):
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path)


def cut(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


NORM = "model.language_model.norm.weight"
TABLE = "model.visual.pos_embed.weight"
EMBED = "model.language_model.embed_tokens.weight"
# What is done to a directory of one file or of shards, and what the error must say.
DAMAGE = {
    "cut in the data": (hf.SINGLE, lambda p: cut(p, -100), r"model\.safetensors: truncated or not a safetensors file"),
    "cut in the header": (hf.SINGLE, lambda p: cut(p, 100), r"model\.safetensors: truncated or not a safetensors"),
    "empty": (hf.SINGLE, lambda p: cut(p, 0), r"model\.safetensors: truncated or not a safetensors"),
    "missing tensor": (hf.SINGLE, lambda p: edit_tensors(p, lambda t: t.pop(NORM)), f"tensor {NORM} missing"),
    "unexpected tensor": (
        hf.SINGLE,
        lambda p: edit_tensors(p, lambda t: t.update({"model.extra": np.zeros(3, np.float32)})),
        r"tensor model\.extra not part of the model its config\.json describes",
    ),
    "wrong shape": (
        hf.SINGLE,
        lambda p: edit_tensors(p, lambda t: t.update({EMBED: t[EMBED][:-1]})),
        rf"model\.safetensors: {EMBED} has shape \(299, 42\), the config says \(300, 42\)",
    ),
    "no weights": (hf.SINGLE, lambda p: p.unlink(), r"holds neither model\.safetensors nor model\.safetensors\.index"),
    "no config": ("config.json", lambda p: p.unlink(), r"config\.json: no such file"),
    "config is no JSON": ("config.json", lambda p: cut(p, 50), r"config\.json: cannot be read as JSON"),
    "another model": (
        "config.json",
        lambda p: edit_json(p, lambda t: t.update(model_type="qwen2_5_vl")),
        r"config\.json: model_type is 'qwen2_5_vl', expected one of qwen3_vl",
    ),
    "a number that is none": (
        "config.json",
        lambda p: edit_json(p, lambda t: t["text_config"].update(num_hidden_layers="three")),
        r"config\.json: text_config: num_hidden_layers must be a whole number of at least 1, got 'three'",
    ),
    "no index": (hf.INDEX, lambda p: p.unlink(), r"holds neither model\.safetensors nor model\.safetensors\.index"),
    "index without a map": (hf.INDEX, lambda p: p.write_text("{}"), r"index\.json: weight_map is missing"),
    "index is no object": (hf.INDEX, lambda p: p.write_text("[]"), r"index\.json: expected a JSON object, got \[\]"),
    "index names no file": (
        hf.INDEX,
        lambda p: edit_json(p, lambda t: t["weight_map"].update({NORM: 7})),
        r"index\.json: weight_map of .*norm\.weight is 7",
    ),
    "index leaves the directory": (
        hf.INDEX,
        lambda p: edit_json(p, lambda t: t["weight_map"].update({NORM: "../odd/model.safetensors"})),
        r"file name '\.\./odd/model\.safetensors' leaves the model directory",
    ),
    "index names an absolute path": (
        hf.INDEX,
        lambda p: edit_json(p, lambda t: t["weight_map"].update({NORM: "/etc/passwd"})),
        r"file name '/etc/passwd' leaves the model directory",
    ),
    "index names a missing shard": (
        hf.INDEX,
        lambda p: edit_json(p, lambda t: t["weight_map"].update({NORM: "model-9.safetensors"})),
        r"model-9\.safetensors: no such file, though the index names it",
    ),
    "index names the wrong shard": (
        hf.INDEX,
        lambda p: edit_json(p, lambda t: t["weight_map"].update({NORM: t["weight_map"][TABLE]})),
        r"00001-of-\d+\.safetensors: holds no tensor model\.language_model\.norm\.weight, though the index says so",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """The tied model in one file and in shards."""
    pair, root = ref.pair("odd"), tmp_path_factory.mktemp("intact")
    with pytest.MonkeyPatch.context() as patch:
        hf.save(root / hf.SINGLE, pair.cfg, pair.params, pair.folder)
        patch.setattr(hf, "MAX_SHARD_BYTES", 60_000)
        hf.save(root / hf.INDEX, pair.cfg, pair.params, pair.folder)
    return root


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_damage_is_named_in_one_line(damage, intact, tmp_path):
    name, change, message = DAMAGE[damage]
    folder = tmp_path / "model"
    shutil.copytree(intact / (hf.INDEX if name == hf.INDEX else hf.SINGLE), folder)
    hf.load(folder)
    change(folder / name)
    with pytest.raises(UserError, match=message) as caught:
        hf.load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tied_head_stored_once_more_is_left_out(intact, tmp_path):
    shutil.copytree(intact / hf.SINGLE, tmp_path / "model")
    before = stored(tmp_path / "model")
    path = tmp_path / "model" / hf.SINGLE
    edit_tensors(path, lambda t: t.update({"lm_head.weight": t[EMBED]}))
    cfg, params = hf.load(tmp_path / "model")
    assert stored(hf.save(tmp_path / "out", cfg, params, tmp_path / "model")) == before


def test_both_spellings_of_the_rotary_settings(pair):
    tree = json.loads((pair.folder / "config.json").read_text())
    text = tree["text_config"]
    assert "rope_parameters" in text
    newer = VLMConfig.from_hf(tree)
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope.pop("rope_theta")
    text["rope_scaling"] = rope
    assert VLMConfig.from_hf(tree) == newer
    assert newer.text.rope_theta == 5e6
    assert newer.text.mrope_section == {False: (6, 5, 5), True: (3, 3, 3)}[newer.text.tie_word_embeddings]
    del text["rope_theta"]
    with pytest.raises(UserError, match=r"config\.json: text_config: rope_theta is missing"):
        VLMConfig.from_hf(tree)
