"""The demo's stages from nothing to the report, with a handful of scenes and steps."""

import json

from vlm3_jax import config as configs
from vlm3_jax.demo import demo


def test_demo_runs_and_resumes(tmp_path):
    config = configs.load("demo")
    config.workdir = str(tmp_path / "demo")
    configs.override(config, ["data.rows=4", "train.samples=16", "train.eval_every=2", "train.log_every=1"])
    configs.override(
        config,
        ["eval.records=6", "eval.loss_batches=1", "eval.image_sets=4", "eval.max_new_tokens=8", "train.save_every=2"],
    )
    for entry in config.data.components.values():
        entry.weight = 0.25
    assert demo(config, scenes=12, workers=1)
    workdir = tmp_path / "demo"
    results = json.loads((workdir / "eval_after" / "results.json").read_text())
    assert {entry["task"] for entry in results["entries"]} == {"depth", "objects", "correspondence", "pose"}
    for entry in results["entries"]:
        assert {"model", "blind", "shuffled", "best constant"} <= set(entry["scores"])
    report = (workdir / "report.html").read_text()
    assert report.count("data:image/") >= 4
    assert "before training" in report
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["samples"] >= 16
    # Again: nothing is rendered or trained anew, and the answers are the same.
    predictions = (workdir / "eval_after" / "predictions.jsonl").read_bytes()
    assert demo(config, scenes=12, workers=1)
    assert (workdir / "eval_after" / "predictions.jsonl").read_bytes() == predictions
    assert len((workdir / "metrics.jsonl").read_text().splitlines()) == len(rows)
