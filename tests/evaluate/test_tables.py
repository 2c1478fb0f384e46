"""Own rows under the published ones: what is compared with what, and what is marked as partial."""

import dataclasses
import io
import json

import numpy as np
import pytest
import rich.console
from bench_toys import Knows, depth_record, frozen, object_record, pair_record, questions
from test_benchmarks import QUALITATIVE, QUANTITATIVE

from vlm3_jax import cli
from vlm3_jax.errors import UserError
from vlm3_jax.evaluate import manifest, outputs, published, scoring, tables
from vlm3_jax.evaluate.benchmarks import BENCHMARKS, Asked
from vlm3_jax.evaluate.run import evaluate

RECORDS = {
    "depth": [depth_record(n) for n in range(3)],
    "pose": [pair_record(0, 1), pair_record(1, 2), pair_record(2, 3)],
    "correspondence": [pair_record(0, 1), pair_record(1, 2)],
    "objects": [object_record(n, *row[:3]) for n, row in enumerate([*QUALITATIVE, *QUANTITATIVE])],
}


def run(out, names, built, wording="release", turned=lambda example: example.answer, limit=None):
    """Answers of who knows them (or turns them) to some benchmarks, in an output folder."""
    for name in names:
        asked = Asked(dataclasses.replace(BENCHMARKS[name], total=min(40, BENCHMARKS[name].total)))
        folder = built / name
        if not folder.exists():
            frozen(asked, folder, RECORDS[asked.benchmark.task])
        found = manifest.read(asked, folder)
        told = questions(found, folder, wording, limit)
        evaluate(Knows(told, turned), told, out / name, variants=("model",), progress=False)
        outputs.write_bench(out / name, found, told.partial)
    return tables.write(out)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return tmp_path_factory.mktemp("built")


def text(found) -> str:
    console = rich.console.Console(width=250, record=True, file=io.StringIO())
    console.print(found.rich())
    return console.export_text()


def test_depth_is_compared_column_by_column_and_the_mean_is_partial(built, tmp_path):
    found = run(tmp_path, ["ibims1", "nyuv2"], built)
    (block,) = found.blocks
    (own,) = block.own
    assert block.columns == published.table("depth")[0].columns
    assert [own.values[block.columns.index(name)] for name in block.run] == [1.0, 1.0]
    assert block.run == ("iBims-1", "NYUv2")
    assert (own.overall, own.shared, block.partial) == (None, 1.0, True)
    line = next(line for line in block.lines if line.name == "DepthLM-7B")
    assert line.shared == pytest.approx((0.920 + 0.915) / 2)
    differences = block.differences(line)
    assert differences[6] == pytest.approx(1 - 0.920)
    assert differences[0] is None
    assert differences[-2] is None, "the published mean covers more than was run"
    assert differences[-1] == pytest.approx(1 - 0.9175)
    # One of its two columns is missing.
    assert next(line for line in block.lines if line.name.startswith("UniDepth")).shared is None
    shown = text(found)
    assert "0.960 (+0.040)" in shown
    assert "mean of 2 run" in shown
    assert "partial" in shown
    assert "not run: Argoverse2, DDAD, NuScenes, ETH3D, ScanNet++, SUN RGB-D" in shown
    assert shown.count("VLM3-4B") == 1
    assert "ibims1: AbsRel 0.00" in shown
    assert "0 of 300 answers unread" in shown
    assert json.loads((tmp_path / "benchmarks.json").read_text())["blocks"][0]["own"][0]["values"][6] == 1.0
    assert "| VLM3-4B |" in (tmp_path / "benchmarks.md").read_text()


def test_a_mean_over_all_columns_stands_beside_the_published_one(built, tmp_path):
    found = run(tmp_path, ["eth3d_pose", "scannetpp_pose"], built)
    (block,) = found.blocks
    (own,) = block.own
    assert (own.values, own.overall, block.partial) == ((100.0, 100.0), 100.0, False)
    line = next(line for line in block.lines if line.name == "DA3-Giant")
    assert block.differences(line)[:3] == pytest.approx((100 - 91.2, 100 - 98.1, 100 - 94.7))
    assert next(line for line in block.lines if line.name == "DUSt3R").overall == 30.6
    assert own.intervals[0] == (100.0, 100.0)
    (first, _) = block.details
    assert first.startswith("eth3d_pose: AUC@3 100.0%, AUC@5 100.0%, AUC@15 100.0%, signed @3 100.0%")
    assert first.endswith("0 of 12 answers unread")


def test_pairs_are_asked_both_ways_and_told_how_well_the_answers_agree(built, tmp_path):
    run(tmp_path, ["eth3d_pose"], built)
    results = scoring.score(scoring.read_cells(tmp_path))
    metrics = results.entry("eth3d_pose", "pose").scores["model"].metrics
    assert (metrics["pairs"], metrics["swap_pairs"], metrics["auc30"], metrics["auc30_signed"]) == (3, 3, 1, 1)
    # Answers are rounded to a tenth of a degree and a hundredth of a unit.
    assert metrics["swap_rotation_deg"] < 0.2
    assert metrics["swap_direction_deg"] < 1.5
    assert results.entry("eth3d_pose (swapped)", "pose").scores["model"].value == 1

    # The same answer both ways.
    def fixed(example):
        if example.target["kind"] == "euler_natural":
            return "Yaw=+20.0°, Pitch=+0.0°, Roll=+0.0°"
        return "unit vector (0, 0, 1)" if "direction" in example.target["kind"] else example.answer

    run(tmp_path / "fixed", ["eth3d_pose"], built, turned=fixed)
    metrics = scoring.score(scoring.read_cells(tmp_path / "fixed")).entries[0].scores["model"].metrics
    assert metrics["swap_rotation_deg"] == pytest.approx(40)


def test_objects_have_their_groups_as_columns(built, tmp_path):
    found = run(tmp_path, ["spatialrgpt_qualitative", "spatialrgpt_quantitative"], built)
    qualitative, quantitative, errors = found.blocks
    assert qualitative.own[0].values == (None, 100.0, None, 100.0, None, 100.0)
    assert qualitative.own[0].overall == 100.0
    assert qualitative.differences(qualitative.lines[0])[-2] == pytest.approx(100 - 91.35)
    assert quantitative.own[0].values == (100.0, None, None, 100.0, None, 100.0)
    assert errors.own[0].values[5] == 0
    assert len(qualitative.cells()[0]) == 1 + 6 + 1, "an overall value that pools questions has no mean beside it"


def test_own_columns_and_parts_are_marked(built, tmp_path):
    found = run(tmp_path, ["dtu_matches", "middlebury_matches"], built, limit=1)
    (block,) = found.blocks
    assert block.columns == ("ETH3D", "DTU", "TA-WB", "Middlebury 2014 *")
    assert block.own[0].values[3] < 1
    assert block.lines[0].values[3] is None
    # Of DTU every fiftieth pair is asked about, so its manifest has one record.
    assert block.notes[0] == "Middlebury 2014: 1 of 2 records"
    assert "* no published column" in block.notes
    assert block.differences(block.lines[1])[1] < 0, "EPE: lower is better, and the sign is own - theirs"


def test_models_that_are_asked_in_other_words_are_compared_item_by_item(built, tmp_path):
    def half(example):
        # Every second point is taken for twice as far away.
        far = example.target["coords"][0] % 2
        return f"<answer> {example.target['depth_m'] * (1 + far):.3f} </answer>"

    run(tmp_path / "a", ["ibims1"], built, turned=half)
    run(tmp_path / "b", ["ibims1"], built, wording="paper")
    a, b = (scoring.read_cells(tmp_path / name) for name in "ab")
    assert a[0].model.rows[0]["question"] != b[0].model.rows[0]["question"]
    gain, low, high = scoring.before_after(a, b)["ibims1", "depth"]
    assert gain == pytest.approx(1 - a[0].model.scores.mean())
    assert 0 < low < gain < high
    compared = tables.of([tables.Own.read(name, tmp_path / name) for name in "ab"])
    assert [line.name for line in compared.blocks[0].own] == ["a", "b"]
    frozen(Asked(BENCHMARKS["ibims1"]), tmp_path / "other", [depth_record(3), depth_record(1)])
    found = manifest.read(Asked(BENCHMARKS["ibims1"]), tmp_path / "other")
    outputs.write_bench(tmp_path / "b" / "ibims1", found)
    with pytest.raises(UserError, match="asked by two manifests of ibims1"):
        scoring.before_after(a, scoring.read_cells(tmp_path / "b"))


def test_a_difference_of_a_part_says_of_how_many_questions_and_nothing_is_written(built, tmp_path, capsys):
    run(tmp_path / "a", ["ibims1"], built, limit=1)
    run(tmp_path / "b", ["ibims1"], built)
    kept = {path: path.stat().st_mtime_ns for name in "ab" for path in (tmp_path / name).rglob("*")}
    assert cli.main(["report", *(str(tmp_path / name) for name in "ab"), f"--out={tmp_path}/page/report.html"]) == 0
    assert "ibims1: b - a is over the 100 questions that both answered" in capsys.readouterr().out
    assert "100 questions in common" in (tmp_path / "page/report.html").read_text()
    assert {path: path.stat().st_mtime_ns for name in "ab" for path in (tmp_path / name).rglob("*")} == kept
    assert cli.main(["report", str(tmp_path / "a"), str(tmp_path / "a"), f"--out={tmp_path}/page/report.html"]) == 2
    assert "a: given twice; a run is not compared with itself" in capsys.readouterr().err


def test_a_folder_holds_the_answers_of_one_model(tmp_path):
    outputs.claim(tmp_path, {"answers_by": "one", "model": "abc", "dtype": "float32"})
    outputs.claim(tmp_path, {"answers_by": "one", "model": "abc", "dtype": "float32"})
    with pytest.raises(UserError, match=r"holds answers of 'one' that differ in answers_by, model; choose another"):
        outputs.claim(tmp_path, {"answers_by": "two", "model": "def", "dtype": "float32"})


@pytest.mark.parametrize("task", ["depth", "objects", "correspondence", "pose"])
def test_every_published_column_has_a_source(task):
    layout = tables.SOURCES[task]
    for table, (sources, overall) in zip(published.table(task), layout, strict=True):
        assert len(sources) == len(table.columns)
        for column, source in zip(table.columns, sources):
            if overall is None:
                assert BENCHMARKS[source.benchmark].title == column
        assert (overall is None) == (table.overall == "mean")


def test_markers_ask_points_one_by_one_but_those_at_the_border(built, tmp_path):
    run(tmp_path, ["ibims1"], built)
    found = manifest.read(Asked(BENCHMARKS["ibims1"]), built / "ibims1")
    told = questions(found, built / "ibims1", marker=True)
    left = 300 - len(told)
    assert left > 0
    assert told.partial == f"{left} points too near to the border"
    assert all(len(told[n].examples) == 1 for n in range(0, len(told), 50))
    place = told.places[7]
    assert told[7].ids == [f"ibims1/{found[place.row].id}/{place.point}"]
    depth = found[place.row].record.depth[0].depth_m[place.point]
    assert told[7].examples[0].target["depth_m"] == depth
    assert told[7].images[0].marker is not None
    assert np.isclose(told.briefs[7].questions, 1)


def test_fewer_records_and_labels(built, tmp_path):
    run(tmp_path, ["ibims1", "eth3d_pose"], built)
    found = manifest.read(Asked(BENCHMARKS["ibims1"]), built / "ibims1")
    told = questions(found, built / "ibims1", limit=2, labels=5)
    assert [one.ids[-1] for one in told] == ["ibims1/place/00/4", "ibims1/place/01/4"]
    assert told.partial == "2 of 3 records, at most 5 labels each"
    pose = manifest.read(Asked(BENCHMARKS["eth3d_pose"]), built / "eth3d_pose")
    # All kinds of questions about a pair belong together.
    assert {len(one.examples) for one in questions(pose, built / "eth3d_pose", labels=1)} == {4}
