"""Other people's answers: maps, matches, poses, numbers and texts against a manifest, and what is wrong with them."""

import dataclasses
import io
import json
import pathlib
import zipfile

import numpy as np
import pytest
from bench_toys import CAMERA, POSES, depth_record, frozen, object_record, pair_record, seen
from PIL import Image
from scipy.spatial.transform import Rotation
from test_benchmarks import QUALITATIVE

from vlm3_jax import cli
from vlm3_jax.errors import UserError
from vlm3_jax.evaluate import manifest, tables
from vlm3_jax.evaluate.benchmarks import BENCHMARKS, Asked
from vlm3_jax.evaluate.foreign.score import Options, find_manifest, score

IBIMS, POSE = (Asked(BENCHMARKS[name]) for name in ("ibims1", "eth3d_pose"))
TAWB = Asked(dataclasses.replace(BENCHMARKS["tawb_matches"], total=300))
PAIRS = ((0, 1), (1, 2), (2, 3))


@pytest.fixture(scope="module")
def depth(tmp_path_factory):
    """Two records with z and one with distances."""
    folder = tmp_path_factory.mktemp("depth")
    frozen(IBIMS, folder, [depth_record(0), depth_record(1), depth_record(2, kind="distance")])
    return manifest.read(IBIMS, folder)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """The same pairs asked for matches and for poses."""
    folder = tmp_path_factory.mktemp("pairs")
    records = [pair_record(a, b) for a, b in PAIRS]
    frozen(TAWB, folder, records)
    from vlm3_jax.evaluate import freeze

    freeze.freeze(POSE, folder, [record.id for record in records])
    return folder


def maps(folder, kind="z", factor=1.0, suffix=".npy", size=None):
    """The true maps, each in a file."""
    for number in range(3):
        path = folder / f"place/{number:02d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.nan_to_num(getattr(seen(POSES[number]), kind), posinf=0) * factor
        if size is not None:
            values = np.asarray(Image.fromarray(values.astype("f4")).resize(size, Image.Resampling.NEAREST))
        if suffix == ".npy":
            np.save(path, values)
        elif suffix == ".npz":
            np.savez(path, depth=values, other=np.zeros(3))
        else:
            Image.fromarray(np.rint(values * 1000).astype(np.uint16)).save(path)
    return str(folder)


@pytest.mark.parametrize("kind", ["z", "distance"])
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".png"])
def test_true_maps_are_right_everywhere(depth, tmp_path, suffix, kind):
    options = Options(kind=kind, scale=0.001 if suffix == ".png" else None)
    found = score(depth, maps(tmp_path, kind, suffix=suffix), options)
    assert (found["delta1"], found["parse_failures"], found["missing_records"]) == (1, 0, 0)
    assert found["abs_rel"] < 2e-3
    # Labels of the one kind and of the other: nothing was left out.
    assert found["count"] == 300


def test_scaled_maps_and_those_of_the_other_kind_are_worse(depth, tmp_path):
    assert score(depth, maps(tmp_path / "far", factor=1.3), Options(kind="z"))["delta1"] == 0
    assert score(depth, maps(tmp_path / "near", factor=1 / 1.3), Options(kind="z"))["delta1"] == 0
    right = score(depth, maps(tmp_path / "distance", "distance"), Options(kind="distance"))
    wrong = score(depth, str(tmp_path / "distance"), Options(kind="z"))
    assert (right["delta1"], right["abs_rel"] < 1e-3) == (1, True)
    # 34 degrees to the side: a fifth too far in the corners.
    assert wrong["abs_rel"] > 20 * right["abs_rel"]
    assert wrong["scale_bias"] > 1.02
    stretched = maps(tmp_path / "stretched", "distance", factor=1.2)
    assert score(depth, stretched, Options(kind="distance"))["delta1"] == 1
    assert score(depth, stretched, Options(kind="z"))["delta1"] < 0.9


def test_maps_of_another_size_cover_the_image(depth, tmp_path):
    found = score(depth, maps(tmp_path, size=(40, 30)), Options(kind="z"))
    assert found["delta1"] > 0.9
    assert found["abs_rel"] < 0.05


def test_a_map_that_is_missing_or_has_a_hole_counts_as_wrong(depth, tmp_path):
    folder = pathlib.Path(maps(tmp_path))
    (folder / "place/01.npy").unlink()
    values = np.load(folder / "place/00.npy")
    x, y = depth[0].record.depth[0].points_px[:10].T
    values[y, x] = np.nan
    np.save(folder / "place/00.npy", values)
    found = score(depth, str(folder), Options(kind="z"))
    assert found["missing_records"] == 1
    assert found["delta1"] == pytest.approx((300 - 100 - 10) / 300)
    assert found["parse_failures"] == 110


def test_a_row_in_the_tables_and_in_reports(depth, tmp_path):
    found = score(depth, maps(tmp_path / "maps"), Options(kind="z"), tmp_path / "out", "MoGe-2")
    assert found["delta1"] == 1
    (block,) = tables.read(tmp_path / "out").blocks
    assert block.own[0].name == "MoGe-2"
    assert block.own[0].values[6] == 1
    row = json.loads((tmp_path / "out/ibims1/predictions.jsonl").read_text().splitlines()[0])
    assert row["id"] == "ibims1/place/00/0"
    assert row["value"] == pytest.approx(row["target"]["depth_m"], abs=1e-3)
    with pytest.raises(UserError, match="holds answers of 'MoGe-2' that differ in answers_by"):
        score(depth, str(tmp_path / "maps"), Options(kind="z"), tmp_path / "out", "VGGT")


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_numbers_and_texts(depth, tmp_path):
    true = [depth[n].record.depth[0].depth_m.tolist() for n in range(3)]
    rows = [
        {"id": "place/00", "prediction": [*true[0][:-1], None]},
        {"id": "ibims1/place/01/5", "prediction": true[1][5]},
    ]
    rows.append({"id": "place/02/0", "prediction": f"about {true[2][0]:.3f} meters"})
    found = score(depth, write_rows(tmp_path / "a.jsonl", rows), Options())
    assert found["delta1"] == pytest.approx((99 + 1 + 1) / 300)
    assert found["missing_records"] == 0
    for rows, message in (
        (
            [{"id": "place/00", "prediction": [1.0]}],
            "a.jsonl, line 1: record 'place/00' has 100 questions; give a list",
        ),
        ([{"id": "place/00/100", "prediction": 1.0}] * 1, r"nothing in it about any of the 3 records|line 1: id"),
        ([{"id": "place/00/1", "prediction": [1, 2]}], "line 1: 'prediction' must be a text or a number"),
        ([{"id": "place/00/1", "prediction": 1}] * 2, "line 2: id 'place/00/1' is also on line 1"),
        ([{"id": 3, "prediction": 1}], "line 1: expected an object with 'id', a text"),
    ):
        with pytest.raises(UserError, match=message):
            score(depth, write_rows(tmp_path / "a.jsonl", rows), Options())


def test_objects_are_answered_by_texts_and_truth_values(tmp_path):
    asked = Asked(BENCHMARKS["spatialrgpt_qualitative"])
    records = [object_record(n, *row[:3]) for n, row in enumerate(QUALITATIVE)]
    frozen(asked, tmp_path / "built", records)
    found = manifest.read(asked, tmp_path / "built")
    rows = [{"id": f"{records[0].id}/0", "prediction": False}, {"id": records[1].id, "prediction": "Yes, it is."}]
    rows.append({"id": records[2].id, "prediction": 0})
    metrics = score(found, write_rows(tmp_path / "a.jsonl", rows), Options())
    assert (metrics["left_right"], metrics["behind_front"], metrics["tall_short"]) == (1, 1, 0)


def truth_of(found, number):
    """Queries (px of the first image) and where they are in the second."""
    label = found[number].record.matches
    return np.asarray(label.points0_px), np.asarray(label.points1_px)


def dense(found, number, size=(80, 60)):
    """Where each pixel of the first image, resized, lies in the second, by the world: [H, W, 2] in px of that size."""
    from tests.builders import truth

    first, second = (POSES[n] for n in PAIRS[number])
    width, height = size
    x, y = np.meshgrid((np.arange(width) + 0.5) * 80 / width - 0.5, (np.arange(height) + 0.5) * 60 / height - 0.5)
    frame = truth.Frame(60, 60, 39.5, 29.5, 80, 60, first)
    points = np.stack([x, y], -1).reshape(-1, 2)
    z = np.nan_to_num(frame.seen(points).z, posinf=1e3)
    local = (frame.rays(points) * z[:, None]) @ first[:3, :3].T + first[:3, 3] - second[:3, 3]
    local = local @ second[:3, :3]
    pixels = CAMERA.project(np.where(local[:, 2:] > 0, local, 1.0))
    return ((pixels + 0.5) * [width / 80, height / 60] - 0.5).reshape(height, width, 2)


@pytest.mark.parametrize("form", ["points1", "flow", "flow first", "warp", "warp both", "flow at half size"])
def test_matches_in_every_form(pairs, tmp_path, form):
    found = manifest.read(TAWB, pairs)
    size = (40, 30) if "half" in form else (80, 60)
    grid = np.stack(np.meshgrid(np.arange(size[0]), np.arange(size[1])), -1)
    for number in range(3):
        path = tmp_path / f"{found[number].id}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        field = dense(found, number, size)
        warp = (field + 0.5) / size * 2 - 1
        arrays = {
            "points1": {"points1": truth_of(found, number)[1]},
            "flow": {"flow": field - grid},
            "flow first": {"flow": np.moveaxis(field - grid, -1, 0)},
            "flow at half size": {"flow": field - grid},
            "warp": {"warp": warp},
            "warp both": {"warp": np.concatenate([np.zeros_like(warp), warp], -1)},
        }
        np.savez(path, **arrays[form])
    metrics = score(found, str(tmp_path), Options())
    # Half a pixel of the small image is 3.5 px of the frame that errors are told in.
    assert metrics["epe"] < (1e-3 if form == "points1" else 4.0 if "half" in form else 0.05)
    assert metrics["missing_records"] == 0


def test_matches_without_an_answer_count_as_the_centre(pairs, tmp_path):
    found = manifest.read(TAWB, pairs)
    path = tmp_path / f"{found[0].id}.npz"
    path.parent.mkdir(parents=True)
    np.savez(path, points1=np.full(truth_of(found, 0)[1].shape, np.nan))
    metrics = score(found, str(tmp_path), Options())
    assert metrics["parse_failures"] == metrics["count"]
    assert metrics["missing_records"] == 2
    np.savez(path, points1=np.zeros((3, 2)))
    with pytest.raises(UserError, match=r"\.npz: points1 has shape \[3, 2\], the queries need"):
        score(found, str(tmp_path), Options())


def relative(number):
    first, second = (POSES[n] for n in PAIRS[number])
    return np.linalg.inv(first) @ second


@pytest.mark.parametrize(
    "form", ["jsonl pairs", "jsonl inverse", "jsonl images", "txt", "npy inverse", "tum", "tum by scene", "colmap"]
)
def test_poses_in_every_form(pairs, tmp_path, form):
    found = manifest.read(POSE, pairs)
    ids, options, path = [found[n].id for n in range(3)], Options(), tmp_path / "poses"
    if form.startswith("jsonl"):
        path = path.with_suffix(".jsonl")
        rows = [{"id": id, "cam1_T_cam2": relative(n).tolist()} for n, id in enumerate(ids)]
        if "inverse" in form:
            rows = [
                {"id": id, "cam2_T_cam1": np.linalg.inv(relative(n))[:3].ravel().tolist()} for n, id in enumerate(ids)
            ]
        if "images" in form:
            rows = [{"scene": "place", "image": f"{n:02d}.png", "world_T_cam": T.tolist()} for n, T in enumerate(POSES)]
        write_rows(path, rows)
    elif form.startswith(("txt", "npy")):
        convention = "cam2_T_cam1" if "inverse" in form else "cam1_T_cam2"
        options = dataclasses.replace(options, pose=convention)
        for number, id in enumerate(ids):
            matrix = np.linalg.inv(relative(number)) if "inverse" in form else relative(number)
            file = path / f"{id}.{form[:3]}"
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, matrix) if form.startswith("npy") else np.savetxt(file, matrix)
    elif form.startswith("tum"):
        lines = ["# timestamp tx ty tz qx qy qz qw"]
        for number, T in enumerate(POSES):
            numbers = [*T[:3, 3], *Rotation.from_matrix(T[:3, :3]).as_quat()]
            lines.append(f"{number:02d} " + " ".join(map(repr, map(float, numbers))))
        path = path / "place.txt" if "scene" in form else path.with_suffix(".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines))
        path = path.parent if "scene" in form else path
    else:
        write_colmap(path)
    metrics = score(found, str(path), options)
    assert (metrics["auc30"], metrics["auc3_signed"], metrics["missing_records"]) == (1, 1, 0)
    assert metrics["rotation_error_deg"] < 1e-4
    # Distances are answered only by who says that lengths are metres.
    assert metrics["count"] == 9
    assert np.isnan(metrics["distance_abs_rel"])
    metrics = score(found, str(path), dataclasses.replace(options, metric=True))
    assert metrics["count"] == 12
    assert metrics["distance_abs_rel"] < 1e-6


def write_colmap(folder):
    pycolmap = pytest.importorskip("pycolmap")
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(
        pycolmap.Camera(model="PINHOLE", width=80, height=60, params=[60, 60, 40, 30], camera_id=1)
    )
    for number, T in enumerate(POSES):
        image = pycolmap.Image(f"{number:02d}.png", camera_id=1, image_id=number + 1)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(np.linalg.inv(T)[:3]))
    folder.mkdir()
    model.write_text(str(folder))


def test_a_convention_that_is_wrong_scores_low(pairs, tmp_path):
    found = manifest.read(POSE, pairs)
    for number in range(3):
        file = tmp_path / f"{found[number].id}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savetxt(file, np.linalg.inv(relative(number)))
    with pytest.raises(UserError, match=r"--pose: say what the matrices in .* are: cam1_T_cam2 or cam2_T_cam1"):
        score(found, str(tmp_path), Options())
    assert score(found, str(tmp_path), Options(pose="cam1_T_cam2"))["auc3_signed"] < 0.2
    assert score(found, str(tmp_path), Options(pose="cam2_T_cam1"))["auc3_signed"] == 1
    np.savetxt(file, np.diag([2.0, 2, 2, 1]))
    with pytest.raises(UserError, match=r"\.txt: not a rotation and a translation"):
        score(found, str(tmp_path), Options(pose="cam1_T_cam2"))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("00.npy", b"\x93NUMPY\x01\x00garbage", r"00\.npy: not a readable npy file"),
        ("00.png", b"no picture", r"00\.png: cannot decode the map"),
        ("00.npz", b"no archive", r"00\.npz: not a readable npz file"),
        ("00.npy", "pickle", r"00\.npy: not a readable npy file of numbers"),
        ("00.npz", "two", r"00\.npz: expected an array depth or pred or arr_0, it has a, b"),
        ("00.npy", "cube", r"00\.npy: expected a map \[height, width\], got shape \[2, 3, 4\]"),
    ],
)
def test_files_that_are_damaged_are_named(depth, tmp_path, name, data, message):
    path = tmp_path / "place" / name
    path.parent.mkdir()
    buffer = io.BytesIO()
    if data == "pickle":
        np.save(buffer, np.array([{"a": 1}], object), allow_pickle=True)
    elif data == "two":
        np.savez(buffer, a=np.zeros((2, 2)), b=np.zeros((2, 2)))
    elif data == "cube":
        np.save(buffer, np.zeros((2, 3, 4)))
    path.write_bytes(buffer.getvalue() or data)
    with pytest.raises(UserError, match=message) as error:
        score(depth, str(tmp_path), Options(kind="z", scale=1.0))
    assert "\n" not in str(error.value)


def test_an_archive_that_grows_when_unpacked_is_refused(depth, tmp_path, monkeypatch):
    from vlm3_jax.evaluate.foreign import files

    monkeypatch.setattr(files, "MAX_MAP_BYTES", 1000)
    path = tmp_path / "place" / "00.npz"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("depth.npy", bytes(100_000))
    with pytest.raises(UserError, match="above 1,000 bytes when unpacked"):
        score(depth, str(tmp_path), Options(kind="z"))


def test_what_must_be_said_is_asked_for(depth, tmp_path):
    folder = maps(tmp_path / "png", suffix=".png")
    with pytest.raises(UserError, match=r"--kind: say what the maps of .* hold: z or distance"):
        score(depth, folder, Options())
    with pytest.raises(UserError, match=r"00\.png: --scale: say how many metres a unit of it is"):
        score(depth, folder, Options(kind="z"))
    np.save(tmp_path / "png/place/00.npy", np.zeros((2, 2)))
    with pytest.raises(UserError, match=r"00\.npy: there is also 00\.png; keep one of them"):
        score(depth, folder, Options(kind="z", scale=0.001))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="nothing in it about any of the 3 records"):
        score(depth, str(tmp_path / "empty"), Options(kind="z"))


def test_a_manifest_is_found_by_folder_file_and_name(depth, pairs, monkeypatch, tmp_path):
    folder = pathlib.Path(depth.name).parent.parent
    assert find_manifest(str(folder), "depth").sha256 == depth.sha256
    assert find_manifest(depth.name, "depth").sha256 == depth.sha256
    assert find_manifest(str(pairs), "pose").asked == POSE
    monkeypatch.setenv("VLM3_DATA", str(tmp_path))
    with pytest.raises(UserError, match=r"make it with vlm3 data build ibims1 --raw=DIR --split=test"):
        find_manifest("ibims1", "depth")
    with pytest.raises(UserError, match="ibims1: a benchmark of depth, not of pose"):
        find_manifest("ibims1", "pose")
    with pytest.raises(UserError, match="expected one manifest of objects, found 0"):
        find_manifest(str(pairs), "objects")
    assert find_manifest(str(tmp_path / "targets.jsonl"), "depth") is None


def test_the_command(depth, tmp_path, capsys):
    folder = pathlib.Path(depth.name).parent.parent
    args = [
        "score",
        "depth",
        maps(tmp_path / "maps"),
        str(folder),
        "--kind=z",
        f"--out={tmp_path / 'out'}",
        "--name=MoGe",
    ]
    assert cli.main(args) == 0
    shown = capsys.readouterr().out
    assert '"delta1": 1.0' in shown
    assert "MoGe" in shown
    assert "(+0.040)" in shown
    assert cli.main(["score", "depth", str(tmp_path / "none"), str(folder), "--kind=z"]) == 2
    assert capsys.readouterr().err == f"vlm3 score: {tmp_path / 'none'}: no such file or folder\n"
    targets = write_rows(tmp_path / "t.jsonl", [{"id": "a", "target": {"kind": "depth", "depth_m": 1.0}}])
    assert cli.main(["score", "depth", targets, targets, "--kind=z"]) == 2
    assert "--kind: " in capsys.readouterr().err


def test_questions_are_handed_out_and_their_answers_come_back(pairs, tmp_path, monkeypatch, capsys):
    """As for a model behind an API: texts and pictures out, texts in."""
    folder = tmp_path / "data" / POSE.benchmark.where
    folder.parent.mkdir(parents=True)
    folder.symlink_to(pairs)
    monkeypatch.setenv("VLM3_DATA", str(tmp_path / "data"))
    args = ["eval", "--bench=eth3d_pose", "--bench=ibims1", "--questions", f"--out={tmp_path / 'asked'}", "--records=2"]
    assert cli.main(args) == 0
    shown = capsys.readouterr().out
    assert f"{tmp_path / 'asked'}/eth3d_pose/questions.jsonl: 8 questions" in shown
    assert "left out: ibims1: no built data in" in shown
    rows = [json.loads(line) for line in (tmp_path / "asked/eth3d_pose/questions.jsonl").read_text().splitlines()]
    assert rows[0]["question"].startswith("Treating the first image as the reference viewpoint")
    assert "swapped" not in json.dumps(rows)
    for name in rows[0]["images"]:
        with Image.open(tmp_path / "asked/eth3d_pose" / name) as picture:
            # Focal length 750 instead of 60.
            assert picture.size == (1000, 750)
    found = manifest.read(POSE)
    told = {id: example.answer for id, example in frozen_answers(found)}
    answers = write_rows(tmp_path / "a.jsonl", [{"id": row["id"], "prediction": told[row["id"]]} for row in rows])
    metrics = score(found, answers, Options())
    assert metrics["missing_records"] == 1
    assert metrics["auc30"] == pytest.approx(2 / 3)


def frozen_answers(found):
    from vlm3_jax.evaluate.foreign.score import _examples

    for number in range(len(found)):
        row = found[number]
        for place, example in enumerate(_examples(row)):
            yield f"eth3d_pose/{row.id}/{place}", example


def test_spreads_beside_predictions_and_pictures_come_into_the_report(depth, tmp_path):
    from vlm3_jax.evaluate.report.page import write_report

    rng, rows = np.random.default_rng(0), []
    for number in range(len(depth)):
        row = depth[number]
        true = row.record.depth[0].depth_m
        spread = 0.1 * true
        whole = {"prediction": (true + rng.normal(size=100) * spread).tolist(), "spread": spread.tolist()}
        if number:
            rows.append({"id": row.id} | whole)
        else:
            names = (f"ibims1/{row.id}/{k}" for k in range(100))
            rows += [{"id": n, "prediction": p, "spread": s} for n, p, s in zip(names, *whole.values())]
    found = score(depth, write_rows(tmp_path / "a.jsonl", rows), Options(), tmp_path / "out", "one")
    assert 0.9 < found["delta1"] < 1
    page = write_report(tmp_path / "report.html", {"one": tmp_path / "out"}).read_text()
    assert "ibims1: 300 answers with a spread" in page
    assert page.count("data:image/jpeg") >= 3
    for wrong in (0, "x", [1, None, -1], float("nan")):
        path = write_rows(tmp_path / "b.jsonl", [{"id": "place/00/1", "prediction": "1 m", "spread": wrong}])
        with pytest.raises(UserError, match=r"b.jsonl, line 1: 'spread' must be a positive number"):
            score(depth, path, Options())
