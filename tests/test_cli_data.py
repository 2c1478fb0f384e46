"""The command line over data: damaged lines and images, data check, and runs that meet them."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.support import rows_of_metrics
from vlm3_jax import cli
from vlm3_jax.checkpoint import tiny


@pytest.fixture
def depthlm(made, tmp_path):
    """A copy of the jsonl and its images that may be damaged, and the options that point to it."""
    folder = tmp_path / "depthlm"
    shutil.copytree(made / "depthlm", folder)
    config = [f"--config={made / 'depthlm.py'}", f"--workdir={tmp_path / 'workdir'}"]
    for group, name in (("data", "depth"), ("data", "match"), ("eval", "depth")):
        config.append(f"--config.{group}.components.{name}.path={folder / 'train.jsonl'}")
    return folder, config


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ('{"image": "0.png", "intrinsics": [40, 40, 16', "not JSON ("),
        ('{"image": "0.png", "pixel_coords": [[1, 2]], "depth": [3]}', "field 'intrinsics' is missing"),
        ('["0.png"]', "expected a JSON object, got list"),
        (
            '{"image": "0.png", "intrinsics": [40, 40, 16, 12, 32, 24], "pixel_coords": [[1, 2]], "depth": [1, 2]}',
            "pixel_coords has 1 points and depth 2 values",
        ),
        (
            '{"image": "0.png", "intrinsics": [-4, 0, 16, 12, 32, 24], "pixel_coords": [[1, 2]], "depth": [1]}',
            "camera: focal lengths must be positive and finite",
        ),
    ],
)
def test_a_malformed_line_is_named(depthlm, fails, damage, reason):
    folder, config = depthlm
    lines = (folder / "train.jsonl").read_text().splitlines()
    lines[4] = damage
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    line = fails("train", *config)
    assert line.startswith(f"{folder / 'train.jsonl'}:5: {reason}")
    assert line.endswith("(1 of 20 lines are unusable, above max_bad_fraction = 0.01)")
    assert f"{folder / 'train.jsonl'}:5" in fails("data", "mix", *config)


def test_an_image_outside_its_folder_is_refused(depthlm, fails, tmp_path):
    folder, config = depthlm
    shutil.copy(folder / "0.png", tmp_path / "secret.png")
    text = (folder / "train.jsonl").read_text()
    (folder / "train.jsonl").write_text(text.replace('"2.png"', '"../secret.png"'))
    # Whatever share of bad records is allowed.
    line = fails("train", *config, "--config.data.max_bad_fraction=1.0")
    assert line == f"{folder / 'train.jsonl'}:3: image '../secret.png' leaves the image folder {folder.resolve()}"
    (folder / "train.jsonl").write_text(text)
    (folder / "2.png").unlink()
    (folder / "2.png").symlink_to(tmp_path / "secret.png")
    line = fails("data", "check", *config, "--config.data.max_bad_fraction=1.0")
    assert line == f"{folder / 'train.jsonl'}:3: image '2.png' leaves the image folder {folder.resolve()}"


def damage_images(folder):
    (folder / "3.png").unlink()
    (folder / "7.png").write_bytes((folder / "7.png").read_bytes()[:150])


def test_data_check_counts_broken_images(depthlm, capsys):
    folder, config = depthlm
    # Held-out data are the training data here, which a check would tell.
    config = (*config, "--config.eval.components.depth.weight=0")
    assert cli.main(["data", "check", *config]) == 0
    assert "depth: 20 records, 0 passed over, 0 bad" in capsys.readouterr().out
    damage_images(folder)
    assert cli.main(["data", "check", *config]) == 1
    out = capsys.readouterr().out
    assert "depth: 20 records, 0 passed over, 2 bad, 0 labels removed" in out
    assert "depth/3: 3.png: no such image file" in out
    assert "depth/7: 7.png: cannot decode the image" in out
    assert "FAULT: 4 of 40 samples were unusable, above data.max_bad_fraction = 0.01" in out


def test_broken_images_below_the_limit_are_masked_and_counted(depthlm, tmp_path, fails, capsys):
    """And then the workdir holds a run of this model, which another one may not go on with."""
    folder, config = depthlm
    damage_images(folder)
    short = (*config, "--config.data.max_bad_fraction=0.5", "--config.train.max_steps=8", "--config.train.eval_every=0")
    assert cli.main(["train", *short]) == 0
    workdir = tmp_path / "workdir"
    rows = [json.loads(line) for line in (workdir / "quarantine.jsonl").read_text().splitlines()]
    reasons = {row["file"]: row["reason"] for row in rows}
    assert set(reasons) == {"3.png", "7.png"}
    assert reasons["3.png"] == "3.png: no such image file"
    assert reasons["7.png"].startswith("7.png: cannot decode the image")
    assert len({row["id"] for row in rows}) == len(rows)
    losses = [row["loss"] for row in rows_of_metrics(workdir) if "loss" in row]
    assert len(losses) == 8
    assert np.isfinite(losses).all()
    assert (workdir / "export" / "config.json").is_file()
    # A finished workdir is a model for others.
    mix = ("data", "mix", *config[:1], *config[2:], f"--workdir={tmp_path / 'other'}", f"--model={workdir}")
    assert cli.main([*mix, "--samples=10"]) == 0
    capsys.readouterr()
    other = tiny.make(tmp_path / "demo", "demo")
    line = fails("train", *short, f"--model={other}")
    assert line.startswith(f"{workdir / 'checkpoints'}: the saved run has parameters = 251048, the configuration ")
    left = [path.name for path in tmp_path.rglob("*") if path.name.endswith((".writing", ".part", ".old"))]
    assert left == []


@pytest.mark.slow
def test_broken_images_above_the_limit_stop_the_run(depthlm, tmp_path, fails):
    folder, config = depthlm
    damage_images(folder)
    line = fails("train", *config, "--config.train.max_steps=0", "--config.eval.loss_batches=0")
    assert "samples were unusable, above data.max_bad_fraction = 0.01 (the last, " in line
    assert line.endswith(f"; all are in {tmp_path / 'workdir' / 'quarantine.jsonl'}")
    assert not (tmp_path / "workdir" / "export").exists()


def test_check_looks_at_held_out_data_too(made, fails, capsys, tmp_path):
    config = (f"--config={made / 'records.py'}", f"--workdir={tmp_path / 'w'}")
    # Held-out data are a part of the training data here.
    assert cli.main(["data", "check", *config, "--records=30", f"--picture={tmp_path / 'a.png'}"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines if " records, " in line] == ["depth", "match", "held-out depth"]
    assert "image files are (held-out depth/0 (" in lines[-2]
    with Image.open(tmp_path / "a.png") as picture:
        assert min(picture.size) > 200
    assert cli.main(["data", "check", *config, "--json", "--config.eval.components.depth.weight=0"]) == 1
    found = json.loads(capsys.readouterr().out)
    same = "poses: both views of every pair have the same pose"
    assert found["faults"] == [f"depth: {same}", f"match: {same}"]
    assert found["components"]["depth"]["looked_at"] == 24
    # More questions than a row holds are for evaluation; held-out losses ask as many as training.
    many = "--config.eval.components.depth.questions=100"
    assert cli.main(["data", "check", *config, "--records=4", "--config.data.row_tokens=128", many]) == 1
    capsys.readouterr()
    assert "look at 1 at least" in fails("data", "check", *config, "--records=0")
    line = fails("data", "check", *config, f"--config.eval.components.depth.path={tmp_path / 'none'}")
    assert line == f"held-out depth: no ArrayRecord shards (*.array_record*) at {tmp_path / 'none'}"
