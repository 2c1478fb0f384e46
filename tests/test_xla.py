"""The flag that makes steps on CPUs right reaches XLA, whatever else stands in XLA_FLAGS."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from vlm3_jax import xla

OFF = f"{xla.FLAG}=false"


@pytest.fixture
def flags(monkeypatch):
    """Sets XLA_FLAGS as given, lets the package add its own and returns what stands there then."""
    monkeypatch.setattr(xla, "started_on_cpu", lambda: False)

    def run(value):
        monkeypatch.setenv("XLA_FLAGS", value)
        xla.set_flags()
        return os.environ["XLA_FLAGS"]

    return run


def test_added_to_what_stands_there(flags, tmp_path):
    assert flags("") == OFF
    assert flags("--xla_dump_to=/x") == f"--xla_dump_to=/x {OFF}"
    (tmp_path / "flags").write_text("--xla_dump_to=/y\n")
    assert flags(str(tmp_path / "flags")).split() == ["--xla_dump_to=/y", OFF]
    assert flags(str(tmp_path / "missing")) == OFF


@pytest.mark.parametrize("chosen", [f"--a=1 {xla.FLAG}=true", OFF, xla.FLAG])
def test_own_choice_stays(flags, chosen):
    assert flags(chosen) == chosen


def test_unknown_flag_is_left_out(flags, monkeypatch):
    """XLA would end the process."""
    assert xla.known()
    monkeypatch.setattr(xla, "FLAG", "--xla_cpu_no_such_flag")
    assert not xla.known()
    assert flags("--a=1") == "--a=1"


def test_too_late_is_one_line(monkeypatch):
    jax.devices()
    monkeypatch.setenv("XLA_FLAGS", "")
    with pytest.warns(UserWarning, match="import vlm3_jax first") as said:
        xla.set_flags()
    assert len(said) == 1
    assert "\n" not in str(said[0].message)


def test_package_sets_it_and_stays_light():
    """Also behind `import jax`, as long as nothing has run."""
    program = "import os, sys, vlm3_jax; print('jax' in sys.modules, os.environ['XLA_FLAGS'])"
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    environment["PYTHONPATH"] = str(pathlib.Path(__file__).parents[1])

    def says(*words):
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", *words], env=environment, capture_output=True, text=True, check=True
        ).stdout

    assert says(program) == f"False {OFF}\n"
    assert says("import jax; " + program) == f"True {OFF}\n"


def test_tests_run_with_it():
    """This very process, and what it starts."""
    assert OFF in os.environ["XLA_FLAGS"]


def test_several_processes_keep_it(monkeypatch):
    """XLA takes the last of two values."""
    monkeypatch.setenv("XLA_FLAGS", f"--a=1 {OFF}")
    xla.set_flags_among_processes()
    assert os.environ["XLA_FLAGS"] == f"--a=1 {OFF} {xla.FLAG}=true"
    monkeypatch.setenv("XLA_FLAGS", "--a=1")
    xla.set_flags_among_processes()
    assert os.environ["XLA_FLAGS"] == "--a=1"
