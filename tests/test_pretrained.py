"""What `--model` may be."""

import shutil

import pytest

from tests.support import draw_samples, write_records
from vlm3_jax import pretrained
from vlm3_jax.errors import UserError
from vlm3_jax.model.config import VLMConfig
from vlm3_jax.train.held_out import answer_tokens


def test_a_directory_is_taken_as_it_is(tiny_model, tmp_path):
    assert pretrained.open(str(tiny_model), tmp_path).folder == tiny_model


def test_a_finished_workdir_stands_for_its_export(tiny_model, tmp_path):
    """A workdir has a config.json of its own, that of the run."""
    (tmp_path / "config.json").write_text("{}")
    shutil.copytree(tiny_model, tmp_path / "export")
    assert pretrained.open(str(tmp_path), ".").folder == tmp_path / "export"
    shutil.rmtree(tmp_path / "export")
    with pytest.raises(UserError, match=r"no model directory"):
        pretrained.open(f"{tmp_path}/export")


def test_a_tiny_model_is_made_once_for_each_size_and_seed(tmp_path):
    first = pretrained.open("tiny:test", tmp_path, seed=0).folder
    weights = first / "model.safetensors"
    before, written = weights.read_bytes(), weights.stat().st_mtime_ns
    assert pretrained.open("tiny:test", tmp_path, seed=0).folder == first
    assert weights.stat().st_mtime_ns == written
    other = pretrained.open("tiny:test", tmp_path, seed=1).folder
    assert (other / "model.safetensors").read_bytes() != before
    larger = VLMConfig.from_dir(pretrained.open("tiny:demo", tmp_path, seed=0).folder)
    assert larger.text.hidden_size > VLMConfig.from_dir(first).text.hidden_size
    for name in ("tiny:", "tiny:huge"):
        with pytest.raises(UserError, match="unknown size"):
            pretrained.open(name, tmp_path)


@pytest.mark.parametrize("mode", ["turns", "independent"])
def test_answer_tokens_are_the_answers(tiny_model, tmp_path, mode):
    samples, _ = draw_samples(tiny_model, write_records(tmp_path), mode, 4)
    for sample in samples:
        answers = answer_tokens(sample)
        assert len(answers) == 3
        assert [token for answer in answers for token in answer] == sample.target_tokens.tolist()
        # The first token of every answer weighs 3.
        starts = [weight == 3.0 for weight in sample.target_weight]
        assert [k == 0 for answer in answers for k in range(len(answer))] == starts
