"""Shared fixtures: sample data, the tiny model, one seed."""

import os
import pathlib
import tempfile

import numpy as np
import pytest

# Before anything imports jax. Compiling is most of what the tests do: without optimisation and the newer fusion
# emitters it takes an eighth of the time, and equal programs compile once (child processes included).
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
_compiled = tempfile.TemporaryDirectory(prefix="vlm3-compiled-")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _compiled.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# torch's threads spin while they wait for each other, and its models are tiny here.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Adds to XLA_FLAGS what makes steps on CPUs right (xla.py), before a test can start jax.
import vlm3_jax  # noqa: E402, F401

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def samples() -> pathlib.Path:
    """The folder of real images with labels; a test that asks for it is skipped where the folder is missing."""
    folder = pathlib.Path(os.environ.get("VLM3_SAMPLES", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no sample data at {folder} (set VLM3_SAMPLES)")
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> pathlib.Path:
    """The HF directory of the random model "test"; shared, so no test may change it."""
    from vlm3_jax.checkpoint import tiny

    return tiny.make(tmp_path_factory.mktemp("tiny") / "model", "test")


@pytest.fixture(scope="session")
def qwen_dir(tmp_path_factory):
    """Qwen's real vocabulary as an HF directory."""
    from tests.qwen_reference import write_qwen

    folder = tmp_path_factory.mktemp("qwen")
    write_qwen(folder)
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    """A seeded generator."""
    return np.random.default_rng(0)


# Files whose tests wait for other processes, or take longest: first, so that no worker is left with one at the end.
LONG = ("test_processes.py", "test_faults.py", "test_demo.py", "test_training_run.py", "test_train_step.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; otherwise the order stays."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
