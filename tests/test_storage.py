"""Paths with a scheme that nobody reads are refused wherever a path is given, and leave no folder behind."""

import pytest

import vlm3_jax
from vlm3_jax import cli, config_rules, pretrained, synth
from vlm3_jax import config as configs
from vlm3_jax.checkpoint import convert
from vlm3_jax.config_rules import check_component
from vlm3_jax.errors import UserError

COMMANDS = [
    "train --config=demo --workdir=az://lab/run",
    "train --config=demo --config.workdir=az://lab/run",
    "train --config=demo --workdir=x --model=az://lab/run",
    "eval --config=demo --workdir=x --out=az://lab/z",
    "report az://lab/a",
    "report x --out=az://lab/a.html",
    "report x --metrics=az://lab/metrics.jsonl",
    "score depth az://lab/p.jsonl t.jsonl",
    "ask --model=az://lab/y --question=what",
    "convert az://lab/y x",
    "convert {model} az://lab/y",
    "verify az://lab/y",
    "verify {model} --against=az://lab/y",
    "demo --workdir=az://lab/run",
    "data build --out=az://lab/z --count=1",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_a_scheme_at_once(command, tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = command.format(model=tiny_model).split()
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"vlm3 {words[0]}: ")
    assert error.endswith(": give a local path or one that begins with gs://, s3://\n")
    assert "://lab" in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


LOCAL = ["data show --config=demo --workdir=x --picture=gs://lab/a.png", "data check --config=gs://lab/config.py"]


@pytest.mark.parametrize("command", LOCAL)
def test_what_must_be_local(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(command.split()) == 2
    error = capsys.readouterr().err
    assert error.endswith(": only a local path will do here; copy it there first\n")
    assert not list(tmp_path.iterdir())


def test_functions_refuse_a_scheme(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calls = [
        lambda: vlm3_jax.load("az://lab/y"),
        lambda: pretrained.open("az://lab/y"),
        lambda: convert.convert(convert.plan_conversion(pretrained.open(tiny_model).source), "az://lab/y"),
        lambda: synth.build("az://lab/z", 1, synth.SynthOptions(), 0),
        lambda: check_component("a", {"path": "az://lab/*.array_record"}),
        lambda: check_component("a", {"kind": "depthlm", "path": "x", "images": "az://lab", "depth_kind": "z"}),
    ]
    for call in calls:
        with pytest.raises(UserError, match="give a local path or one that begins with gs://, s3://"):
            call()
    assert not list(tmp_path.iterdir())
    config = configs.base()
    config.workdir = "az://lab/run"
    with pytest.raises(UserError, match=r"^config.workdir: az://lab/run: give a local path"):
        config_rules.check(config)
