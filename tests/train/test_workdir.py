"""One run at a time has a workdir, and all its processes the same one."""

import contextlib
import errno
import fcntl
import os
import pathlib
import re
import socket
import subprocess
import sys

import pytest
import workdir_worker

from tests.support import small_run, write_records
from vlm3_jax.errors import UserError
from vlm3_jax.storage import lock
from vlm3_jax.train import loop, workdir
from vlm3_jax.train.workdir import claimed

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(lock, "LET_GO_S", 0.3)


def started(*arguments) -> subprocess.Popen:
    command = [sys.executable, workdir_worker.__file__, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@contextlib.contextmanager
def another_run(folder):
    with started(folder) as first:
        try:
            assert first.stdout.readline() == "claimed\n"
            yield first
        finally:
            first.kill()


def test_a_second_run_is_refused_until_the_first_is_gone(tiny_model, tmp_path, impatient):
    """It touches nothing; what SIGKILL has left does not keep the next one out."""
    folder = tmp_path / "run"
    with another_run(folder) as first:
        config = small_run(tiny_model, write_records(tmp_path / "data", 8), folder)
        line = rf"{folder}: another run is writing it \(process {first.pid} on {socket.gethostname()}\); wait until it"
        with pytest.raises(UserError, match=line):
            loop.train(config)
        assert [path.name for path in folder.iterdir()] == [workdir.LOCK]
    with claimed(folder):
        pass


def test_a_run_on_another_host_gets_the_time_that_a_file_server_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "LET_GO_S", 600)
    monkeypatch.setattr(lock, "LEASE_S", 0.3)
    with another_run(tmp_path):
        (tmp_path / workdir.LOCK).write_text("process 7 on elsewhere 00\n")
        with pytest.raises(UserError, match=r"another run is writing it \(process 7 on elsewhere\)"), claimed(tmp_path):
            pass


def test_a_workdir_is_free_after_an_error(tmp_path, impatient):
    def fail():
        with claimed(tmp_path):
            raise KeyError("of the run")

    for _ in range(2):
        with pytest.raises(KeyError, match="of the run"):
            fail()


def test_it_waits_for_a_run_that_is_ending(tmp_path):
    with (
        another_run(tmp_path) as first,
        subprocess.Popen(["sh", "-c", f"sleep 1; kill -9 {first.pid}"]),
        claimed(tmp_path),
    ):
        assert first.wait(timeout=300) == -9


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOLCK])
def test_file_systems_without_locks_do_without(number, tmp_path, monkeypatch):
    def refuse(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with claimed(tmp_path), claimed(tmp_path):
        pass


@pytest.mark.slow
def test_processes_with_other_folders_are_refused(tmp_path):
    """By all of them, so that none waits; before that their checkpoints were compared."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{found.getsockname()[1]}"
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        (folder / "checkpoints").mkdir(parents=True)
    (folders[1] / "checkpoints" / "7").mkdir()
    both = [started(folder, place, 2, number) for number, folder in enumerate(folders)]
    done = [(*process.communicate(timeout=300), process.returncode) for process in both]
    for folder, (out, errors, code) in zip(folders, done, strict=True):
        assert code == 0, errors
        # Gloo speaks here too.
        steps, other = (line for line in out.splitlines() if line.startswith(("Again", "UserError")))
        newest = "the newest checkpoint is none in process 0 and step 7 in process 1; the hosts must see the same"
        assert re.match(rf"Again {folder}/checkpoints: {newest}", steps)
        assert other == (
            f"UserError {folder}: --workdir is not the same folder in process 1 as in process 0; "
            "it must lie on a file system that all hosts share"
        )
