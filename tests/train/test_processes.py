"""Runs of several processes on one machine: the same numbers as one, stopped, killed, continued by other counts.

The first look, at two of which one is killed, is in test_training_run.py.
"""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import lost_worker
import numpy as np
import pytest
import run_processes
from run_processes import Ended, free_port, lost

from tests.support import rows_of_metrics, write_records
from vlm3_jax.checkpoint import hf
from vlm3_jax.train.checkpoints import Checkpoints

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEVICES = 4
STEPS = 12
SETTINGS = (
    "--config.data.rows=4",
    f"--config.train.max_steps={STEPS}",
    "--config.train.samples=300",
    "--config.train.eval_every=0",
    "--config.train.save_every=3",
)


@dataclasses.dataclass
class Place:
    """What the runs share."""

    model: pathlib.Path
    data: pathlib.Path


@pytest.fixture(scope="module")
def place(tiny_model, tmp_path_factory) -> Place:
    root = tmp_path_factory.mktemp("processes")
    return Place(tiny_model, write_records(root / "data"))


def ids(workdir) -> list[tuple]:
    return [(row["step"], row["ids"], row["samples"]) for row in rows_of_metrics(workdir) if "ids" in row]


def losses(workdir) -> list[float]:
    return [row["loss"] for row in rows_of_metrics(workdir) if "loss" in row]


def train(place, workdir, processes=1, signals=None, settings=()) -> list[Ended]:
    """`run_processes.train` on four devices, with the settings of these runs."""
    return run_processes.train(place.model, place.data, workdir, processes, DEVICES, signals, [*SETTINGS, *settings])


@pytest.fixture(scope="module")
def unbroken(place, tmp_path_factory) -> pathlib.Path:
    """One process with all devices and nothing to disturb it."""
    workdir = tmp_path_factory.mktemp("one")
    (done,) = train(place, workdir)
    assert done.code == 0, done.errors
    return workdir


def same_as(workdir, unbroken) -> None:
    """The ids bit-equal, the losses equal up to rounding."""
    assert ids(workdir) == ids(unbroken)
    assert [row[0] for row in ids(workdir)] == list(range(1, STEPS + 1))
    np.testing.assert_allclose(losses(workdir), losses(unbroken), rtol=1e-6)


@pytest.mark.slow
def test_two_processes_stopped_by_one(place, unbroken, tmp_path):
    """The first of two is killed; two go on until one gets SIGTERM; one goes on alone."""
    first, second = train(place, tmp_path, 2, {0: "SIGKILL@4/3"})
    assert first.code == -signal.SIGKILL
    assert lost(second), second.errors
    assert Checkpoints(tmp_path).latest_step() == 3
    first, second = train(place, tmp_path, 2, {1: "SIGTERM@7"})
    assert (first.code, second.code) == (0, 0), first.errors + second.errors
    # Noticed while step 8 runs, told before step 9, which is left.
    assert "stopped and saved at step 8" in first.errors
    assert "stopped" not in second.errors
    assert Checkpoints(tmp_path).latest_step() == 8
    assert not (tmp_path / "export").exists()
    (done,) = train(place, tmp_path)
    assert done.code == 0, done.errors
    same_as(tmp_path, unbroken)
    for ours, theirs in zip(*(jax.tree.leaves(hf.load(w / "export")[1]) for w in (tmp_path, unbroken)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.slow
def test_two_four_and_one_process(place, unbroken, tmp_path):
    """Two until all get SIGTERM at times of their own, four until one does, one alone; then two from start to end."""
    two = train(place, tmp_path / "parts", 2, {0: "SIGTERM@2", 1: "SIGTERM@1"}, ["--config.mesh.replica=2"])
    assert [p.code for p in two] == [0, 0], two
    assert Checkpoints(tmp_path / "parts").latest_step() == 2
    four = train(place, tmp_path / "parts", 4, {3: "SIGTERM@5"}, ["--config.mesh.tensor=2"])
    assert [p.code for p in four] == [0] * 4, four
    assert Checkpoints(tmp_path / "parts").latest_step() == 6
    (one,) = train(place, tmp_path / "parts")
    assert one.code == 0, one.errors
    same_as(tmp_path / "parts", unbroken)
    whole = train(place, tmp_path / "whole", 2)
    assert [p.code for p in whole] == [0, 0], whole
    same_as(tmp_path / "whole", unbroken)
    assert {p.name for p in (tmp_path / "whole").iterdir()} == {p.name for p in unbroken.iterdir()}
    assert hf.load(tmp_path / "whole" / "export")[0] == hf.load(unbroken / "export")[0]


@pytest.mark.slow
def test_three_of_four_notice_a_lost_process(place, tmp_path):
    for number, process in enumerate(train(place, tmp_path, 4, {2: "SIGKILL@4"})):
        # A process that ends because of another may itself be what the next one misses.
        assert number == 2 or lost(process), (number, process)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "victim", "number", "limit_s"),
    # The coordinator's connections break; one that hangs keeps all of its own, so that only the heartbeat tells.
    [(3, 0, signal.SIGKILL, 20), (2, 1, signal.SIGKILL, 60), (2, 1, signal.SIGSTOP, 60)],
)
def test_idle_processes_notice_a_lost_one(processes, victim, number, limit_s):
    command = [sys.executable, lost_worker.__file__, f"127.0.0.1:{free_port()}", str(processes)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started = [subprocess.Popen([*command, str(k)], **pipes, env=environment) for k in range(processes)]
    for process in started:
        while "ready" not in process.stdout.readline():
            assert process.poll() is None
    start = time.monotonic()
    started[victim].send_signal(number)
    for process in started[:victim] + started[victim + 1 :]:
        _, errors = process.communicate(timeout=120)
        print(f"noticed after {time.monotonic() - start:.1f} s: {errors}")
        assert lost(Ended(process.returncode, errors, time.monotonic() - start))
        assert time.monotonic() - start < limit_s
    started[victim].kill()
    started[victim].communicate()


@pytest.mark.slow
def test_hosts_without_a_common_workdir(place, tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder, process in zip(folders, train(place, folders, 2), strict=True):
        assert process.code == 2, process
        assert f"{folder}: --workdir is not the same folder in process 1 as in process 0; it must" in process.errors
        assert "Traceback" not in process.errors


@pytest.mark.slow
def test_an_error_of_one_process_ends_all(place, tmp_path):
    """A second Ctrl-C stops a process at once: it says why, the others that one is lost."""
    first, second = train(place, tmp_path, 2, {1: "SIGINT@3+SIGINT@3"})
    assert (second.code, second.errors.splitlines()[-1]) == (130, "vlm3 train: process 1 of 2: interrupted")
    assert lost(first), first.errors
