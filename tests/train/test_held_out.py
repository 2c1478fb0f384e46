"""Held-out data that is partly broken: set aside with its reason, counted, said; the run goes on with the rest."""

import gc
import json
import weakref

import jax
import numpy as np
import pytest

from tests.support import rows_of_metrics, small_run, write_depthlm, write_records
from vlm3_jax.checkpoint import hf
from vlm3_jax.config import component_config
from vlm3_jax.data import loader, packing
from vlm3_jax.data.quarantine import Quarantine
from vlm3_jax.errors import UserError
from vlm3_jax.parallel import mesh as meshes
from vlm3_jax.setup import Setup
from vlm3_jax.train import loop
from vlm3_jax.train import step as steps
from vlm3_jax.train.held_out import HeldOut, count_in_all


@pytest.fixture
def config(tiny_model, tmp_path):
    """A run of one step; its held-out data are 8 records of DepthLM in tmp_path/held_out."""
    path = write_depthlm(tmp_path / "held_out", 8)
    config = small_run(tiny_model, write_records(tmp_path / "data", 8), tmp_path / "workdir")
    entry = dict(config.eval.components.depth) | {"path": str(path), "kind": "depthlm", "depth_kind": "z"}
    config.eval.components.depth = component_config(**entry)
    config.data.max_bad_fraction, config.train.max_steps, config.train.export = 0.5, 1, ""
    return config


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


def test_broken_records_are_noted_and_the_rest_counts(config, tmp_path, capfd):
    folder = tmp_path / "held_out"
    lines = (folder / "train.jsonl").read_text().splitlines()
    long = {"intrinsics": [800, 10, 2050, 10, 4100, 20], "pixel_coords": [[9, 1]], "depth": [2.0]}
    lines[2], lines[3] = json.dumps({"image": "2.png"} | long), "{"
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    truncate(folder / "0.png")
    assert loop.train(config)
    aside = tmp_path / "workdir" / "quarantine.jsonl"
    found = [json.loads(line) for line in aside.read_text().splitlines()]
    assert [(row["id"], row["component"], row["reason"].split(" (")[0]) for row in found] == [
        (f"{folder / 'train.jsonl'}:4", "depth", "not JSON"),
        ("depth/2", "depth", "2.png: 205 x 1 pixels has an aspect ratio above 200"),
        ("depth/0", "depth", "0.png: cannot decode the image"),
    ]
    assert f"2 of 7 held-out samples are set aside; {aside} says why" in capfd.readouterr().err
    assert all(row["eval_loss/depth"] > 0 for row in rows_of_metrics(tmp_path / "workdir") if "eval_loss/depth" in row)


def test_no_image_can_be_read(config, tmp_path):
    for path in (tmp_path / "held_out").glob("*.png"):
        truncate(path)
    line = r"eval\.components\.depth: none of its images can be read; .*quarantine\.jsonl says"
    with pytest.raises(UserError, match=line):
        loop.train(config)


def opened(config, records: int, batches: int, tmp_path) -> tuple[Setup, HeldOut]:
    """A run with the held-out rows of so many whole records, of which only the first batches are wanted."""
    write_depthlm(tmp_path / "held_out", records)
    config.data.rows, config.eval.loss_batches, config.eval.components.depth.limit = 1, batches, records
    config.mesh.replica = config.mesh.fsdp = 1
    setup = Setup.from_config(config)
    (component,) = setup.components(config.eval.components)
    return setup, HeldOut(setup, component, Quarantine(tmp_path / "q.jsonl", 0.5))


def most_alive(held_out, monkeypatch) -> tuple[int, int]:
    """(batches, how many of them existed at once) of an evaluation."""
    alive, most, made = set(), 0, 0

    def counted(*args):
        nonlocal most, made
        arrays = packing.pack(*args)
        made += 1
        alive.add(made)
        weakref.finalize(arrays["patches"], alive.discard, made)
        most = max(most, len(alive))
        return arrays

    monkeypatch.setattr(loader, "pack", counted)
    for arrays in held_out.batches():
        assert arrays["patches"].any()
        del arrays
    gc.collect()
    assert not alive
    return made, most


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_decoded_batches_do_not_pile_up(config, tmp_path, monkeypatch, workers):
    """However many there are: those prepared, one being made, one on its way to them, and one in use."""
    config.data.workers, config.data.prefetch = workers, 1
    (few, _), (many, most) = (most_alive(opened(config, 60, batches, tmp_path)[1], monkeypatch) for batches in (2, 12))
    assert (few, many) == (2, 12)
    assert most <= config.data.prefetch + 3


def test_an_evaluation_can_be_repeated(config, tmp_path):
    """Bit for bit, whatever the number of threads; what is broken is noted once, and other samples are not touched."""
    config.data.workers = 2
    setup, held_out = opened(config, 60, 3, tmp_path)
    truncate(tmp_path / "held_out" / "4.png")
    start = jax.tree.map(np.array, hf.load(config.model)[1])
    run = steps.make_evaluate(setup.model_cfg, setup.mesh, groups=2, dtype=np.float32)
    sharding = meshes.batch_sharding(setup.mesh)

    def evaluate(arrays):
        return run(start, meshes.put_batch(arrays, sharding))

    losses = [held_out.loss(evaluate) for _ in range(2)]
    config.data.workers = 0
    assert [*losses, held_out.loss(evaluate)] == [losses[0]] * 3
    assert losses[0] > 0
    (row,) = map(json.loads, (tmp_path / "q.jsonl").read_text().splitlines())
    assert (row["id"], row["file"]) == ("depth/4", "4.png")
    assert count_in_all(held_out.quarantine, setup) == held_out.quarantine.bad == 1
