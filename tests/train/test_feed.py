"""What processes that share the rows of a batch tell each other of them, and what they wait for."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import feed_worker
import numpy as np
import pytest

from tests.support import write_depthlm
from vlm3_jax.parallel.processes import over_rows

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def data(tmp_path) -> pathlib.Path:
    """24 records of DepthLM, every third of which has a broken image, and every fourth an aspect that nothing fits."""
    path = write_depthlm(tmp_path / "data", 24)
    for image in path.parent.glob("*.png"):
        if int(image.stem) % 3 == 0:
            image.write_bytes(image.read_bytes()[:-200])
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records[::4]:
        record |= {"intrinsics": [800, 10, 2050, 10, 4100, 20], "pixel_coords": [[9, 1]], "depth": [2.0]}
    path.write_text("\n".join(map(json.dumps, records)) + "\n")
    return path


def read(processes, *arguments) -> list[dict]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{found.getsockname()[1]}"
    started = []
    for number in range(processes):
        command = [sys.executable, feed_worker.__file__, *map(str, arguments), place, str(processes), str(number)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        started.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        )
    done = [(*process.communicate(timeout=300), process.returncode) for process in started]
    assert [code for _, _, code in done] == [0] * processes, done
    return [json.loads(out.splitlines()[-1]) for out, _, _ in done]


@pytest.mark.slow
def test_two_processes_know_of_all_rows(tiny_model, data, tmp_path):
    """Each counts what both set aside, and waits for its own data alone: the other one's time is that of a step."""
    one = feed_worker.main(tiny_model, data, tmp_path / "one")
    first, second = read(2, tiny_model, data, tmp_path / "two")
    assert first["batches"] == second["batches"] == one["batches"]
    assert first["held_out"] == second["held_out"] == one["held_out"]
    bad = [batch[0] for batch in one["batches"]]
    assert min(bad) > 0
    # Both have some of them.
    assert min(first["own"], second["own"]) > 0
    assert first["own"] + second["own"] == one["held_out"][0]
    lines = [
        len((tmp_path / "two" / name).read_text().splitlines()) for name in ("quarantine.jsonl", "quarantine-1.jsonl")
    ]
    assert min(lines) > 0
    assert sum(lines) == sum(bad) + one["held_out"][0]
    slept = feed_worker.BATCHES * feed_worker.SLOW_S
    assert first["times"]["time/wait"] < slept / 2
    assert first["times"]["time/step"] > slept / 2


def test_rows_that_several_bring_count_once():
    rows = np.array([[0, 1], [0, 1], [2, 3], [2, 3]])
    counts = np.array([[1, 10], [1, 10], [5, 0], [5, 0]])
    assert over_rows(rows, counts).tolist() == [6, 10]
    assert over_rows(rows, counts[:, 0]) == 6
