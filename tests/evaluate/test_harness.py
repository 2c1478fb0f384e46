"""Benchmarks as tasks of lmms-eval: the files that name our functions, and the scores that these give."""

import importlib
import json
import pathlib

import numpy as np
import pytest
import yaml
from bench_toys import depth_record, frozen, object_record, pair_record
from PIL import Image
from test_benchmarks import QUALITATIVE

from vlm3_jax import cli
from vlm3_jax.evaluate import freeze, harness, manifest
from vlm3_jax.evaluate.benchmarks import BENCHMARKS, Asked
from vlm3_jax.evaluate.foreign.score import Options, score

NAMES = ("ibims1", "spatialrgpt_qualitative", "eth3d_matches", "eth3d_pose")


class Loader(yaml.SafeLoader):
    """Files of tasks, as lmms-eval reads them: `!function MODULE.NAME` is that function."""


def function(loader, node):
    module, _, name = loader.construct_scalar(node).rpartition(".")
    return getattr(importlib.import_module(module), name)


Loader.add_constructor("!function", function)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folder of tasks of all four kinds, made by the command, and the built data."""
    data, out = (tmp_path_factory.mktemp(name) for name in ("data", "tasks"))
    records = {
        "ibims1": [depth_record(0), depth_record(1)],
        "spatialrgpt_qualitative": [object_record(n, *row[:3]) for n, row in enumerate(QUALITATIVE)],
        "eth3d_matches": [pair_record(0, 1)],
    }
    for name, made in records.items():
        asked = Asked(BENCHMARKS[name])
        frozen(asked, data / asked.benchmark.where, made)
    pose = Asked(BENCHMARKS["eth3d_pose"])
    freeze.freeze(pose, data / pose.benchmark.where, [record.id for record in records["eth3d_matches"]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLM3_DATA", str(data))
        names = [f"--bench={name}" for name in NAMES]
        assert cli.main(["eval", *names, "--questions=lmms", f"--out={out}", "--labels=30"]) == 0
        found = {name: manifest.read(Asked(BENCHMARKS[name])) for name in NAMES}
    return out, found


def read(out, name):
    """A task and its rows."""
    task = yaml.load((out / f"vlm3_{name}.yaml").read_text(), Loader)
    rows = pathlib.Path(task["dataset_kwargs"]["data_files"]["test"])
    return task, [json.loads(line) for line in rows.read_text().splitlines()]


def told(doc, number):
    """Right, wrong and unreadable answers by turns."""
    return (doc["answer"], "no idea", "Yes, (3, 4), 17 meters, yaw 3, pitch 2, roll 1 degrees")[number % 3]


@pytest.mark.parametrize("name", NAMES)
def test_scores_of_the_tasks_are_ours(folders, tmp_path, name):
    out, found = folders
    task, docs = read(out, name)
    answers = [told(doc, number) for number, doc in enumerate(docs)]
    given = [task["process_results"](doc, [answer]) for doc, answer in zip(docs, answers, strict=True)]
    path = tmp_path / "answers.jsonl"
    rows = [{"id": doc["id"], "prediction": answer} for doc, answer in zip(docs, answers, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if name == "eth3d_pose":
        ours = score(found[name], str(path), Options())
    else:
        # Only as many labels were handed out; what has no answer would count as a failure.
        judge = harness.tasks.get(docs[0]["task"])
        ours = judge.score(answers, [json.loads(doc["target"]) for doc in docs])
    assert task["metric_list"][0]["metric"] in (BENCHMARKS[name].metric, "success")
    for metric in task["metric_list"]:
        value = metric["aggregation"]([one[metric["metric"]] for one in given])
        assert value == ours[metric["metric"]] or (np.isnan(value) and np.isnan(ours[metric["metric"]]))


def test_tasks_ask_in_the_releases_words_about_its_pictures(folders):
    out, _ = folders
    task, docs = read(out, "eth3d_pose")
    (turn,) = task["doc_to_messages"](docs[0])
    kinds = [part["type"] for part in turn["content"]]
    assert (turn["role"], kinds) == ("user", ["image", "image", "text"])
    assert turn["content"][-1]["text"] == task["doc_to_text"](docs[0]) == docs[0]["question"]
    shown = task["doc_to_visual"](docs[0])
    assert [picture.size for picture in shown] == [(1000, 750)] * 2
    with Image.open(docs[0]["images"][1]) as stored:
        assert np.array_equal(np.asarray(shown[1]), np.asarray(stored))
    assert yaml.safe_load((out / "vlm3.yaml").read_text())["task"] == [f"vlm3_{name}" for name in NAMES]
    higher = {one["metric"]: one["higher_is_better"] for one in read(out, "ibims1")[0]["metric_list"]}
    assert higher == {
        "delta1": True,
        "delta1_parsed": True,
        "abs_rel": False,
        "parse_failures": False,
    }


def test_questions_are_asked_as_a_model_is_to_be_asked(folders, tiny_model, tmp_path, monkeypatch):
    from vlm3_jax.tasks import protocol

    model = tmp_path / "model"
    model.mkdir()
    for file in tiny_model.iterdir():
        (model / file.name).symlink_to(file)
    (model / protocol.FILE).unlink(missing_ok=True)
    protocol.write(model, {"depth": protocol.given("depth", "short", resize="focal:70")})
    _, found = folders
    monkeypatch.setenv("VLM3_DATA", str(found["ibims1"].name).split("/bench/")[0])
    args = ["eval", f"--model={model}", "--bench=ibims1", "--questions", f"--out={tmp_path / 'out'}", "--labels=2"]
    assert cli.main(args) == 0
    rows = [json.loads(line) for line in (tmp_path / "out/ibims1/questions.jsonl").read_text().splitlines()]
    assert all(row["question"].startswith("d") and len(row["question"]) == 6 for row in rows)
    assert set(rows[0]) == {"id", "images", "question"}
    assert not (tmp_path / "out/vlm3.yaml").exists()
