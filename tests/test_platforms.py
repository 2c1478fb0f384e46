"""Machines without a TPU are not searched for one, though libtpu is installed; those that may have one are."""

import importlib.metadata
import importlib.util
import os
import pathlib
import subprocess
import sys
import types

import pytest

from vlm3_jax import platforms


@pytest.fixture
def chosen(monkeypatch):
    """What JAX_PLATFORMS is set to ("" if it is left alone) on a machine with these plugins of jax."""

    def choose(*plugins, libtpu=True, tpu=False, gpu=False, before=None):
        found = [types.SimpleNamespace(name=name) for name in plugins]
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: found if group == "jax_plugins" else [])
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: libtpu if name == "libtpu" else None)
        monkeypatch.setattr(platforms, "has_tpu", lambda: tpu)
        monkeypatch.setattr(platforms, "GPUS", ("/",) if gpu else ())
        monkeypatch.delenv("JAX_PLATFORMS", raising=False)
        if before is not None:
            monkeypatch.setenv("JAX_PLATFORMS", before)
        platforms.leave_out_absent_tpu()
        return os.environ.get("JAX_PLATFORMS", "")

    return choose


def test_what_is_looked_for(chosen):
    assert chosen() == "cpu"
    assert chosen("xla_cuda13") == "cpu"
    assert chosen("xla_cuda13", gpu=True) == "cuda,cpu"
    # A GPU that no plugin of jax can use.
    assert chosen(gpu=True) == "cpu"


def test_what_is_left_to_jax(chosen):
    assert chosen(tpu=True) == ""
    assert chosen(libtpu=False) == ""
    assert chosen("xla_cuda13", "xla_rocm", gpu=True) == ""
    assert chosen(before="tpu,cpu") == "tpu,cpu"
    assert chosen(before="") == ""


def test_an_environment_that_speaks_of_a_tpu(monkeypatch):
    monkeypatch.setenv("TPU_WORKER_ID", "0")
    assert platforms.has_tpu()


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu is not installed")
@pytest.mark.skipif(platforms.has_tpu(), reason="a TPU is here")
def test_nothing_is_said_of_a_tpu_that_is_not_there():
    program = "import vlm3_jax, jax; print(jax.default_backend(), len(jax.devices()) > 0)"
    environment = {key: value for key, value in os.environ.items() if key != "JAX_PLATFORMS"}
    environment["PYTHONPATH"] = str(pathlib.Path(__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout in ("cpu True\n", "gpu True\n")
    assert done.stderr == ""
