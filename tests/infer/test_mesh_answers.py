"""Answers of a model that is spread over eight devices: those of one device, and no device or host holds it all."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def lines(counting, tmp_path_factory) -> dict[tuple[str, str], dict]:
    """What the worker saw, by mesh and dtype."""
    return seen(counting, tmp_path_factory.mktemp("mesh") / "lines", "one", "fsdp 2 x tensor 2", "fsdp 4 x tensor 2")


def seen(model, out: pathlib.Path, *meshes) -> dict[tuple[str, str], dict]:
    devices = "--xla_force_host_platform_device_count=8"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {devices}"}
    command = [
        sys.executable,
        str(pathlib.Path(__file__).with_name("mesh_answers_worker.py")),
        str(out),
        str(model),
        *meshes,
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return {(line["mesh"], line["dtype"]): line for line in map(json.loads, out.read_text().splitlines())}


def test_answers_are_those_of_one_device(lines):
    one, spread = (lines[name, "float32"]["answers"] for name in ("one", "fsdp 2 x tensor 2"))
    assert spread == one
    assert len({str(answers) for answers in one}) == len(one)


def test_trees_are_those_of_one_device(lines):
    """Of stacked layers on a mesh, the probabilities of layers one by one."""
    one, spread = (lines[name, "float32"]["trees"] for name in ("one", "fsdp 2 x tensor 2"))
    assert sum(bool(tree) for _, tree in one) >= 2
    for (text, tree), (its_text, its_tree) in zip(one, spread, strict=True):
        assert text == its_text
        assert tree == pytest.approx(its_tree, rel=1e-3, abs=1e-9)


@pytest.mark.slow
def test_answers_of_eight_parts_are_those_of_one_device(lines, counting, tmp_path):
    eight = seen(counting, tmp_path / "lines", "fsdp 8")
    assert eight["fsdp 8", "float32"]["answers"] == lines["one", "float32"]["answers"]
    test_every_device_holds_its_part(eight)


def test_every_device_holds_its_part(lines):
    """By the axis rules: an eighth and what no axis divides; a replica holds it once more."""
    for (mesh, _), line in lines.items():
        parts = {"one": 1, "fsdp 8": 8, "fsdp 2 x tensor 2": 4, "fsdp 4 x tensor 2": 8}[mesh]
        assert line["whole"] / parts <= max(line["held"]) < 1.15 * line["whole"] / parts, mesh


def test_nothing_is_held_in_float32_first(lines):
    """In bfloat16 numpy never holds more than the model once (CPU devices keep its memory), half of it in float32."""
    for (mesh, dtype), line in lines.items():
        if dtype == "bfloat16":
            assert line["peak"] < 1.5 * line["whole"], mesh
