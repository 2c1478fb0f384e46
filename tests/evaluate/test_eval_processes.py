"""`vlm3 eval` as it is used: several processes, several devices, kills. The predictions are the same to the byte."""

import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.support import FOCAL, write_records
from vlm3_jax.checkpoint import tiny

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = """
from vlm3_jax import config as configs
from vlm3_jax.config import component_config


def get_config():
    config = configs.base()
    entry = {{"path": "{data}", "protocol": "short", "resize": "focal:{focal:g}", "questions": 3}}
    config.eval.components.depth = component_config(task="depth", **entry)
    config.eval.components.match = component_config(task="correspondence", **entry)
    config.eval.records, config.eval.image_sets, config.eval.max_new_tokens = {records}, 8, 6
    return config
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, 48 records and a config of both."""
    folder = tmp_path_factory.mktemp("eval")
    write_records(folder / "data", 48)
    tiny.make(folder / "model", "test", 3)
    (folder / "run.py").write_text(CONFIG.format(data=folder / "data", focal=FOCAL, records=48))
    return folder


def start(place, out, processes=1, devices=1):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    started = []
    for number in range(processes):
        command = [sys.executable, "-m", "vlm3_jax.cli", "eval", f"--config={place / 'run.py'}", f"--out={out}"]
        command += [f"--workdir={out}", f"--model={place / 'model'}", f"--config.mesh.cpu_devices={devices}"]
        if processes > 1:
            command += [f"--coordinator=127.0.0.1:{port}", f"--processes={processes}", f"--process={number}"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment))
    return started


def finish(started) -> list[tuple[int, str]]:
    return [(process.wait(), process.communicate()[1])[:2] for process in started]


def answered(place, out, **how) -> bytes:
    for code, errors in finish(start(place, out, **how)):
        assert code == 0, errors
    return (out / "predictions.jsonl").read_bytes()


@pytest.fixture(scope="module")
def alone(place, tmp_path_factory):
    return answered(place, tmp_path_factory.mktemp("alone"))


@pytest.mark.slow
def test_two_processes_give_the_bytes_of_one(place, alone, tmp_path):
    assert alone.count(b"\n") == 3 * 2 * 48 * 3
    assert answered(place, tmp_path, processes=2) == alone


@pytest.mark.slow
def test_three_processes_and_eight_devices_give_the_bytes_of_one(place, alone, tmp_path):
    assert answered(place, tmp_path / "three", processes=3) == alone
    assert answered(place, tmp_path / "eight", devices=8) == alone


@pytest.mark.slow
def test_five_kills_by_different_numbers_of_processes(place, alone, tmp_path):
    rng, rows = random.Random(4), 0
    for kill, processes in enumerate((1, 2, 1, 3, 2)):
        started = start(place, tmp_path, processes)
        # Once somebody has answered something new.
        while _rows(tmp_path) <= rows:
            assert any(process.poll() is None for process in started), finish(started)
            time.sleep(0.05)
        time.sleep(rng.random() / 2)
        started[kill % processes].send_signal(signal.SIGKILL)
        for process in started:
            _, errors = process.communicate(timeout=180)
            assert "Traceback" not in errors
        rows = _rows(tmp_path)
    assert answered(place, tmp_path) == alone


def _rows(out) -> int:
    return sum(path.read_bytes().count(b"\n") for path in out.rglob("parts/*/*.jsonl"))
