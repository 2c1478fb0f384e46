"""Held-out data that is partly broken: set aside with its reason, counted, said; the run goes on with the rest."""

import json

import pytest

from tests.support import FOCAL, rows_of_metrics, small_run, write_depthlm, write_records
from vlm3_jax.config import component_config
from vlm3_jax.errors import UserError
from vlm3_jax.train import loop


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
    long = {"intrinsics": [FOCAL, FOCAL, 2000, 1, 4000, 2], "pixel_coords": [[9, 1]], "depth": [2.0]}
    lines[2], lines[3] = json.dumps({"image": "2.png"} | long), "{"
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    truncate(folder / "0.png")
    assert loop.train(config)
    aside = tmp_path / "workdir" / "quarantine.jsonl"
    found = [json.loads(line) for line in aside.read_text().splitlines()]
    assert [(row["id"], row["source"], row["reason"].split(" (")[0]) for row in found] == [
        (f"{folder / 'train.jsonl'}:4", "depth", "not JSON"),
        ("depth/2", "depth", "2.png: 4000 x 2 pixels has an aspect ratio above 200"),
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
