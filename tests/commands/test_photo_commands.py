"""From photos to files by the command line, on the tiny model really asked: its texts are random, the rest is not."""

import json
import pathlib
import shutil

import numpy as np
import plyfile
import pytest
from PIL import Image

import vlm3_jax
from vlm3_jax.answers import saving
from vlm3_jax.commands import many
from vlm3_jax.commands.photo_options import MODEL
from vlm3_jax.errors import UserError
from vlm3_jax.infer.spread import Calibration
from vlm3_jax.processor.photo import open_photo

SHORT = ["--max-new-tokens=3"]


def test_depth_of_a_photo(run, model, images, tmp_path):
    """Upright, its camera from EXIF and said, all points in the table, in the files too, unread ones counted."""
    code, out, err = run("depth", images / "turned.jpg", "--grid=2x2", "--out", tmp_path, "--formats=all", *SHORT)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["x", "y", "distance_m", "z_m"]
    assert lines[1].split()[:2] == ["12", "16"]
    assert "turned.jpg: 48 x 64, focal length 48 px (EXIF)\n" in err
    tree = json.loads((tmp_path / "turned.depth.json").read_text())
    assert tree["camera"]["source"] == "EXIF"
    assert (tree["camera"]["width"], tree["camera"]["height"]) == (48, 64)
    assert len(tree["points"]) == 4
    same = vlm3_jax.load(model, max_new_tokens=3).depth(images / "turned.jpg", grid=(2, 2))
    assert [row["answer"] for row in tree["points"]] == same.answers
    unread = sum(row["distance_m"] is None for row in tree["points"])
    assert tree["unread"] == unread
    assert (f"{unread} of 4 points have no readable answer" in err) == (unread > 0)
    assert lines[5:] == [str(tmp_path / f"turned.{name}") for name in NAMES]
    vertices = plyfile.PlyData.read(tmp_path / "turned.depth.ply")["vertex"]
    assert vertices.count == 4 - unread


NAMES = ("depth-view.png", "depth.npz", "depth.ply", "depth.glb", "depth.json")


def test_dense_depth_of_a_photo(run, images, tmp_path):
    code, _, err = run("depth", images / "a.png", "--dense=201", "--kind=z", "--fov=70", "--out", tmp_path, *SHORT)
    assert code == 0
    assert "(given)" in err
    tree = json.loads((tmp_path / "a.depth.json").read_text())
    assert "asking 201 questions at most\n" in err
    assert tree["questions"] <= 201
    assert tree["kind"] == "z"
    with Image.open(tmp_path / "a.depth.png") as image:
        assert image.size == (64, 48)
        assert json.loads(image.text["vlm3"])["kind"] == "z"
    arrays = np.load(tmp_path / "a.depth.npz")
    assert arrays["depth"].shape == (48, 64)
    # Random texts hold a number now and then, or none: the map is of those that there are, and nothing else.
    assert np.isfinite(arrays["depth"]).any() == (tree["unread"] < len(tree["points"]))
    assert f"{tree['questions']} questions in" in err


def test_the_camera_that_is_told(run, images, tmp_path):
    def said(*words) -> str:
        code, _, err = run("depth", images / "a.png", "--grid=2x2", *words, *SHORT)
        assert code == 0
        return err.splitlines()[0].split(": ", 1)[1]

    assert said() == (
        "64 x 48, focal length 55 px (assumed 60 degrees); a guess: metres are as wrong as it; give --fov, --fx or a "
        "camera file"
    )
    assert said("--fx=80") == "64 x 48, focal length 80 px (given)"
    assert said("--fov=90") == "64 x 48, focal length 32 px (given)"
    assert said("--camera=35mm:50") == "64 x 48, focal length 92 px (given)"
    assert said("--camera=81,80,32,24") == "64 x 48, focal length 81 px (given)"
    copied = shutil.copy(images / "a.png", tmp_path / "a.png")
    (tmp_path / "a.camera.json").write_text('{"K": [[70, 0, 32], [0, 70, 24], [0, 0, 1]]}')
    _, _, err = run("depth", copied, "--grid=2x2", *SHORT)
    assert "focal length 70 px (a.camera.json)" in err


def test_the_spread_of_points(run, model, images, tmp_path):
    """Numbers where an answer has one; an interval only where the model was calibrated. Maps of dense answers."""
    command = ("depth", images / "a.png", "--grid=2x2", "--spread", "--out", tmp_path, "--formats=json", *SHORT)
    code, out, err = run(*command)
    assert code == 0
    assert out.splitlines()[0].split() == ["x", "y", "distance_m", "z_m", "expected_m", "deviation_m"]
    assert "no interval: the spread of this model is not calibrated, see vlm3 calibrate" in err
    tree = json.loads((tmp_path / "a.depth.json").read_text())
    assert tree["level"] is None
    for row in tree["points"]:
        assert (row["expected_m"] is not None) == any(character.isdigit() for character in row["answer"])
    calibrated = shutil.copytree(model, tmp_path / "calibrated")
    Calibration((0.5, 0.9), (1.0, 2.0), 100, "a set").write(calibrated)
    assert "low_m (90%)" in run(*command, "--model", calibrated)[1]
    dense = "depth", images / "a.png", "--dense=4", "--spread", "--out", tmp_path, "--formats=npz,picture", *SHORT
    for folder, names in ((model, {"median", "deviation"}), (calibrated, {"median", "deviation", "low", "high"})):
        assert run(*dense, "--model", folder)[0] == 0
        arrays = np.load(tmp_path / "a.depth.npz")
        assert {name[6:] for name in arrays if name.startswith("depth_")} == names
        assert arrays["depth_deviation"].shape == arrays["depth"].shape == (48, 64)


def test_points_from_files(run, images, tmp_path):
    np.save(tmp_path / "p.npy", np.array([[1, 2], [3, 4]]))
    (tmp_path / "p.npy").rename(tmp_path / "P.NPY")
    # As Windows' editors write it.
    (tmp_path / "p.txt").write_text("\ufeff# x y\r\n5, 6  # a corner\r\n", encoding="utf-8")
    points = ["--points", tmp_path / "P.NPY", "10,20", tmp_path / "p.txt"]
    _, out, _ = run("depth", images / "a.png", *points, *SHORT)
    assert [line.split()[:2] for line in out.splitlines()[1:]] == [[*p] for p in ("12", "34", ("10", "20"), "56")]


def test_match(run, images, tmp_path):
    code, out, _ = run("match", images / "a.png", images / "more/b.png", "--grid=2x2", "--out", tmp_path, *SHORT)
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()[1:5]] == [
        ["16", "12"],
        ["48", "12"],
        ["16", "36"],
        ["48", "36"],
    ]
    tree = json.loads((tmp_path / "a-b.match.json").read_text())
    assert len(tree["points"]) == 4
    assert (tmp_path / "a-b.match-view.png").is_file()
    assert (tmp_path / "a-b.match.npz").is_file()


def test_pose(run, images, tmp_path):
    """A random model tells no pose: no COLMAP model is made, and that is said; asked for by name it is the error."""
    a, b = images / "a.png", images / "more/b.png"
    code, out, err = run("pose", a, b, "--out", tmp_path, *SHORT)
    assert code == 0
    assert "cannot be read" in out
    assert "no COLMAP model: rotation or direction cannot be read" in err
    assert json.loads((tmp_path / "a-b.pose.json").read_text())["distance_m"] is None
    assert not (tmp_path / "a-b.colmap").exists()
    code, _, err = run("pose", a, b, "--out", tmp_path, "--formats=colmap", *SHORT)
    assert code == 2
    assert err.splitlines()[-1].startswith("vlm3 pose: colmap: the model's answers give no pose")


def test_ask_about_a_region(run, fails, images):
    code, out, err = run("ask", images / "a.png", "How wide is <mask>?", "--box=1,2,30,40", "--fx=80", *SHORT)
    assert code == 0
    assert out
    assert "focal length 80 px (given); resized by longest:64" in err
    for words in ([images / "a.png"], [images / "a.png", images / "turned.jpg"]):
        line = fails("ask", *words, "--fov=60")
    assert line == 'no question: write it behind the images: vlm3 ask photo.jpg "How wide is the table?"'
    assert fails("ask", images / "a.png", "How?", "--box=1,2,3") == "--box=1,2,3: write X1,Y1,X2,Y2 in pixels"
    assert fails("ask", images / "a.png", " ") == "the question is empty"
    code, _, err = run("ask", images / "a.png", "How wide is <mask>?", *SHORT)
    assert code == 2
    assert err.endswith("vlm3 ask: boxes: the question has 1 places <mask> for 0 boxes\n")


def test_a_folder_and_again(run, images, tmp_path):
    """Every image has its files; what is done stays done, what is new or newer is answered; others' files stay."""
    folder = shutil.copytree(images, tmp_path / "images")
    command = ("depth", folder, "--out", folder / "answers", "--grid=2x2", *SHORT)
    code, out, err = run(*command)
    assert (code, out) == (0, f"{folder / 'answers'}\n")
    assert "cameras: assumed 60 degrees (3), EXIF (1); a guess" in err
    assert "4 images in " in err.splitlines()[-1]
    assert " 16 questions, " in err.splitlines()[-1]
    done = sorted(str(p.relative_to(folder / "answers")) for p in (folder / "answers").rglob("*") if p.is_file())
    stems = ("a", "more/b", "more/c", "turned")
    assert done == sorted([many.RUN, *(f"{s}.depth{end}" for s in stems for end in (".json", "-view.png"))])
    (folder / "answers/more/c.depth.json").unlink()
    (folder / "a.png").touch()
    before = (folder / "answers/turned.depth.json").stat().st_mtime_ns
    _, _, err = run(*command)
    assert "2 images in " in err.splitlines()[-1]
    assert err.splitlines()[-1].endswith("; 2 images were done before")
    assert (folder / "answers/turned.depth.json").stat().st_mtime_ns == before
    _, _, err = run(*command)
    assert len(err.splitlines()) == 1
    code, _, err = run(*command, "--fov=50")
    assert code == 2
    assert err.endswith(
        f"{folder / 'answers'}: holds answers of another command, fov=None (now 50.0); choose another --out\n"
    )


def test_a_broken_image_among_others(run, images, tmp_path):
    folder = shutil.copytree(images, tmp_path / "images")
    (folder / "b.jpg").write_text("no photo")
    code, _, err = run("depth", folder, "--out", tmp_path / "out", "--grid=2x2", *SHORT)
    assert code == 2
    lines = err.splitlines()
    assert f"left out: {folder / 'b.jpg'}: cannot be read as an image (no JPEG, PNG, WEBP file)" in lines
    assert lines[-1].startswith("vlm3 depth: 1 of 5 images could not be used, the others are done; ")
    assert len(list((tmp_path / "out").rglob("*.depth.json"))) == 4


def test_a_video(run, model, tmp_path, rng):
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "clip.avi"
    film = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for k in range(25):
        film.write(np.full((48, 64, 3), (10 * k, 100, 200), np.uint8))
    film.release()
    (tmp_path / "clip.camera.json").write_text('{"K": [[70, 0, 32], [0, 70, 24], [0, 0, 1]]}')
    command = ("depth", path, "--out", tmp_path / "out", "--grid=2x2", "--fps=2", *SHORT)
    code, _, err = run(*command)
    assert code == 0
    names = sorted(p.name for p in (tmp_path / "out/clip").glob("*.json"))
    assert names == [f"frame-{n:06d}.depth.json" for n in (0, 5, 10, 15, 20)]
    tree = json.loads((tmp_path / "out/clip" / names[1]).read_text())
    assert tree["image"] == f"{path}, frame 5"
    assert tree["camera"]["fx"] == 70
    assert "5 images in" in err
    assert "; 5 images were done before" in run(*command)[2]
    (tmp_path / "broken.mp4").write_text("no film")
    code, _, err = run("depth", tmp_path / "broken.mp4", "--out", tmp_path / "other", *SHORT)
    assert (code, err.splitlines()[-1]) == (2, f"vlm3 depth: {tmp_path / 'broken.mp4'}: cannot be read as a video")


def test_mistakes(run, fails, images, tmp_path, monkeypatch):
    a = images / "a.png"
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.txt").write_text("1 2 3\n")
    for words, why in [
        (["depth", a, "--grid=0"], "--grid=0: write columns x rows, such as 8x6"),
        (["depth", a, "--points", "1"], "--points=1: write X,Y in pixels, or a file"),
        (["depth", a, "--points", tmp_path / "bad.txt"], f"--points={tmp_path / 'bad.txt'}: expected x and y"),
        (["depth", a, "--fov=0"], "--fov=0: give degrees, from 1 to 170"),
        (["depth", a, "--fx=-2"], "--fx=-2: give a focal length in pixels, above 0"),
        (["depth", a, "--camera=1,2"], "--camera=1,2: write FX,FY,CX,CY in pixels of the upright image, fov:60 or"),
        (["depth", a, "--out=x", "--formats=obj"], "--formats=obj: there is no 'obj'; choose of picture, npz"),
        (["depth", a, "--out=x", "--formats=png"], "--formats=png: png holds a depth map of all pixels; ask for one"),
        (["depth", a, "--formats=ply"], "--formats: of which folder? give --out"),
        (["depth", a, "--out", a], f"--out={a}: is a file; give a folder"),
        (["depth", a, "--out="], "--out: is empty; give a folder"),
        (["depth", a, "--out=x", "--formats=,"], "--formats=,: names none; choose of picture, npz"),
        (["depth", "", "--out=x"], "the name of an image is empty"),
        (["depth", a, "", "--out=x"], "the name of an image is empty"),
        (["ask", "", "How far?"], "the name of an image is empty"),
        (["depth", images], "--out: missing; give a folder for the answers about many images"),
        (["depth", tmp_path / "empty"], f"{tmp_path / 'empty'}: no images (.jpg, .jpeg, .png, .webp, .heic, .heif)"),
        (["depth", a, images, "--out=x"], "a.png: two of the images have this name, "),
        (["depth", a, "--fps=0"], "--fps=0: give frames a second, above 0"),
        (["depth", tmp_path / "none.jpg"], f"{tmp_path / 'none.jpg'}: cannot be read as an image (No such file"),
        (["match", a, tmp_path / "none.jpg", "--fx=80"], ""),
    ]:  # fmt: skip
        if why:
            assert fails(*words).startswith(why)
        else:
            code, _, err = run(*words)
            assert (code, len(err.splitlines())) == (2, 2)
    monkeypatch.delenv(MODEL)
    assert fails("depth", a).startswith("--model: missing; name one, such as facebook/VLM3-depth or runs/demo")
    assert not pathlib.Path("x").exists()


def test_the_same_in_python(model, images, tmp_path):
    opened = vlm3_jax.load(model, max_new_tokens=3)
    found = opened.depth(images / "a.png", dense=60)
    assert found.map_m().shape == (48, 64)
    assert len(found.points_px) == len(found.answers) == len(found.distance_m)
    assert found.dense.questions <= 60
    for words in ({"kind": "depth"}, {"meant": "depth"}):
        with pytest.raises(UserError, match="'depth' is unknown; choose z or distance"):
            opened.depth(images / "a.png", **words)
    (path,) = saving.save(str(tmp_path / "new"), "a", ["npz"], saving.DEPTH, found, open_photo(images / "a.png"))
    assert np.load(path)["depth"].shape == (48, 64)
    assert opened.match(images / "a.png", images / "a.png", grid=(2, 2)).points_px[0].tolist() == [16, 12]
    assert open_photo(images / "a.png", lambda width, height: [[9, 0, 5], [0, 9, 5], [0, 0, 1]]).camera.fx == 9
