"""What people bring to `vlm3 score` that must not become a wrong number: holes, turned maps, other options."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
from bench_toys import POSES, depth_record, frozen, pair_record, seen

from vlm3_jax import cli
from vlm3_jax.errors import UserError
from vlm3_jax.evaluate import freeze, manifest, outputs, tables
from vlm3_jax.evaluate.benchmarks import BENCHMARKS, Asked
from vlm3_jax.evaluate.foreign.score import Options, find_manifest, score
from vlm3_jax.evaluate.report.page import write_report
from vlm3_jax.evaluate.scoring import read_cells
from vlm3_jax.files import read_json
from vlm3_jax.tasks import protocol

IBIMS, POSE, NYU = (Asked(BENCHMARKS[name]) for name in ("ibims1", "eth3d_pose", "nyuv2"))
TAWB = Asked(dataclasses.replace(BENCHMARKS["tawb_matches"], total=300))


@pytest.fixture(scope="module")
def depth(tmp_path_factory):
    folder = tmp_path_factory.mktemp("depth")
    frozen(IBIMS, folder, [depth_record(0), depth_record(1)])
    return manifest.read(IBIMS, folder)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    records = [pair_record(0, 1), pair_record(1, 2)]
    frozen(TAWB, folder, records)
    freeze.freeze(POSE, folder, [record.id for record in records])
    return folder


def maps(folder, change=lambda values: values):
    """True maps of z, changed."""
    for number in range(2):
        path = folder / f"place/{number:02d}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, change(np.nan_to_num(seen(POSES[number]).z, posinf=0).astype(np.float32)))
    return str(folder)


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def true_depths(found):
    return [found[number].record.depth[0].depth_m.tolist() for number in range(len(found))]


@pytest.mark.parametrize("name", ["flow", "warp"])
def test_a_hole_in_a_field_takes_only_its_own_queries(pairs, tmp_path, name):
    found = manifest.read(TAWB, pairs)
    for number in range(2):
        first, second = (np.asarray(p, np.float64) for p in dataclasses.astuple(found[number].record.matches)[:2])
        field = np.full((60, 80, 2), np.nan)
        x, y = first.astype(int).T
        field[y, x] = second - first if name == "flow" else (second + 0.5) / (80, 60) * 2 - 1
        path = tmp_path / f"{found[number].id}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **{name: field})
    whole = score(found, str(tmp_path), Options())
    assert (whole["parse_failures"], whole["epe"] < 1e-6) == (0, True)
    field[y[0], x[0]] = np.inf
    np.savez(path, **{name: field})
    assert score(found, str(tmp_path), Options())["parse_failures"] == 1


def test_between_pixels_the_nearest_must_be_known_and_others_may_be_holes():
    from vlm3_jax.evaluate.foreign.matches import _sampled

    field = np.stack(np.meshgrid([10.0, 20.0, 30.0], [1.0, 2.0]), -1)
    at = np.array([[0.25, 0.5], [1.5, 0.0], [2.0, 1.0], [7.0, -3.0]])
    assert _sampled(field, at) == pytest.approx(np.array([[12.5, 1.5], [25, 1], [30, 2], [30, 1]]))
    field[0, 1] = np.nan
    assert _sampled(field, np.array([[0.4, 0.0]])) == pytest.approx(np.array([[10.0, 1.0]]))
    assert np.isnan(_sampled(field, np.array([[0.6, 0.0]]))).all()


def test_a_match_at_infinity_is_no_answer(pairs, tmp_path):
    found = manifest.read(TAWB, pairs)
    path = tmp_path / f"{found[0].id}.npz"
    path.parent.mkdir(parents=True)
    points = np.asarray(found[0].record.matches.points1_px, np.float64)
    points[0] = np.inf
    np.savez(path, points1=points)
    metrics = score(found, str(tmp_path), Options())
    assert np.isfinite(metrics["epe"])
    assert metrics["parse_failures"] == metrics["count"] - len(points) + 1


def test_maps_that_lie_on_their_side_are_refused_and_stretched_ones_counted(depth, tmp_path):
    with pytest.raises(UserError, match=r"00\.npy: it lies on its side: the image is 80 x 60 pixels"):
        score(depth, maps(tmp_path / "turned", np.rot90), Options(kind="z"))
    assert score(depth, maps(tmp_path / "cut", lambda z: z[:, :60]), Options(kind="z"))["stretched_maps"] == 2
    # Whole patches of 14 pixels.
    assert "stretched_maps" not in score(depth, maps(tmp_path / "patches", lambda z: z[:56, :75]), Options(kind="z"))


def test_whole_numbers_have_no_unit_of_their_own(depth, tmp_path):
    folder = maps(tmp_path / "mm", lambda z: np.rint(z * 1000).astype(np.uint16))
    with pytest.raises(UserError, match=r"00\.npy: --scale: say how many metres a unit of it is"):
        score(depth, folder, Options(kind="z"))
    assert score(depth, folder, Options(kind="z", scale=0.001))["delta1"] == 1
    with pytest.raises(UserError, match=r"00\.npy: holds truth values, not depth"):
        score(depth, maps(tmp_path / "bool", lambda z: z > 0), Options(kind="z", scale=1.0))


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("depth", Options(kind="distance"), r"--kind: is of depth maps only, .* compared with the label as it is.* z$"),
        ("depth", Options(scale=0.5), "--scale: is of depth maps only"),
        ("pose", Options(metric=True), "--metric: is of poses only"),
        ("pose", Options(pose="cam1_T_cam2"), "--pose: is of matrices only"),
    ],
)
def test_options_of_other_answers_are_refused(depth, pairs, tmp_path, task, options, message):
    found = depth if task == "depth" else manifest.read(POSE, pairs)
    rows = write_rows(tmp_path / "a.jsonl", [{"id": f"{found[0].id}/0", "prediction": "1 m"}])
    with pytest.raises(UserError, match=message):
        score(found, rows, options)


def test_a_convention_beside_poses_that_tell_their_own_is_refused(pairs, tmp_path):
    found = manifest.read(POSE, pairs)
    rows = [{"id": found[0].id, "cam1_T_cam2": np.eye(4).tolist()}]
    path = write_rows(tmp_path / "a.jsonl", rows)
    with pytest.raises(UserError, match=r"--pose=cam2_T_cam1: only of a folder of matrices"):
        score(found, path, Options(pose="cam2_T_cam1"))
    write_rows(tmp_path / "a.jsonl", [*rows, {"id": "other", "cam1_T_cam2": np.eye(4).tolist()}])
    with pytest.raises(UserError, match=r"line 2: id 'other' is no pair that is asked about"):
        score(found, path, Options())


@pytest.mark.parametrize("form", ["txt", "npy", "jsonl", "tum"])
def test_a_pose_of_nan_is_none_and_a_mark_at_the_beginning_is_passed_over(pairs, tmp_path, form):
    found = manifest.read(POSE, pairs)
    matrices = [np.linalg.inv(POSES[0]) @ POSES[1], np.full((4, 4), np.nan)]
    source, options = tmp_path / "a", Options(pose="cam1_T_cam2" if form in ("txt", "npy") else "")
    for row, matrix in zip([found[0], found[1]], matrices, strict=True):
        path = source / f"{row.id}.{form}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if form == "npy":
            np.save(path, matrix)
        elif form == "txt":
            path.write_text("\ufeff" + "\n".join(" ".join(map(str, line)) for line in matrix))
    if form == "jsonl":
        source = tmp_path / "a.jsonl"
        write_rows(source, [{"id": found[n].id, "cam1_T_cam2": matrices[n].tolist()} for n in range(2)])
    elif form == "tum":
        from scipy.spatial.transform import Rotation

        source = tmp_path / "a.txt"
        lines = ["02" + " nan" * 7]
        for n in range(2):
            numbers = (*POSES[n][:3, 3], *Rotation.from_matrix(POSES[n][:3, :3]).as_quat())
            lines.append(f"{n:02d} {' '.join(map(str, numbers))}")
        source.write_text("\ufeff" + "\n".join(lines[::-1]))
    metrics = score(found, str(source), options)
    assert metrics["auc30"] == 0.5
    assert metrics["missing_records"] == 1


def test_null_and_nan_are_no_answer_and_double_ones_are_told(depth, tmp_path):
    first, second = true_depths(depth)
    rows = [{"id": "place/00", "prediction": first}, {"id": "ibims1/place/01/3", "prediction": None}]
    rows += [{"id": f"place/01/{k}", "prediction": value if k else float("nan")} for k, value in enumerate(second)]
    double = write_rows(tmp_path / "a.jsonl", rows)
    with pytest.raises(UserError, match=r"line 2: id 'ibims1/place/01/3' was answered by 'place/01/3' already"):
        score(depth, double, Options())
    metrics = score(depth, write_rows(tmp_path / "b.jsonl", [rows[0], *rows[2:]]), Options())
    assert metrics["parse_failures"] == 1
    assert metrics["delta1"] == pytest.approx(199 / 200)
    both = write_rows(tmp_path / "c.jsonl", [rows[0], {"id": "place/00/7", "prediction": 1.0}])
    with pytest.raises(UserError, match=r"line 2: id 'place/00/7' was answered by 'place/00' already"):
        score(depth, both, Options())


@pytest.mark.parametrize("spread", [0.3, [0.1, 0.2]])
def test_a_spread_for_another_number_of_questions_is_refused(depth, tmp_path, spread):
    row = {"id": "place/00", "prediction": true_depths(depth)[0], "spread": spread}
    with pytest.raises(UserError, match=r"'spread' of record 'place/00': it has 100 questions; give a list of as many"):
        score(depth, write_rows(tmp_path / "a.jsonl", [row]), Options())


def test_answers_read_by_other_rules_say_so_in_every_table(depth, tmp_path):
    rows = write_rows(tmp_path / "a.jsonl", [{"id": "place/00", "prediction": ["2 m"] * 100}])
    score(depth, rows, Options(rules="release"), tmp_path / "out", "GPT")
    assert tables.read(tmp_path / "out").blocks[0].own[0].name == "GPT (release's rules)"
    with pytest.raises(UserError, match=r"holds answers of .* differ in answers_by"):
        score(depth, rows, Options(), tmp_path / "out", "GPT")


def test_a_damaged_manifest_and_a_folder_without_one(depth, tmp_path, monkeypatch, capsys):
    (tmp_path / "manifests").mkdir()
    for text in ("", "[]", '{"rules": 3}'):
        (tmp_path / "manifests/ibims1.json").write_text(text)
        with pytest.raises(UserError, match=r"ibims1\.json"):
            find_manifest(str(tmp_path), "depth")
    folder = pathlib.Path(depth.name).parent
    assert find_manifest(str(folder), "depth").sha256 == depth.sha256
    (tmp_path / "raw").mkdir()
    with pytest.raises(UserError, match=r"raw: no folder that vlm3 data build has made of a benchmark"):
        find_manifest(str(tmp_path / "raw"), "depth")
    # The raw data of a benchmark are often in a folder of its name.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VLM3_DATA", str(tmp_path))
    (tmp_path / "ibims1").mkdir()
    assert cli.main(["score", "depth", "answers", "ibims1"]) == 2
    assert "make it with vlm3 data build ibims1" in capsys.readouterr().err


def test_labels_of_other_rules_are_refused(tmp_path):
    frozen(Asked(NYU.benchmark, "depthlm"), tmp_path, [depth_record(0)])
    assert len(manifest.read(Asked(NYU.benchmark, "depthlm"), tmp_path)) == 1
    with pytest.raises(UserError, match=r"nyuv2\.json: of depthlm labels, not of metres"):
        manifest.read(NYU, tmp_path)


def test_what_is_said_of_predictions_goes_before_they_are_replaced(depth, tmp_path):
    outputs.write_bench(tmp_path, depth)
    outputs.retract(tmp_path, depth)
    assert read_json(tmp_path / outputs.BENCH)["manifest_sha256"] == depth.sha256
    outputs.retract(tmp_path, depth, "2 of 9 records")
    assert not (tmp_path / outputs.BENCH).exists()


def test_one_image_has_no_interval(depth, tmp_path):
    frozen(NYU, tmp_path / "built", [depth_record(0)])
    folder = tmp_path / "maps"
    maps(folder)
    score(manifest.read(NYU, tmp_path / "built"), str(folder), Options(kind="z"), tmp_path / "out", "X")
    (block,) = tables.read(tmp_path / "out").blocks
    assert block.own[0].intervals == (None,) * len(block.columns)
    (cell,) = read_cells(tmp_path / "out")
    assert len(set(cell.model.records)) == 1


def test_a_name_that_is_no_text_ends_nothing(depth, tmp_path):
    """As a shell gives it to a program under a locale of another encoding."""
    name = b"M\xc3\xb6dell".decode("ascii", "surrogateescape")
    score(depth, maps(tmp_path / "maps"), Options(kind="z"), tmp_path / "out", name)
    assert "M\\udcc3\\udcb6dell" in (tmp_path / "out/benchmarks.md").read_text()
    assert "M??dell" in write_report(tmp_path / "r.html", {name: tmp_path / "out"}).read_text()


def test_matches_are_read_in_the_range_that_the_model_was_asked_in(pairs, tiny_model, tmp_path, monkeypatch, capsys):
    """Texts have no range of their own: what `--questions --model` has asked in 0 to 10 is no answer in 0 to 1000."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    protocol.write(model, {"correspondence": protocol.given("correspondence", "short", coord_range=10)})
    folder = tmp_path / "data" / TAWB.benchmark.where
    folder.parent.mkdir(parents=True)
    folder.symlink_to(pairs)
    monkeypatch.setenv("VLM3_DATA", str(tmp_path / "data"))
    asked = ["eval", "--bench=tawb_matches", "--questions", f"--model={model}", f"--out={tmp_path / 'asked'}"]
    assert cli.main(asked) == 0
    assert f"of matches and objects with --wording={model}" in capsys.readouterr().out
    found, rows = manifest.read(TAWB), []
    for number in range(len(found)):
        share = np.asarray(found[number].record.matches.points1_px) / (80, 60)
        rows += [
            {"id": f"{found[number].id}/{k}", "prediction": f"{x:.0f},{y:.0f}"} for k, (x, y) in enumerate(share * 10)
        ]
    answers = write_rows(tmp_path / "a.jsonl", rows)
    epe = {}
    for wording in ("release", "short", str(model)):
        assert cli.main(["score", "correspondence", answers, "tawb_matches", f"--wording={wording}"]) == 0
        epe[wording] = json.loads(capsys.readouterr().out)["epe"]
    # Half a cell of ten is 28 px of 560, and 21 of 420.
    assert epe[str(model)] < 35
    assert min(epe["release"], epe["short"]) > 200
    assert cli.main(["score", "correspondence", answers, "tawb_matches", "--wording=shrot"]) == 2
    assert "shrot" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config=demo", "--records=3"], "--records=3: is of --bench only; give --config.eval.records"),
        (["--config=demo", "--labels=3"], "--labels=3: is of --bench only"),
        (["--config=demo", "--rules=depthlm"], "--rules=depthlm: is of --bench only"),
        (
            ["--bench=pose", "--rules=depthlm", "--out=x"],
            "--bench=pose: DepthLM's labels are depths, these are of pose",
        ),
    ],
)
def test_options_of_benchmarks_are_refused_elsewhere(words, message, capsys):
    assert cli.main(["eval", *words]) == 2
    assert capsys.readouterr().err == f"vlm3 eval: {message}\n"


def test_brackets_in_a_name_are_no_markup_and_the_page_says_what_was_not_run(depth, tmp_path, capsys):
    folder = pathlib.Path(depth.name).parent.parent
    name, out = "qwen[ft]/x[/b]", str(tmp_path / "out")
    words = ["score", "depth", maps(tmp_path / "maps"), str(folder), "--kind=z", f"--out={out}", f"--name={name}"]
    assert cli.main(words) == 0
    assert name in capsys.readouterr().out
    assert cli.main(["report", out, f"--out={tmp_path / 'r.html'}"]) == 0
    assert f"{name}  " in capsys.readouterr().out
    page = (tmp_path / "r.html").read_text()
    assert "Not run: no benchmark of objects, correspondence, pose." in page
    assert "from vlm3 score" in page
    assert "- no benchmark of objects, correspondence, pose" in (tmp_path / "out/benchmarks.md").read_text()


def test_values_are_written_shortly_and_scored_whole(pairs, tmp_path):
    found = manifest.read(POSE, pairs)
    relative = np.linalg.inv(POSES[0]) @ POSES[1]
    rows = write_rows(tmp_path / "a.jsonl", [{"id": found[0].id, "cam1_T_cam2": relative.tolist()}])
    score(found, rows, Options(metric=True), tmp_path / "out", "X")
    lines = (tmp_path / "out/eth3d_pose/predictions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert all(len(row["prediction"]) < 40 for row in rows)
    assert rows[2]["value"] == pytest.approx(np.linalg.norm(relative[:3, 3]), abs=1e-12)
    assert rows[2]["prediction"] == f"{rows[2]['value']:.4f}"
    assert rows[-1]["prediction"] == ""


def test_what_is_printed_is_json_for_everybody(tmp_path, capsys):
    targets = write_rows(tmp_path / "t.jsonl", [{"id": "a", "target": {"kind": "depth", "depth_m": 1.0}}])
    answers = write_rows(tmp_path / "a.jsonl", [{"id": "a", "prediction": "no idea"}])
    assert cli.main(["score", "depth", answers, targets]) == 0
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["abs_rel"] == "nan"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"target": {"kind": "depth", "depth_m": "1.0"}},
            "target field 'depth_m' is missing or is not a positive number",
        ),
        ({"target": {"kind": "depth", "depth_m": 0}}, "target field 'depth_m' is missing or is not a positive number"),
        ({"value": "far"}, "'value' must be null or a number, for a target of 'depth'"),
        ({"value": [1, 2]}, "'value' must be null or a number, for a target of 'depth'"),
        ({"value": float("inf")}, "'value' must be null or a number, for a target of 'depth'"),
        ({"value": None}, None),
        ({}, None),
    ],
)
def test_predictions_of_others_are_checked_and_need_no_more_than_is_documented(tmp_path, change, message, capsys):
    row = {"id": "a/b/0", "component": "a", "record": "b", "task": "depth", "variant": "model", "question": "?"}
    row |= {"answer": "1", "prediction": "2", "target": {"kind": "depth", "depth_m": 1.0}} | change
    write_rows(tmp_path / "predictions.jsonl", [row])
    code = cli.main(["report", str(tmp_path), f"--out={tmp_path / 'r.html'}"])
    told = capsys.readouterr().err
    assert (code, told) == (
        (0, "") if message is None else (2, f"vlm3 report: {tmp_path}/predictions.jsonl, line 1: {message}\n")
    )
