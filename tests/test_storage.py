"""Paths with a scheme are refused wherever a path is given, and leave no folder behind."""

import pytest

import vlm3_jax
from vlm3_jax import cli, pretrained, synth
from vlm3_jax import config as configs
from vlm3_jax.checkpoint import convert
from vlm3_jax.config import check_component
from vlm3_jax.errors import UserError
from vlm3_jax.storage import local_path


def test_local_paths_pass():
    for path in ("a/b", "/a:b/c", "tiny:demo", "C:/", "owner/name", "a b.jpg"):
        assert str(local_path(path)) == path.rstrip("/")
    for path in ("gs://lab/run", "gs:/lab/run", "s3://lab", "https://a.b/c", "file:///a", "hf://a/b"):
        with pytest.raises(UserError, match=f"^out: {path}: only local files are read and written; give a local path$"):
            local_path(path, "out")


COMMANDS = [
    "train --config=demo --workdir=gs://lab/run",
    "train --config=demo --config.workdir=gs://lab/run",
    "train --config=demo --workdir=x --model=gs://lab/run",
    "eval --config=demo --workdir=x --out=s3://lab/z",
    "report gs://lab/a",
    "report x --out=gs://lab/a.html",
    "report x --metrics=gs://lab/metrics.jsonl",
    "score depth gs://lab/p.jsonl t.jsonl",
    "ask --model=gs://lab/y --question=what",
    "convert gs://lab/y x",
    "convert {model} gs://lab/y",
    "verify gs://lab/y",
    "verify {model} --against=gs://lab/y",
    "demo --workdir=gs://lab/run",
    "data build --out=gs://lab/z --count=1",
    "data show --config=demo --workdir=x --picture=gs://lab/a.png",
    "data check --config=gs://lab/config.py",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_a_scheme_at_once(command, tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = command.format(model=tiny_model).split()
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"vlm3 {words[0]}: ")
    assert error.endswith(": only local files are read and written; give a local path\n")
    assert "://lab" in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_functions_refuse_a_scheme(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calls = [
        lambda: vlm3_jax.load("gs://lab/y"),
        lambda: pretrained.open("gs://lab/y"),
        lambda: convert.convert(convert.plan_conversion(pretrained.open(tiny_model).source), "gs://lab/y"),
        lambda: synth.build("gs://lab/z", 1, synth.SynthOptions(), 0),
        lambda: check_component("a", {"path": "gs://lab/*.array_record"}),
        lambda: check_component("a", {"kind": "depthlm", "path": "x", "images": "gs://lab", "depth_kind": "z"}),
    ]
    for call in calls:
        with pytest.raises(UserError, match="only local files are read and written"):
            call()
    assert not list(tmp_path.iterdir())
    config = configs.base()
    config.workdir = "gs://lab/run"
    with pytest.raises(UserError, match=r"^config.workdir: gs://lab/run: only local files"):
        configs.check(config)
