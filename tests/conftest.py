"""Shared fixtures: sample data, the tiny model, one seed."""

import os
import pathlib

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def samples() -> pathlib.Path:
    """The folder of real images with labels; a test that asks for it is skipped where the folder is missing."""
    folder = pathlib.Path(os.environ.get("VLM3_SAMPLES", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no sample data at {folder} (set VLM3_SAMPLES)")
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    """A seeded generator."""
    return np.random.default_rng(0)
