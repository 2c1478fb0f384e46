"""`vlm3 eval --bench`: a tiny model's rows under the published ones, in parts, and again."""

import json
import shutil

import pytest
from bench_toys import built, frozen, pair_record

from vlm3_jax import cli
from vlm3_jax.camera import Focal
from vlm3_jax.evaluate.benchmarks import BENCHMARKS, Asked
from vlm3_jax.tasks import protocol

POSE = Asked(BENCHMARKS["eth3d_pose"])


@pytest.fixture
def model(tiny_model, tmp_path):
    """It says that it is asked in short words about small pictures."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    protocol.write(folder, {"pose": protocol.Protocol("pose", "short", 100, Focal(40.0, "per_axis"))})
    return folder


def test_benchmarks_are_asked_in_parts_and_tables_hold_them_all(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VLM3_DATA", str(tmp_path / "data"))
    data, out = tmp_path / "data" / POSE.benchmark.where, tmp_path / "out"
    few = ["--config.eval.max_new_tokens=4", "--config.eval.image_sets=2", "--config.eval.questions=4"]
    command = ["eval", f"--model={model}", f"--out={out}", "--bench=pose", *few]
    assert cli.main(command) == 2
    told = capsys.readouterr().err
    assert "nothing to run of 2 benchmarks; eth3d_pose: no built data in" in told
    assert "make it with vlm3 data build eth3d_pairs --raw=DIR --split=test" in told
    frozen(POSE, data, [pair_record(0, 1), pair_record(1, 2)])
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    assert "VGGT" in shown
    assert "not run: scannetpp_pose: no built data in" in shown
    about = json.loads((out / "run.json").read_text())
    assert about["protocols"]["pose"]["wording"] == "short"
    assert about["protocols"]["depth"]["wording"] == "release"
    rows = [json.loads(line) for line in (out / "eth3d_pose/predictions.jsonl").read_text().splitlines()]
    # Two pairs, four kinds of questions, both ways; the model alone.
    assert len(rows) == 16
    assert {row["variant"] for row in rows} == {"model"}
    assert {row["question"] for row in rows} == {"pa", "pe", "pt", "pd"}
    # Again: nothing is asked twice, and the second benchmark joins the table.
    parts = sorted((out / "eth3d_pose/parts").rglob("*.jsonl"))
    before = [part.read_bytes() for part in parts]
    frozen(Asked(BENCHMARKS["scannetpp_pose"]), tmp_path / "data/pairs/scannetpp_pairs/held_out", [pair_record(2, 3)])
    assert cli.main(command) == 0
    assert [part.read_bytes() for part in parts] == before
    (block,) = json.loads((out / "benchmarks.json").read_text())["blocks"]
    assert None not in block["own"][0]["values"]
    assert block["own"][0]["overall"] is not None
    assert not block["partial"]
    other = shutil.copytree(model, tmp_path / "other")
    protocol.write(other, {"pose": protocol.Protocol("pose", "short", 100, Focal(30.0, "per_axis"))})
    assert cli.main(["eval", f"--model={other}", *command[2:]]) == 2
    assert "holds answers of" in capsys.readouterr().err
    # Shards that were built anew are other questions.
    built(data, [pair_record(0, 1), pair_record(1, 2)], version="9.0.0")
    assert cli.main(command) == 2
    assert "frozen of another build than" in capsys.readouterr().err


def test_what_the_options_lack_is_told(tmp_path, capsys):
    for words, message in (
        (["eval"], "--config: missing; give a config with held-out data, or --bench and --model"),
        (["eval", "--bench=ibims1", "--model=x"], "--out: missing; give a folder"),
        (["eval", "--bench=ibims1", f"--out={tmp_path}", "--records=0"], "--records=0: ask about 1 at least"),
        (["eval", "--bench=nyu", f"--out={tmp_path}"], "--bench=nyu: choose of depth, objects"),
    ):
        assert cli.main(words) == 2
        assert capsys.readouterr().err.startswith(f"vlm3 eval: {message}")
    assert not list(tmp_path.iterdir())
