"""The command line: help everywhere, and for every mistake one line, exit code 2 and nothing half-written."""

import argparse
import json
import shutil
import subprocess
import sys

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import ExifTags, Image

from vlm3_jax import cli
from vlm3_jax import config as configs
from vlm3_jax.commands import arguments
from vlm3_jax.errors import Again
from vlm3_jax.tasks import protocol


def commands(parser=None, path=()):
    """Every command and sub-command, as words."""
    yield path
    for action in (parser or cli.make_parser())._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                yield from commands(sub, (*path, name))


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_help(words, capsys):
    with pytest.raises(SystemExit) as done:
        cli.main([*words, "--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: vlm3 " + " ".join(words))
    assert len(text.splitlines()) > 3


def test_commands_are_all_there():
    assert {("train",), ("eval",), ("report",), ("score",), ("ask",), ("demo",), ("convert",)} <= set(commands())
    assert {("data", name) for name in ("build", "mix", "show", "check")} <= set(commands())


def test_mistakes_in_the_config(made, fails, tmp_path):
    records = f"--config={made / 'records.py'}"
    workdir = f"--workdir={tmp_path / 'w'}"
    line = fails("train", records, workdir, "--config.optimizer.learning_rat=1")
    assert line.endswith("the config has no field 'learning_rat'; did you mean 'learning_rate'?")
    line = fails("train", records, workdir, "--config.data.rows=many")
    assert line.startswith("--config.data.rows=many: not a int")
    line = fails("train", "--config=nothere", workdir)
    assert "no file" in line
    assert "shipped configs are correspondence, demo" in line
    assert fails("train", records).startswith("no workdir is given: set --workdir")
    line = fails("train", records, workdir, "--config.data.components.depth.task=dept")
    assert "dept" in line
    line = fails("train", records, workdir, "--config.data.components.depth.protocol=long")
    assert line == "component 'depth': protocol is 'long'; choose one of ('release', 'paper', 'short')"
    line = fails("train", records, workdir, f"--config.data.components.depth.path={tmp_path / 'none'}")
    assert line == f"depth: no ArrayRecord shards (*.array_record*) at {tmp_path / 'none'}"
    line = fails("train", records, workdir, "--config.optimizer.schedule=step")
    assert line == "optimizer.schedule is 'step', but must be one of 'cosine', 'linear_tail', 'constant'"
    line = fails("train", records, workdir, "--config.data.row_tokens=64")
    assert "is larger than a row (" in line
    assert not (tmp_path / "w" / "export").exists()


def test_numbers_that_cannot_be(made, fails, tmp_path):
    """Whichever command reads them: each is named before anything is computed."""
    config = (f"--config={made / 'records.py'}", f"--workdir={tmp_path / 'w'}")
    for command in (("train",), ("data", "mix"), ("data", "show"), ("data", "check")):
        line = fails(*command, *config, "--config.data.max_bad_fraction=nan")
        assert line == "data.max_bad_fraction is nan, but must be from 0 to 1"
        assert fails(*command, *config, "--config.seed=-1").startswith("seed is -1, but must be at least 0")
        assert (
            fails(*command, *config, "--config.data.pair_block=-1") == "data.pair_block is -1, but must be at least 0"
        )
    assert fails("data", "mix", *config, "--config.data.row_tokens=0") == "data.row_tokens is 0, but must be at least 1"
    line = fails("data", "show", *config, "--config.data.components.depth.weight=inf")
    assert line == "component 'depth': weight = inf is out of range"
    assert fails("data", "mix", *config, "--samples=0") == "--samples=0: draw at least 1"
    assert fails("data", "show", *config, "--index=-1") == "--index=-1: draws of a mixture are counted from 0"
    line = fails("data", "show", *config, f"--picture={tmp_path}/missing/x.png")
    assert line == f"--picture={tmp_path}/missing/x.png: no folder {tmp_path}/missing"
    (tmp_path / "folder.png").mkdir()
    assert fails("data", "show", *config, f"--picture={tmp_path}/folder.png").endswith("folder.png: it is a folder")
    for name in ("x.foo", "x", "x.png.gz"):
        line = fails("data", "show", *config, f"--picture={name}")
        assert line == f"--picture={name}: give a file that ends in .png or .jpg or .jpeg or .webp"


def test_a_command_without_config_refuses_its_fields(capsys):
    with pytest.raises(SystemExit) as done:
        cli.main(["ask", "--model=x", "--question=y", "--config.seed=1"])
    assert done.value.code == 2
    assert "this command takes no config" in capsys.readouterr().err


def test_a_model_that_is_none(made, fails, tmp_path, monkeypatch):
    train = ("train", f"--config={made / 'records.py'}", f"--workdir={tmp_path / 'w'}")
    for name in ("nothere", "./nothere", f"{tmp_path}/nothere", tmp_path, "a/b/c"):
        line = fails(*train, f"--model={name}")
        assert line == f"{name}: no model directory (config.json, safetensors, tokenizer) and not a hub name"
    assert fails(*train, "--model=nobody/nothing").startswith("nobody/nothing: not a local directory, and the hub")
    assert fails(*train, "--model=tiny:huge") == "tiny checkpoint: unknown size 'huge'; choose one of demo, test, moe"
    assert fails(*train, "--config.model=").startswith("no model is given: set --config.model (or --model)")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    line = fails(*train, f"--model={tmp_path}")
    assert line.startswith(f"{tmp_path / 'config.json'}: ")
    (tmp_path / "config.json").unlink()

    def many_lines(*args, **kwargs):
        raise LocalEntryNotFoundError("404 Client Error.\n\nRepository Not Found")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", many_lines)
    assert fails(*train, "--model=nobody/nothing").endswith("(404 Client Error. Repository Not Found)")
    # Nothing but the folder of a run, which holds no part of one.
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_ask(tiny_model, tmp_path, fails, capsys, rng):
    Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    ask = ("ask", f"--model={tiny_model}", "--question=What is this?", "--max-new-tokens=4")
    assert cli.main([*ask, str(tmp_path / "photo.png")]) == 0
    assert capsys.readouterr().out
    line = fails(*ask, tmp_path / "missing.png")
    assert line.startswith(f"{tmp_path / 'missing.png'}: cannot be read as an image (")
    (tmp_path / "text.png").write_text("not an image")
    assert fails(*ask, tmp_path / "text.png").startswith(f"{tmp_path / 'text.png'}: cannot be read as an image (")
    (tmp_path / "cut.png").write_bytes((tmp_path / "photo.png").read_bytes()[:200])
    assert str(tmp_path / "cut.png") in fails(*ask, tmp_path / "cut.png")


def test_other_commands_explain_themselves(made, tiny_model, fails, tmp_path, capsys):
    config = (f"--config={made / 'records.py'}", f"--workdir={tmp_path / 'w'}")
    line = fails("report", tmp_path / "none", f"--out={tmp_path / 'r.html'}")
    assert line.startswith(f"{tmp_path / 'none' / 'predictions.jsonl'}: no predictions here; run `vlm3 eval`")
    line = fails("eval", *config, "--config.eval.components.depth.weight=0")
    assert line.startswith("nothing to evaluate")
    line = fails("data", "build", f"--out={tmp_path / 'd'}", "--count=0")
    assert "count and workers must be at least 1" in line
    line = fails("data", "build", f"--out={made / 'records'}", "--count=2")
    assert line == f"{made / 'records'}: not empty and no dataset.json in it; choose another folder or empty this one"
    line = fails("score", "depth", tmp_path / "p.jsonl", tmp_path / "t.jsonl")
    assert line == f"{tmp_path / 't.jsonl'}: cannot read it (No such file or directory)"
    (tmp_path / "p.jsonl").write_text('{"id": "a", "prediction": "1.0"}\n{"id": \n')
    (tmp_path / "t.jsonl").write_text('{"id": "a", "target": {"kind": "depth", "depth_m": 1.0}}\n')
    line = fails("score", "depth", tmp_path / "p.jsonl", tmp_path / "t.jsonl")
    assert line.startswith(str(tmp_path / "p.jsonl"))
    assert "2" in line.removeprefix(str(tmp_path))
    assert cli.main(["data", "show", *config, "--index=3", f"--picture={tmp_path / 'seen.png'}"]) == 0
    assert "supervised; answers in [brackets]" in capsys.readouterr().out
    with Image.open(tmp_path / "seen.png") as picture:
        assert picture.width > 32


def test_ctrl_c_is_no_traceback(monkeypatch, capsys, tmp_path):
    def interrupt(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(configs, "load", interrupt)
    assert cli.main(["train", "--config=demo", f"--workdir={tmp_path}"]) == 130
    assert capsys.readouterr().err == "vlm3 train: interrupted\n"


def test_a_reader_that_has_gone_is_no_traceback(tmp_path):
    """As in `vlm3 score ... | head`."""
    (tmp_path / "answers.jsonl").write_text(json.dumps({"id": "a", "prediction": "1.0 meters"}) + "\n")
    target = {"kind": "depth", "depth_m": 1.0}
    (tmp_path / "targets.jsonl").write_text(json.dumps({"id": "a", "target": target}) + "\n")
    command = [sys.executable, "-m", "vlm3_jax.cli", "score", "depth", "answers.jsonl", "targets.jsonl"]
    whole = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (whole.returncode, whole.stderr) == (0, "")
    assert whole.stdout
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


REFUSED = """
import resource, sys
from vlm3_jax import cli
assert cli.main(["report", ".", "--out=first.html"]) == 0
# A file larger than may be written stands for a full disk. All that Python itself would write is written by now.
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
sys.exit(max(cli.main(["report", ".", f"--out={out}"]) for out in sys.argv[1:]))
"""


def test_what_the_disk_refuses_is_one_line(tmp_path):
    row = {"id": "a/b/0", "component": "a", "record": "b", "task": "depth", "variant": "model", "question": "?"}
    row |= {"answer": "1", "prediction": "1", "target": {"kind": "depth", "depth_m": 1.0}}
    (tmp_path / "predictions.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "file").touch()
    command = [sys.executable, "-B", "-c", REFUSED, "room.html", "file/report.html"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (found.returncode, found.stderr.splitlines()) == (
        2,
        [
            "vlm3 report: room.html: File too large; mend that and give the command again",
            "vlm3 report: file: File exists; mend that and give the command again",
        ],
    )
    assert not list(tmp_path.rglob("*.part"))


def test_what_may_succeed_again_has_a_code_of_its_own(monkeypatch, capsys, tmp_path):
    """Launchers start the same command again after 1, not after 2."""

    def passing(*_):
        raise Again("the storage does not answer")

    monkeypatch.setattr(arguments, "read_config", passing)
    assert cli.main(["train", f"--config={tmp_path / 'none.py'}"]) == 1
    assert capsys.readouterr().err == "vlm3 train: the storage does not answer\n"


def test_numbers_and_questions_that_cannot_be(fails, tiny_model, tmp_path):
    """Negative lengths and sizes, and bytes that are no text: one line, whatever they are of."""
    ask = ("ask", "--model", tiny_model, "--question")
    for tokens in (0, -3):
        line = fails(*ask, "what?", f"--max-new-tokens={tokens}")
        assert line == f"max_new_tokens is {tokens}, but must be a whole number of at least 1"
    assert fails(*ask, b"caf\xe9".decode("utf-8", "surrogateescape")) == (
        "a question or answer is no text in UTF-8 ('\\udce9' is in it)"
    )
    for size in ("nan", "-1", "0", "inf", "1e-12"):
        line = fails("convert", tiny_model, tmp_path / "x", f"--max-shard-gb={size}")
        assert line == f"--max-shard-gb={size}: give a size above 0, in 10^9 bytes"
    for tolerance in ("nan", "-1", "0"):
        line = fails("verify", tiny_model, f"--tolerance={tolerance}")
        assert line == f"--tolerance={tolerance}: give a number above 0"
    for camera in ("1,2,3", "a,b,c,d"):
        assert fails(*ask, "what?", "a.png", f"--camera={camera}").startswith(f"--camera={camera}: write FX,FY,CX,CY")
    assert fails(*ask, "what?", "https://a.b/c.png").startswith("https://a.b/c.png: images are not fetched")
    assert not (tmp_path / "x").exists()


def test_ask_says_how_images_are_shown(tiny_model, tmp_path, capsys):
    """On stderr: where the camera is from, and whether lengths in the answer can be trusted."""
    image, exif = Image.fromarray(np.zeros((48, 64, 3), np.uint8)), Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLengthIn35mmFilm] = 26
    image.save(tmp_path / "a.jpg", exif=exif)
    image.save(tmp_path / "b.png")
    model = shutil.copytree(tiny_model, tmp_path / "model")
    ask = ["ask", "--model", str(model), "--question=how far?", "--max-new-tokens=2"]

    def said(*words) -> list[str]:
        assert cli.main([*ask, *map(str, words)]) == 0
        return [line.removeprefix(f"{tmp_path}/") for line in capsys.readouterr().err.splitlines()]

    as_it_is = "shown as it is: lengths in metres mean little without the model's resize rule, see --task"
    assert said(tmp_path / "a.jpg", tmp_path / "b.png") == [
        f"a.jpg: 64 x 48, focal length 48 px (EXIF); {as_it_is}",
        f"b.png: 64 x 48, focal length 55 px (assumed 60 degrees); {as_it_is}",
    ]
    protocol.write(model, {"depth": protocol.given("depth", "short", resize="focal:40")})
    expected = ["b.png: 64 x 48, focal length 60 px (given); resized by focal:40"]
    assert said(tmp_path / "b.png", "--camera=60,60,32,24") == expected
    assert said(tmp_path / "b.png", "--camera=60,60,32,24", "--task=depth") == expected
