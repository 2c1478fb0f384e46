"""Models, converted checkpoints, adapters, exports and evaluation output in buckets."""

import numpy as np
import pytest
import servers

from tests.checkpoint_files import stored
from vlm3_jax import cli, pretrained
from vlm3_jax.checkpoint import convert, hf, locate
from vlm3_jax.errors import UserError
from vlm3_jax.evaluate.results import Results
from vlm3_jax.model import params as parameters
from vlm3_jax.storage import folders, lock


def same(one, two) -> None:
    first, second = (parameters.flatten(params) for params in (one, two))
    assert first.keys() == second.keys()
    for path, value in first.items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(second[path]), err_msg=str(path))


def test_to_and_fro(run_place, tiny_model, tmp_path, capsys):
    """HF in a bucket -> ours in the bucket -> HF on the disk: every byte, as all on the disk."""
    place = run_place
    folders.put_folder(tiny_model, place / "hf", "config.json")
    assert cli.main(["convert", str(place / "hf"), str(place / "ours")]) == 0
    assert cli.main(["convert", str(place / "ours"), str(tmp_path / "back")]) == 0
    assert f"written: {place}/ours" in capsys.readouterr().out
    assert stored(tmp_path / "back") == stored(tiny_model)
    assert {path.name for path in (tmp_path / "back").iterdir()} == {path.name for path in tiny_model.iterdir()}
    _, expected = hf.load(tiny_model)
    for name in ("hf", "ours"):
        cfg, params = hf.load(place / name)
        same(params, expected)
        opened = pretrained.open(str(place / name))
        assert opened.cfg == cfg
        same(opened.params(), expected)
    assert pretrained.open(str(place / "hf")).chat.vocab_size
    # Taken, its own source, and no model.
    assert cli.main(["convert", str(place / "hf"), str(place / "ours")]) == 2
    assert f"{place}/ours: exists and is not empty; give --overwrite" in capsys.readouterr().err
    assert cli.main(["convert", str(place / "ours"), str(place / "ours"), "--overwrite"]) == 2
    assert f"{place}/ours: is the source; choose another target" in capsys.readouterr().err
    assert cli.main(["convert", str(place / "hf"), str(place / "ours"), "--overwrite"]) == 0
    same(hf.load(place / "ours")[1], expected)
    assert cli.main(["ask", f"--model={place}/none", "--question=what"]) == 2
    line = f"vlm3 ask: {place}/none: no model directory (config.json, safetensors, tokenizer) and not a hub name\n"
    assert capsys.readouterr().err == line


def test_half_a_folder_is_no_model(place, tiny_model, monkeypatch):
    """Killed while it is put up: nobody takes it for a model, and the same command puts up all of it."""
    folders.put_folder(tiny_model, place / "hf", "config.json")
    upload, count = type(place).upload, []

    def killed(path, local):
        count.append(path)
        if len(count) > 3:
            raise KeyboardInterrupt
        upload(path, local)

    with monkeypatch.context() as patch:
        patch.setattr(type(place), "upload", killed)
        assert cli.main(["convert", str(place / "hf"), str(place / "ours")]) == 130
    with pytest.raises(UserError):
        pretrained.open(str(place / "ours"))
    assert cli.main(["convert", str(place / "hf"), str(place / "ours"), "--overwrite"]) in (0, 2)


def test_one_conversion_at_a_time(place, tiny_model, capsys):
    beside = place / ".ours.lock"
    with lock.held(beside, place / "ours", "conversion"):
        assert cli.main(["convert", str(tiny_model), str(place / "ours")]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"vlm3 convert: {place}/ours: another conversion is writing it (process ")
        assert said.endswith("; wait until it has ended, or use another target\n")
        assert not (place / "ours").exists()
    assert cli.main(["convert", str(tiny_model), str(place / "ours")]) == 0
    assert not beside.exists()


def test_a_conversion_that_was_taken_over_puts_nothing_up(place, tiny_model, monkeypatch, capsys):
    def taken_over(*args):
        (place / ".ours.lock").write_text("process 8 on elsewhere 00 0\n")
        servers.let_locks_notice()
        return write(*args)

    write = convert.write
    monkeypatch.setattr(convert, "write", taken_over)
    assert cli.main(["convert", str(tiny_model), str(place / "ours")]) == 2
    assert "process 8 on elsewhere has taken it over while this conversion was silent" in capsys.readouterr().err
    assert not (place / "ours").exists()


def test_save_and_scores(place, tiny_model):
    cfg, params = hf.load(tiny_model)
    out = hf.save(place / "saved", cfg, params, tiny_model)
    same(hf.load(out)[1], params)
    assert locate.whole(out).is_dir()
    Results(()).save(place)
    assert (place / "results.json").is_file()


def test_a_tiny_model_is_made_in_a_bucket(place):
    one = pretrained.open("tiny:test", str(place / "run"), 3)
    assert (place / "run" / "tiny-test-3" / "config.json").is_file()
    same(pretrained.open("tiny:test", str(place / "run"), 3).params(), one.params())
