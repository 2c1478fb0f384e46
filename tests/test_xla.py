"""The flag that makes sums on CPUs right reaches XLA, whatever else stands in XLA_FLAGS, and makes them right."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm3_jax import xla

ROOT = pathlib.Path(__file__).resolve().parent.parent
OFF = f"{xla.FLAG}={xla.VALUE}"


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


@pytest.mark.parametrize("chosen", [f"--a=1 {xla.FLAG}=+reduce", OFF, xla.FLAG])
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
    environment["PYTHONPATH"] = str(ROOT)

    def says(*words):
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", *words], env=environment, capture_output=True, text=True, check=True
        ).stdout

    assert says(program) == f"False {OFF}\n"
    assert says("import jax; " + program) == f"True {OFF}\n"


def test_tests_run_with_it():
    """This very process, and what it starts."""
    assert OFF in os.environ["XLA_FLAGS"]


def test_sums_over_a_broadcast_axis(rng):
    """Without the flag two threads add into one partial sum, and 1 to 60 of 100 calls are wrong by up to a half."""
    x = rng.standard_normal((768, 512), np.float32)
    total = jax.jit(lambda x: jnp.sum(jnp.square(jnp.broadcast_to(x, (2, *x.shape)))))
    right = 2 * np.square(x, dtype=np.float64).sum()
    np.testing.assert_allclose([float(total(x)) for _ in range(300)], right, rtol=1e-5)


def test_sums_of_products():
    """Without the flag every call is wrong in jaxlib 0.10.2 (jax-ml/jax#39103)."""
    n = 32_769
    x = np.stack([np.arange(n, dtype=np.float32), np.zeros(n, np.float32), np.zeros(n, np.float32)], 1)
    squares = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)))
    assert float(squares(x)[-1]) == (n - 1) ** 2


@pytest.mark.parametrize("words", ["--fixed", pytest.param("--step --repeats=4 --steps=6", marks=pytest.mark.slow)])
def test_tool_finds_nothing(words):
    command = [sys.executable, str(ROOT / "tools" / "cpu_race.py"), *words.split()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
