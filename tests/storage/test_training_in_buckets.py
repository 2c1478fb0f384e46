"""`vlm3 train` on a bucket: the numbers of a local run, stopped and killed; what it leaves there; what it refuses."""

import dataclasses
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import bucket_config
import pytest
import servers

from tests.support import write_records
from vlm3_jax import cli, storage
from vlm3_jax.checkpoint import locate
from vlm3_jax.errors import UserError
from vlm3_jax.storage import bucket_lock, folders
from vlm3_jax.train import metrics, workdir
from vlm3_jax.train.checkpoints import Checkpoints

ROOT = pathlib.Path(__file__).resolve().parents[2]
EACH = {"step", "samples", "lr", "ids", "loss", "grad_norm"}


@dataclasses.dataclass
class Run:
    """A local run that nothing has disturbed, and what it was made of."""

    workdir: pathlib.Path
    model: pathlib.Path
    data: pathlib.Path


@pytest.fixture(scope="module")
def local(tiny_model, tmp_path_factory) -> Run:
    root = tmp_path_factory.mktemp("local")
    run = Run(root / "run", tiny_model, write_records(root / "data"))
    assert command(run, run.workdir) == 0
    return run


def command(run, where, *settings, argument="", data=None) -> int:
    """The exit code of the run's command in this process."""
    with pytest.MonkeyPatch.context() as patch:
        environment(patch, run, data)
        # The config puts another in its place.
        patch.setattr(metrics.Metrics, "write", metrics.Metrics.write)
        config = f"--config={bucket_config.__file__}" + (f":{argument}" if argument else "")
        return cli.main(["train", config, f"--workdir={where}", *settings])


def environment(patch, run, data=None):
    patch.setenv("RUN_MODEL", str(run.model))
    patch.setenv("RUN_DATA", str(data or run.data))
    patch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests' / 'storage'}")


def in_a_process(run, where, argument="", *settings, data=None):
    with pytest.MonkeyPatch.context() as patch:
        environment(patch, run, data)
        config = f"--config={bucket_config.__file__}" + (f":{argument}" if argument else "")
        words = [sys.executable, "-m", "vlm3_jax.cli", "train", config, f"--workdir={where}", *settings]
        return subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=dict(os.environ))


def rows(where) -> list[dict]:
    text = (storage.path(where) / "metrics.jsonl").read_text()
    told = map(json.loads, text.splitlines())
    return [{k: v for k, v in row.items() if k in EACH or k.startswith("eval_loss/")} for row in told]


def export(where) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (storage.path(where) / "export").iterdir()}


def now_and_then(every: int = 7):
    """A rule: a request in so many fails."""
    count = itertools.count(1)
    return lambda *_: (503, 429)[n // every % 2] if (n := next(count)) % every == 0 else None


def test_stopped_killed_and_resumed(faulty_run, local, capfd, monkeypatch):
    """Data, model and workdir in the bucket; SIGTERM in step 3, SIGKILL in step 10, then to the end: bit-equal.

    After the kill the store fails now and then, which is waited for.
    """
    place, proxy = faulty_run
    monkeypatch.setattr(bucket_lock, "LEASE_S", 0.6)
    folders.put_folder(local.data, place / "data", "")
    folders.put_folder(local.model, place / "model", "config.json")
    run, where = Run(local.workdir, f"{place}/model", f"{place}/data"), place / "run"
    assert command(run, where, argument="SIGTERM@3") == 0
    assert "stopped and saved at step 4; the same command goes on from there" in capfd.readouterr().err
    assert locate.steps(where) == [4]
    assert not (where / ".lock").exists()
    assert [row["step"] for row in rows(where) if "loss" in row] == [1, 2, 3, 4]
    killed = in_a_process(run, where, "SIGKILL@10")
    errors = killed.communicate()[1]
    assert killed.returncode == -signal.SIGKILL, errors
    assert (where / ".lock").is_file()
    assert locate.steps(where)[-1] in (4, 8)
    proxy.rule = now_and_then()
    assert command(run, where) == 0
    assert rows(where) == rows(local.workdir)
    assert export(where) == export(local.workdir)
    assert locate.steps(where) == locate.steps(local.workdir)
    assert json.loads((where / "config.json").read_text())["train"]["max_steps"] == 12
    assert list((where / "tensorboard").glob("events.out.tfevents.*"))
    assert not (where / ".lock").exists()
    # Nothing was made on this machine's disk but in the cache.
    assert not pathlib.Path("gs:").exists()
    assert not pathlib.Path("s3:").exists()


def test_a_second_command_is_refused(place, local, capsys):
    with workdir.claimed(place / "run"):
        assert command(local, place / "run") == 2
    line = capsys.readouterr().err
    assert line.startswith(f"vlm3 train: {place}/run: another run is writing it (process {os.getpid()} on ")
    assert line.count("\n") == 1
    assert not (place / "run").is_dir()


def lock_is_lost(check) -> bool:
    try:
        check()
    except UserError:
        return True
    return False


def test_a_stale_lock_is_taken_over_and_its_owner_notices(place, monkeypatch):
    where = place / "run"
    (where / ".lock").write_text("process 7 on elsewhere 00 3\n")
    start = time.monotonic()
    monkeypatch.setattr(bucket_lock, "LEASE_S", 0.4)
    with workdir.claimed(where) as check:
        assert time.monotonic() - start > bucket_lock.LEASE_S
        check()
        time.sleep(0.3)
        check()
        # Somebody else takes it, as after a silence.
        (where / ".lock").write_text("process 8 on elsewhere 00 0\n")
        while not lock_is_lost(check):
            time.sleep(0.05)
        with pytest.raises(UserError, match=rf"^{where}: process 8 on elsewhere has taken it over while this run"):
            check()
    # It is not ours to remove.
    assert (where / ".lock").read_text() == "process 8 on elsewhere 00 0\n"


def test_a_lock_survives_a_store_that_fails(faulty):
    place, proxy = faulty
    with workdir.claimed(place / "run") as check:
        for _ in range(2):
            # Done, but the answer is lost.
            proxy.rule = servers.first(1, "cut", ".lock")
            time.sleep(0.3)
            proxy.rule = servers.first(2, 503, ".lock")
            time.sleep(0.3)
        check()
    assert not (place / "run" / ".lock").exists()


@pytest.mark.slow
def test_a_damaged_step_is_kept_aside(place, local):
    where = place / "run"
    assert command(local, where, "--config.train.max_steps=8") == 0
    assert locate.steps(where) == [4, 8]
    for path, stat in (where / "checkpoints" / "8" / "params").walk():
        if stat.st_size > 10_000:
            data = path.read_bytes()
            path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    assert command(local, where) == 0
    assert rows(where) == rows(local.workdir)
    assert (where / "checkpoints" / "8.damaged").is_dir()


def test_permission_is_one_line(faulty, local, capsys):
    place, proxy = faulty
    proxy.rule = lambda method, path, _: 403 if method in ("PUT", "POST") else None
    assert command(local, place / "other") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"vlm3 train: {place}/other/.lock: permission denied")


def test_a_missing_bucket_is_one_line(place, local, capsys):
    assert command(local, f"{place.scheme}://none-such/run") == 2
    line = f"vlm3 train: {place.scheme}://none-such: no such bucket; make it, or mend the name\n"
    assert capsys.readouterr().err == line


@pytest.mark.slow
def test_two_processes(place, local):
    """Stopped by a signal to one of two, gone on with by two, then by one: the numbers of one process."""
    where = place / "run"
    settings = ["--config.mesh.cpu_devices=1", "--config.mesh.fsdp=2"]
    assert command(local, place / "one", "--config.mesh.cpu_devices=2") == 0

    def both(argument):
        port = servers.free_port()
        each = [f"--coordinator=127.0.0.1:{port}", "--processes=2"]
        arguments = (argument, "")
        started = [in_a_process(local, where, arguments[n], *settings, *each, f"--process={n}") for n in range(2)]
        ended = [(process.communicate()[1], process.returncode) for process in started]
        assert [code for _, code in ended] == [0, 0], ended

    both("SIGTERM@5")
    assert locate.steps(where)[-1] == 6
    both("")
    assert [row["ids"] for row in rows(where) if "ids" in row] == [
        row["ids"] for row in rows(place / "one") if "ids" in row
    ]
    losses = [[row["loss"] for row in rows(each) if "loss" in row] for each in (where, place / "one")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert Checkpoints(where).latest_step() == 12
