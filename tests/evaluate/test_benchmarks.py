"""Benchmarks: where their data are looked for, what is frozen of it, and that it stays as it was."""

import dataclasses
import json

import numpy as np
import pytest
from bench_toys import POSES, built, depth_record, frozen, object_record, pair_record, questions, seen

from tests.builders import truth
from vlm3_jax.builders import registry
from vlm3_jax.builders.running.command import default_out
from vlm3_jax.errors import UserError
from vlm3_jax.evaluate import benchmarks, freeze, manifest
from vlm3_jax.evaluate.benchmarks import BENCHMARKS, Asked
from vlm3_jax.tasks import TASKS

IBIMS, DTU, POSE = Asked(BENCHMARKS["ibims1"]), Asked(BENCHMARKS["dtu_matches"]), Asked(BENCHMARKS["eth3d_pose"])
TAWB = Asked(dataclasses.replace(BENCHMARKS["tawb_matches"], total=900))


@pytest.mark.parametrize("benchmark", BENCHMARKS.values(), ids=lambda one: one.name)
def test_data_are_looked_for_where_builders_put_them(benchmark, monkeypatch):
    monkeypatch.setenv("VLM3_DATA", "/d")
    builder = registry.get(benchmark.builder)
    assert benchmark.split in builder.splits
    assert benchmark.folder() == default_out(builder, benchmark.split)
    assert benchmark.depthlm == (builder.honours_depthlm and benchmark.task == "depth")
    if benchmark.depthlm:
        assert benchmark.folder("depthlm") == default_out(builder, benchmark.split, True)
        assert "--depthlm" in benchmark.command("depthlm")
    assert benchmark.metric in ("qualitative", "quantitative", TASKS[benchmark.task].headline)


def test_names_and_groups():
    assert [one.key for one in benchmarks.find(["nyuv2", "ibims1", "nyuv2"])] == ["ibims1", "nyuv2"]
    depth = [one.benchmark.title for one in benchmarks.find(["depth"])]
    assert depth == ["Argoverse2", "DDAD", "NuScenes", "ETH3D", "ScanNet++", "SUN RGB-D", "iBims-1", "NYUv2"]
    assert len(benchmarks.find(["all"])) == 8 + 2 + 3 + 2
    assert [one.key for one in benchmarks.find(["all"], "depthlm")] == [
        one.key for one in benchmarks.find(["depth-depthlm"])
    ]
    assert [one.key for one in benchmarks.find(["nyuv2", "nyuv2-depthlm"])] == ["nyuv2", "nyuv2-depthlm"]
    assert benchmarks.of_key("nyuv2-depthlm").rules == "depthlm"
    for name in ("nyu", "eth3d_pose-depthlm"):
        with pytest.raises(UserError, match=f"--bench={name}: "):
            benchmarks.find([name])


def test_what_is_chosen_of_the_records():
    def chosen(name, ids):
        return BENCHMARKS[name].choose(ids)

    assert chosen("argoverse2", ["a/1/c", "a/2/c", "b/1/c", "c/1/c"]) == ["a/1/c", "a/2/c", "b/1/c"]
    assert chosen("dtu_matches", [f"s/{n}" for n in range(120)]) == ["s/0", "s/50", "s/100"]
    ids = [f"{place}/{n:08d}_0-{n:08d}_1" for place, first in (("a", 1), ("b", 0)) for n in range(first, 4000, 2)]
    kept = chosen("tawb_matches", ids)
    assert len(kept) == 1500
    assert max(id.split("/")[1] for id in kept) == "00001499_0-00001499_1"
    assert chosen("spatialrgpt_qualitative", ["1-qualitative-left_predicate", "2-quantitative-width_data"]) == [
        "1-qualitative-left_predicate"
    ]


@pytest.mark.parametrize("kind", ["z", "distance"])
@pytest.mark.parametrize("sparse", [False, True])
def test_depths_are_those_of_the_world_at_frozen_pixels(tmp_path, sparse, kind):
    made = frozen(IBIMS, tmp_path, [depth_record(n, sparse, kind) for n in range(3)])
    assert (made.new, made.head["rows"], made.head["labels"]) == (True, 3, 300)
    found = manifest.read(IBIMS, tmp_path)
    for number in range(3):
        (label,) = found[number].record.depth
        x, y = label.points_px.T
        assert label.kind == kind
        assert len({*map(tuple, label.points_px.tolist())}) == 100
        np.testing.assert_allclose(label.depth_m, getattr(seen(world_pose(number)), kind)[y, x], atol=6e-4)


def world_pose(number):
    return POSES[number]


def test_a_manifest_is_made_once_and_the_same_again(tmp_path):
    records = [depth_record(n) for n in range(3)]
    first = frozen(IBIMS, tmp_path / "a", records)
    assert frozen(IBIMS, tmp_path / "b", records).head == first.head
    again = freeze.freeze(IBIMS, tmp_path / "a", ["never", "looked", "at"])
    assert not again.new
    assert "frozen before" in str(again)
    assert again.head == first.head


def test_a_manifest_that_was_changed_is_refused(tmp_path):
    frozen(IBIMS, tmp_path, [depth_record(n) for n in range(2)])
    lines = tmp_path / "manifests" / "ibims1.jsonl"
    kept = lines.read_bytes()
    lines.write_bytes(kept.replace(b'"kind": "z"', b'"kind": "distance"', 1))
    for refused in (lambda: manifest.read(IBIMS, tmp_path), lambda: freeze.freeze(IBIMS, tmp_path, [])):
        with pytest.raises(UserError, match=r"ibims1\.jsonl: its checksum is not the one in ibims1\.json"):
            refused()
    lines.write_bytes(kept)
    built(tmp_path, [depth_record(n) for n in range(2)], version="2.0.0")
    with pytest.raises(UserError, match="frozen of another build than"):
        manifest.read(IBIMS, tmp_path)
    lines.unlink()
    with pytest.raises(UserError, match=r"ibims1\.jsonl: not there"):
        manifest.open_files(IBIMS, lines.with_suffix(".json"))


def test_what_is_not_there_says_how_to_make_it(tmp_path):
    with pytest.raises(manifest.NotThere, match=r"no built data in .*; make it with vlm3 data build ibims1 --raw=DIR"):
        manifest.read(IBIMS, tmp_path / "nothing")
    with pytest.raises(manifest.NotThere, match="has no manifest of ibims1; make it with vlm3 data build ibims1"):
        manifest.read(IBIMS, built(tmp_path, [depth_record(0)]))


def test_matches_are_seen_in_both_and_as_many_as_are_wanted(tmp_path):
    records = [pair_record(a, b) for a, b in ((0, 1), (1, 2), (2, 0))]
    assert frozen(TAWB, tmp_path, records).head["labels"] == 900
    for number, (a, b) in enumerate(((0, 1), (1, 2), (2, 0))):
        found = manifest.read(TAWB, tmp_path)[number].record.matches
        places = [surface(world_pose(n), p) for n, p in zip((a, b), (found.points0_px, found.points1_px))]
        assert np.median(np.linalg.norm(places[0] - places[1], axis=-1)) < 0.01
        assert (found.points0_px == np.rint(found.points0_px)).all()


def surface(pose, points):
    frame = truth.Frame(60, 60, 39.5, 29.5, 80, 60, pose)
    z = frame.seen(points).z
    return (frame.rays(points) * z[:, None]) @ pose[:3, :3].T + pose[:3, 3]


def test_a_bound_takes_of_each_pair_in_turn():
    rows = [{"id": n, "points0_px": [[k, n] for k in range(size)], "points1_px": [[k, n] for k in range(size)]}
            for n, size in enumerate((5, 1, 9))]  # fmt: skip
    kept = freeze._bounded(rows, 9)
    assert [len(one["points0_px"]) for one in kept] == [4, 1, 4]
    assert kept[2]["points0_px"] == [[k, 2] for k in range(4)]
    assert [one["id"] for one in freeze._bounded(rows, 2)] == [0, 1]


def test_the_rule_of_occlusion_is_the_sets_own(tmp_path, monkeypatch):
    """DTU's rule, 12 mm + 1 % + 8 mm, lets fewer pixels through than the rule for rooms."""
    records = [pair_record(0, 3, "scan1/a")]
    rooms, table = (dataclasses.replace(one.benchmark, total=10**6) for one in (TAWB, DTU))
    wide = frozen(Asked(rooms), tmp_path / "rooms", [pair_record(0, 3)]).head["labels"]
    assert frozen(Asked(table), tmp_path / "dtu", records).head["labels"] < wide


def test_pairs_without_motion_or_pose_are_set_aside(tmp_path):
    still = dataclasses.replace(pair_record(1, 1, "place/still"), depth_maps=())
    one = pair_record(0, 1, "place/no-pose")
    views = (one.views[0], dataclasses.replace(one.views[1], world_T_cam=None))
    made = frozen(POSE, tmp_path, [pair_record(0, 1), still, dataclasses.replace(one, views=views)])
    assert made.head["rows"] == 1
    assert [(left["id"], left["reason"].split(",")[0]) for left in made.head["set_aside"]] == [
        ("place/still", "its cameras stand in one place"),
        ("place/no-pose", "it has no two poses"),
    ]
    with pytest.raises(UserError, match="nothing to ask of eth3d_pose; the first, place/still: its cameras"):
        frozen(POSE, tmp_path / "none", [still])


QUALITATIVE = [
    ("left_predicate", "Is <mask> left of <mask>?", "No, Region [0] is to the right of Region [1].", False),
    ("behind_predicate", "Is <mask> behind <mask>?", "Yes.", True),
    ("tall_choice", "Which is taller, <mask> or <mask>?", "Region [1] is taller.", 1),
]
QUANTITATIVE = [
    ("distance_data", "How far is <mask> from <mask>?", "They are 2.50 meters apart.", 2.5),
    ("width_data", "How wide is <mask>?", "Region [0] is 50.0 centimeters wide.", 0.5),
    ("direction", "Where is <mask> from <mask>?", "Region [1] is at 3 o'clock.", 3),
]


@pytest.mark.parametrize(("name", "rows"), [("qualitative", QUALITATIVE), ("quantitative", QUANTITATIVE)])
def test_answers_about_objects_are_read_when_they_are_frozen(tmp_path, name, rows):
    asked = Asked(BENCHMARKS[f"spatialrgpt_{name}"])
    records = [object_record(n, *row[:3]) for n, row in enumerate([*QUALITATIVE, *QUANTITATIVE])]
    records.append(object_record(9, rows[0][0], rows[0][1], "Perhaps."))
    made = frozen(asked, tmp_path, records)
    assert made.head["chosen"] == len(rows) + 1
    assert "cannot be read as one to a question of" in made.head["set_aside"][0]["reason"]
    found = manifest.read(asked, tmp_path)
    assert [found[n].target["truth"] for n in range(len(found))] == [row[-1] for row in rows]
    told = questions(found, tmp_path)
    for one, row in zip(told, rows, strict=True):
        (example,) = one.examples
        assert "<mask>" not in example.question
        assert "bounding box region (38, 67, 250, 500)" in example.question
        assert TASKS["objects"].parse(example.answer, example.target) == row[-1]
        json.dumps(example.target)
