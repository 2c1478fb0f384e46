"""Weights & Biases: what is written offline, and that a workdir stays one run there."""

import importlib.util
import json

import pytest

from vlm3_jax import config as configs
from vlm3_jax.errors import UserError
from vlm3_jax.train import loop
from vlm3_jax.train.weights_and_biases import WeightsAndBiases


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    config = configs.base()
    config.train.samples, config.train.wandb = 10, "vlm3"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"train\.wandb needs wandb: pip install 'vlm3-jax\[wandb\]'"):
        loop.train(config)


def test_no_project_no_run(tmp_path):
    off = WeightsAndBiases("", tmp_path, configs.base())
    off.write({"step": 1, "loss": 2.0})
    off.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not importlib.util.find_spec("wandb"), reason="wandb is not installed")
def test_a_workdir_is_one_run(tmp_path, monkeypatch, capfd):
    """Numbers and config arrive; the second start goes on under the same name."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = configs.base()
    config.optimizer.learning_rate = 0.015625
    names, held = set(), b""
    for start in (0, 2):
        tracker = WeightsAndBiases("vlm3", tmp_path, config)
        for step in (start + 1, start + 2):
            row = {"step": step, "task_loss/depth": 0.25 + step, "mfu": float("inf"), "ids": "0badcafe"}
            tracker.write(row)
        tracker.close()
        names.add((tmp_path / "wandb-run-id.txt").read_text().strip())
        # Read now: folders have names of seconds, so that a start in the same second takes the place of the one before.
        held += b"".join(file.read_bytes() for file in tmp_path.glob(f"wandb/offline-run-*/run-{max(names)}.wandb"))
    assert len(names) == 1
    for step in range(1, 5):
        assert json.dumps(0.25 + step).encode() in held
    assert b"task_loss/depth" in held
    assert b"0.015625" in held
    assert b"0badcafe" not in held
    assert b"Infinity" not in held
    assert capfd.readouterr() == ("", "")
