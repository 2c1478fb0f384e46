"""Weights & Biases: what is written offline, and that a workdir stays one run there."""

import importlib.util
import json
import pathlib
import struct

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
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    config = configs.base()
    config.optimizer.learning_rate = 0.015625
    for start in (0, 2):
        tracker = WeightsAndBiases("vlm3", tmp_path, config)
        for step in (start + 1, start + 2):
            row = {"step": step, "task_loss/depth": 0.25 + step, "mfu": float("inf"), "ids": "0badcafe"}
            tracker.write(row)
        tracker.close()
        # As at the end of a process: wandb's own process writes the last rows after finish() has returned.
        wandb.teardown()
    name = (tmp_path / "wandb-run-id.txt").read_text().strip()
    # Folders of wandb are named by the second, with a number behind where two starts share one.
    first, second = sorted(tmp_path.glob(f"wandb/offline-run-*/run-{name}.wandb"))
    for file, steps in ((first, (1, 2)), (second, (3, 4))):
        records = list(wandb_records(file))
        assert [told(record.history.item) for record in records if record.HasField("history")] == [
            {"_step": step, "task_loss/depth": 0.25 + step} for step in steps
        ]
        (run,) = (record.run for record in records if record.HasField("run"))
        assert (run.run_id, run.project) == (name, "vlm3")
        assert {item.key: json.loads(item.value_json) for item in run.config.update}["optimizer"]["learning_rate"] == (
            0.015625
        )
    assert capfd.readouterr() == ("", "")


def told(items) -> dict:
    """The numbers of a step without wandb's own clocks."""
    values = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
    return {key: value for key, value in values.items() if key not in ("_timestamp", "_runtime")}


def wandb_records(path: pathlib.Path):
    """The records of a run: after 7 bytes LevelDB's log, blocks of 32 kB with fragments of CRC, length, kind."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = path.read_bytes(), 7, b""
    while at < len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        # 1 is whole, 4 the last of several.
        if kind in (1, 4):
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""
