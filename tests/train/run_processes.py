"""Starts `vlm3 train` in processes, and tells how they ended."""

import dataclasses
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import run_config

ROOT = pathlib.Path(__file__).resolve().parents[2]
# What the tests' own environment says of compiling (conftest.py); the number of devices is each run's own.
XLA_FLAGS = os.environ["XLA_FLAGS"]


@dataclasses.dataclass
class Ended:
    """How a process of a run ended; `seconds` after the one that ended first."""

    code: int
    errors: str
    seconds: float


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def train(model, data, workdir, processes, devices, signals=None, settings=()) -> list[Ended]:
    """`vlm3 train` in so many processes, which share the devices; `signals`: process -> "SIGTERM@4", sent to itself.

    `workdir`: a list gives each process its own.
    """
    port, started = free_port(), []
    for number in range(processes):
        argument = (signals or {}).get(number, "")
        command = [sys.executable, "-m", "vlm3_jax.cli", "train", f"--config={run_config.__file__}:{argument}"]
        folder = workdir[number] if isinstance(workdir, list) else workdir
        command += [f"--workdir={folder}", *settings]
        if processes > 1:
            command += [f"--coordinator=127.0.0.1:{port}", f"--processes={processes}", f"--process={number}"]
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "RUN_MODEL": str(model),
            "RUN_DATA": str(data),
            "XLA_FLAGS": f"{XLA_FLAGS} --xla_force_host_platform_device_count={devices // processes}",
        }
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment))
    times = {}
    while len(times) < processes:
        times |= {p: time.monotonic() for p in started if p not in times and p.poll() is not None}
        time.sleep(0.01)
    ended = [Ended(p.returncode, p.stderr.read(), times[p] - min(times.values())) for p in started]
    for process in started:
        process.stderr.close()
    return ended


def lost(ended: Ended) -> bool:
    """Whether a process ended within a minute and says that another is lost, in a line or by the runtime's report."""
    assert "Traceback" not in ended.errors
    ours = re.search(r"^vlm3 train: process \d of \d: another process is lost; its own output", ended.errors, re.M)
    # What docs/scaling.md tells to look for.
    report = ended.code == -signal.SIGABRT and "another task died" in ended.errors
    return ended.code not in (0, 2) and ended.seconds < 60 and bool(ours or report)
