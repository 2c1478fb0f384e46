"""`vlm3 eval` as it is used: several processes, several devices, kills. The predictions are the same to the byte."""

import dataclasses
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

import pytest
from bench_toys import depth_record, frozen, pair_record

from tests.support import FOCAL, write_records
from vlm3_jax.camera import Focal
from vlm3_jax.checkpoint import tiny
from vlm3_jax.evaluate.benchmarks import BENCHMARKS, Asked
from vlm3_jax.evaluate.predictions import BESIDES
from vlm3_jax.tasks import protocol

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Enough for answers to be written down more often than an evaluation is killed, while those that are left go on.
RECORDS = 96
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
    """A model, records and a config of both."""
    folder = tmp_path_factory.mktemp("eval")
    write_records(folder / "data", RECORDS)
    tiny.make(folder / "model", "test", 3)
    (folder / "run.py").write_text(CONFIG.format(data=folder / "data", focal=FOCAL, records=RECORDS))
    return folder


@pytest.fixture(scope="module")
def benches(tmp_path_factory):
    """Two benchmarks and a model that is asked in short words about small pictures, as words of a command."""
    folder = tmp_path_factory.mktemp("bench")
    pairs = [(a, b) for a in range(4) for b in range(4) if a != b]
    records = {
        "ibims1": [dataclasses.replace(depth_record(n % 4), id=f"place/{n:03d}") for n in range(150)],
        "eth3d_pose": [pair_record(*pairs[n % 12], f"place/{n:03d}-{n:03d}") for n in range(160)],
    }
    for name, made in records.items():
        asked = Asked(BENCHMARKS[name])
        frozen(asked, folder / "data" / asked.benchmark.where, made)
    tiny.make(folder / "model", "test", 3)
    rule = Focal(40.0, "per_axis")
    protocol.write(folder / "model", {task: protocol.Protocol(task, "short", 100, rule) for task in ("depth", "pose")})
    small = ["--config.eval.image_sets=8", "--config.eval.questions=4", "--config.eval.max_new_tokens=6"]
    return folder, [*(f"--bench={name}" for name in records), f"--model={folder / 'model'}", "--labels=4", *small]


def start(place, out, processes=1, devices=1, extra=()):
    if isinstance(place, tuple):
        place, words = place
    else:
        words = [f"--config={place / 'run.py'}", f"--workdir={out}", f"--model={place / 'model'}"]
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    started = []
    for number in range(processes):
        command = [sys.executable, "-m", "vlm3_jax.cli", "eval", f"--out={out}", *words]
        command += [f"--config.mesh.cpu_devices={devices}", *extra]
        if processes > 1:
            command += [f"--coordinator=127.0.0.1:{port}", f"--processes={processes}", f"--process={number}"]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "VLM3_DATA": str(place / "data")}
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
    assert alone.count(b"\n") == 3 * 2 * RECORDS * 3
    assert answered(place, tmp_path, processes=2) == alone


@pytest.mark.slow
def test_three_processes_and_eight_devices_give_the_bytes_of_one(place, alone, tmp_path):
    assert answered(place, tmp_path / "three", processes=3) == alone
    assert answered(place, tmp_path / "eight", devices=8) == alone


@pytest.mark.slow
def test_spreads_of_processes_are_the_same_to_the_byte_and_of_eight_devices_to_a_digit(place, counting, tmp_path):
    """And answers are those of the command without them."""
    model = f"--model={counting}"
    whole = answered(place, tmp_path / "one", extra=[model, "--spread"])
    assert answered(place, tmp_path / "three", processes=3, extra=[model, "--spread"]) == whole
    runs = [whole, answered(place, tmp_path / "eight", devices=8, extra=[model, "--spread"])]
    runs.append(answered(place, tmp_path / "plain", extra=[model]))
    own, eight, plain = ([json.loads(line) for line in found.splitlines()] for found in runs)
    assert sum("spread" in row for row in own) > 10
    for row, its, bare in zip(own, eight, plain, strict=True):
        numbers, its_numbers = ({name: one.pop(name) for name in BESIDES if name in one} for one in (row, its))
        assert numbers == pytest.approx(its_numbers, rel=2e-3)
        assert row == its == bare


@pytest.mark.slow
def test_five_kills_by_different_numbers_of_processes(place, alone, tmp_path):
    killed(place, tmp_path)
    assert answered(place, tmp_path) == alone


def killed(place, out, seed=4) -> None:
    """Started five times by different numbers of processes, one of which is killed each time."""
    rng, rows = random.Random(seed), 0
    for kill, processes in enumerate((1, 2, 1, 3, 2)):
        started = start(place, out, processes)
        # Once somebody has answered something new. By the clock a fast machine would answer all before the last kill.
        wanted = rows + rng.randint(1, 40)
        while _rows(out) < wanted:
            assert any(process.poll() is None for process in started), finish(started)
            time.sleep(0.005)
        started[kill % processes].send_signal(signal.SIGKILL)
        for process in started:
            _, errors = process.communicate(timeout=180)
            assert "Traceback" not in errors
        rows = _rows(out)


@pytest.mark.slow
def test_benchmarks_by_several_processes_and_after_five_kills_are_the_same_to_the_byte(benches, tmp_path):
    outs = [tmp_path / name for name in ("one", "two", "killed")]
    killed(benches, outs[2], seed=5)
    for out, processes in zip(outs, (1, 2, 1), strict=True):
        for code, errors in finish(start(benches, out, processes)):
            assert code == 0, errors
    kept = ["ibims1/predictions.jsonl", "eth3d_pose/predictions.jsonl", "ibims1/results.json", "benchmarks.json"]
    kept += [path.relative_to(outs[0]) for path in sorted(outs[0].rglob("*.jpg"))]
    for name in kept:
        assert len({(out / name).read_bytes() for out in outs}) == 1, name
    # Images of four points; pairs, both ways, of four questions.
    counts = [(outs[2] / name).read_bytes().count(b"\n") for name in kept[:2]]
    assert counts == [150 * 4, 160 * 2 * 4]


def _rows(out) -> int:
    return sum(path.read_bytes().count(b"\n") for path in out.rglob("parts/*/*.jsonl"))
