"""Loading onto meshes of eight devices, in one process and in two: the plain values, and no byte that is not needed."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest
import sharded_worker

from vlm3_jax import cli

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folders(tiny_model, tmp_path_factory):
    """An HF directory in bfloat16, and a checkpoint in float32."""
    root = tmp_path_factory.mktemp("folders")
    for arguments in ((tiny_model, "ours"), (tiny_model, "narrow", "--dtype=bfloat16"), (root / "narrow", "hf")):
        source, target, *options = arguments
        assert cli.main(["convert", str(source), str(root / target), *options]) == 0
    return [root / "hf", root / "ours"]


def run(out, folders, processes: int) -> list[list[dict]]:
    """What each process has seen."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    devices = f"--xla_force_host_platform_device_count={8 // processes}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {devices}"}
    children = [
        subprocess.Popen(
            [
                sys.executable, sharded_worker.__file__, str(out / str(number)), *map(str, folders),
                f"--process={number}", f"--processes={processes}", f"--port={port}",
            ],
            env=environment, stderr=subprocess.PIPE, text=True,
        )
        for number in range(processes)
    ]  # fmt: skip
    for child in children:
        error = child.communicate(timeout=300)[1]
        assert child.returncode == 0, error[-3000:]
    return [[json.loads(line) for line in (out / str(n)).read_text().splitlines()] for n in range(processes)]


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_every_process_reads_its_own_bytes_only(processes, folders, tmp_path):
    """In one process these are all bytes, each read once however many devices hold it."""
    for lines in run(tmp_path, folders, processes):
        assert [line["folder"] for line in lines] == ["hf", "ours"] * len(sharded_worker.MESHES)
        for line in lines[::2]:
            assert line["asked"] == line["share"] + line["patches"]
            # Of two processes each is a replica of its own on one mesh; elsewhere norms, biases and what no axis
            # divides are in both.
            halved = processes == 2 and not line["mesh"].startswith("replica")
            assert line["share"] < (0.55 if halved else 1.0) * line["whole"]
            assert line["share"] > (0.45 if halved else 0.98) * line["whole"]
