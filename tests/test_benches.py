"""The benchmarks for machines that have neither an installation of this project nor all of its dependencies."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
# What stands in for such a machine: no finder and no path of an editable installation, no import of these packages.
BARE = """
import runpy, sys
root, tool, *sys.argv[1:] = sys.argv[1:]
sys.argv[0] = tool
sys.path = [f"{root}/tools", *(path for path in sys.path if path not in ("", root))]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", repr(finder))]
for name in ("grain", "ml_collections", "array_record", "orbax", "transformers", "tokenizers", "torch"):
    sys.modules[name] = None
runpy.run_path(tool, run_name="__main__")
"""
SMALL = {
    "bench_train.py": "--tokens=256 --patches=256 --visual=30 --text=60 --answers=20 --targets=64 --steps=1",
    "bench_attention.py": "--back-ends=xla --steps=1",
}


def run(tool, *arguments):
    command = [sys.executable, "-c", BARE, str(ROOT), str(ROOT / "tools" / tool), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd="/")
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("tool", SMALL)
def test_starts_on_a_bare_machine(tool):
    assert "--attention" in run(tool, "--help").stdout or tool != "bench_train.py"


@pytest.mark.slow
def test_a_training_step():
    done = run("bench_train.py", *SMALL["bench_train.py"].split())
    found = json.loads(done.stdout)
    assert found["samples_per_step"] == 2
    assert 0 < found["mfu"] < 1
    assert "compiled in" in done.stderr


@pytest.mark.slow
def test_attention():
    rows = [
        json.loads(line) for line in run("bench_attention.py", *SMALL["bench_attention.py"].split()).stdout.splitlines()
    ]
    assert [row["shape"] for row in rows] == ["text", "vision"]
    assert all(0 < row["difference"] < 0.02 for row in rows)


@pytest.mark.parametrize(
    ("measure", "code", "held"),
    [
        ("values.update(fast=2, late=1)", 0, [True, True]),
        ("values.update(fast=1.9, late=1)", 1, [False, True]),
        ("values.update(late=1)", 1, [False, True]),
        ("values.update(fast=2); os.kill(os.getpid(), signal.SIGINT); time.sleep(9)", 130, [True, False]),
        ("values.update(fast=2); os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)", 130, [True, False]),
    ],
)
def test_gates_hold_or_not_also_when_a_bench_is_interrupted(measure, code, held):
    program = f"""
import os, signal, sys, time
sys.path.insert(0, {str(ROOT / "tools")!r})
import gates

# A shell that starts the tests in the background lets SIGINT be ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

def measure(values):
    {measure}

gates.run({{"fast": (">=", 2), "late": ("<=", 1)}}, measure)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["held"] for row in rows] == held
    assert [row["gate"] for row in rows] == ["fast >= 2", "late <= 1"]
    assert ("interrupted" in done.stderr) == (code == 130)
