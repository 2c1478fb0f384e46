"""Folders as people have them: other files among the photos, answers of other commands, names that are no text."""

import functools
import io
import json
import os
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

import vlm3_jax
from vlm3_jax import cli
from vlm3_jax.answers import saving
from vlm3_jax.answers.values import Depth
from vlm3_jax.commands import many
from vlm3_jax.commands.photo_options import MODEL
from vlm3_jax.errors import UserError
from vlm3_jax.infer.spread import Calibration
from vlm3_jax.processor.photo import open_photo

SHORT = ["--max-new-tokens=3"]
GRID = ["--grid=2x2", *SHORT]


@pytest.fixture(scope="module")
def opened():
    """Models, by what they were loaded with: commands of one process after the other need not compile each time."""
    return functools.cache(vlm3_jax.load)


@pytest.fixture(autouse=True)
def opened_once(opened, monkeypatch):
    monkeypatch.setattr(vlm3_jax, "load", opened)


@pytest.fixture
def folder(images, tmp_path):
    return shutil.copytree(images, tmp_path / "images")


def found(folder, out=None) -> list[str]:
    return [source.stem for source in many.find([str(folder)], out)]


def test_a_folder_of_answers_belongs_to_one_command(run, folder, tmp_path):
    """Every option that has a say in the answers counts, and the points themselves, not the name of their file."""
    points, out = tmp_path / "points.txt", tmp_path / "out"
    points.write_text("5 6\n")
    command = ("depth", folder, "--out", out, "--points", points, *SHORT)
    assert run(*command)[0] == 0
    photo = ("depth", folder / "a.png", *command[2:])
    for words, why in [
        ((*command, "--spread"), "spread=False (now True)"),
        ((*command, "--max-new-tokens=4"), "max_new_tokens=3 (now 4)"),
        ((*photo, "--fov=50"), "fov=None (now 50.0)"),
    ]:
        code, _, err = run(*words)
        assert (code, err.splitlines()[-1]) == (
            2,
            f"vlm3 depth: {out}: holds answers of another command, {why}; choose another --out",
        )
    assert run(*photo)[0] == 0
    points.write_text("7 8\n")
    assert "points=[[5.0, 6.0]] (now [[7.0, 8.0]])" in run(*command)[2]
    single = ("depth", folder / "a.png", "--out", tmp_path / "other", "--fov=50", *GRID)
    assert run(*single)[0] == 0
    code, _, err = run("depth", folder, "--out", tmp_path / "other", *GRID)
    assert code == 2
    assert err.endswith(
        f"{tmp_path / 'other'}: holds answers of another command (a.depth.json); choose another --out\n"
    )


def test_a_new_calibration_makes_other_answers(run, model, folder, tmp_path):
    """Of points without spread it has no say."""
    model = shutil.copytree(model, tmp_path / "model")
    plain = ("depth", folder, "--model", model, "--out", tmp_path / "out", *GRID)
    command = ("depth", folder, "--model", model, "--out", tmp_path / "spread", "--spread", *GRID)
    _, _, err = run(*plain)
    assert "no interval" not in err
    _, _, err = run(*command)
    assert "no interval: the spread of this model is not calibrated, see vlm3 calibrate\n" in err
    Calibration((0.5, 0.9), (1.0, 2.0), 100, "a set").write(model)
    assert run(*plain)[0] == 0
    code, _, err = run(*command)
    assert code == 2
    assert "spread: holds answers of another command, calibration=None (now {'levels': [0.5, 0.9]" in err


def test_a_newer_camera_file_makes_the_answer_old(run, folder, tmp_path):
    command = ("depth", folder, "--out", tmp_path / "out", *GRID)
    assert run(*command)[0] == 0
    (folder / "a.camera.json").write_text('{"K": [[70, 0, 32], [0, 70, 24], [0, 0, 1]]}')
    _, _, err = run(*command)
    assert "cameras: camera files (1)\n" in err
    assert err.splitlines()[-1].endswith("; 3 images were done before")
    assert json.loads((tmp_path / "out/a.depth.json").read_text())["camera"]["fx"] == 70


def test_answers_are_no_photos(folder):
    """Wherever the answers lie, however that is written, and whoever else wrote some there."""
    stems = found(folder)
    for name in ("a.depth-view.png", "a.depth.png", "more/a-b.match-view.png"):
        shutil.copy(folder / "a.png", folder / name)
    assert found(folder) == stems
    # Beside the photos, as a part of them, in a folder above them.
    for out in (folder, folder / "..", folder / "answers"):
        assert found(folder, out) == stems
    (folder / "answers").mkdir()
    shutil.copy(folder / "a.png", folder / "answers/x.png")
    (folder.parent / "link").symlink_to(folder / "answers")
    for out in (folder / "answers", folder / "more/../answers", folder.parent / "link"):
        assert found(folder, out) == stems
    assert found(folder) == sorted([*stems, "answers/x"])


def test_what_is_left_out_is_said(run, folder, tmp_path, capsys, monkeypatch):
    """Kinds that are not read; hidden files are not photos; a link to nothing is an image that cannot be read."""
    stems = found(folder)
    for name in ("x.GIF", "y.tif", "more/z.tif", "._a.png", ".thumbs/a.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(folder / "a.png", folder / name)
    monkeypatch.chdir(folder)
    assert found(".") == stems
    capsys.readouterr()
    assert found(folder) == stems
    assert capsys.readouterr().err == f"{folder}: left out 1 .gif, 2 .tif: not read here; convert them to JPEG or PNG\n"
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    code, _, err = run("depth", folder, "--out", tmp_path / "out", *GRID)
    assert code == 2
    assert f"left out: {folder / 'gone.jpg'}: cannot be read as an image (No such file or directory)\n" in err
    (tmp_path / "raw").mkdir()
    shutil.copy(folder / "a.png", tmp_path / "raw/a.nef")
    with pytest.raises(UserError, match=r"raw: no images \(.*; it holds 1 \.nef\) and no videos in this folder"):
        found(tmp_path / "raw")


def test_a_photo_that_cannot_be_asked_as_the_others(run, folder, tmp_path, monkeypatch):
    """Points that one does not have: the others are answered."""
    Image.new("RGB", (20, 20)).save(folder / "small.png")
    # And one that is not installed to be read.
    monkeypatch.setitem(sys.modules, "cv2", None)
    (folder / "film.mp4").write_bytes(b"film")
    code, _, err = run("depth", folder, "--out", tmp_path / "out", "--points", "30,40", *SHORT)
    assert code == 2
    small = folder / "small.png"
    assert f"left out: {small}: points[0]: (30, 40) is not in the image of 20 x 20 px (1 of 1 points are not)\n" in err
    missing = 'the module cv2 is missing: pip install "vlm3-jax[video]"'
    assert f"left out: {folder / 'film.mp4'}: {missing}\n" in err
    assert err.splitlines()[-1].startswith("vlm3 depth: 2 of 6 images could not be used, the others are done; ")
    assert len(list((tmp_path / "out").rglob("*.depth.json"))) == 4


def test_one_camera_for_photos_of_several_sizes_is_said(run, folder, tmp_path):
    """A lens in millimetres fits them all; pixels and angles across are those of one shape."""
    pair = (folder / "turned.jpg", folder / "a.png")

    def said(*words) -> list[str]:
        code, _, err = run("match", *pair, *words, *GRID)
        assert code == 0
        return [line for line in err.splitlines() if line.startswith("--")]

    end = "their sizes differ (48 x 64, 64 x 48); --camera=35mm:MM is a lens for all of them"
    assert said("--fov=60") == [f"--fov: all see the same angle across, but {end}"]
    assert said("--camera=fov:60") == [f"--camera: all see the same angle across, but {end}"]
    assert said("--camera=60,60,32,24") == [f"--camera: all have the same camera in pixels, but {end}"]
    assert said("--camera=35mm:26") == said("--fx=60") == said() == []
    Image.new("RGB", (40, 30)).save(folder / "small.png")
    _, _, err = run("depth", folder, "--fx=60", "--out", tmp_path / "out", *GRID)
    assert f"--fx: all have the same camera in pixels, but {end.replace('48 x 64', '40 x 30')}" in err.splitlines()


def test_files_about_other_photos_stay(run, folder, tmp_path):
    """Two photos of one name are told apart, however they are written; the same ones are answered again."""
    shutil.copy(folder / "a.png", folder / "more/a.png")
    out, a, b = tmp_path / "out", folder / "a.png", folder / "more/b.png"
    for command, other, name in [
        (("depth", a), ("depth", folder / "more/a.png"), "a.depth.json"),
        (("pose", a, b), ("pose", folder / "more/a.png", b), "a-b.pose.json"),
    ]:
        extra = ["--out", out, *(GRID if command[0] == "depth" else SHORT)]
        assert run(*command, *extra)[0] == 0
        code, _, err = run(*other, *extra)
        assert code == 2
        assert err.splitlines()[-1].startswith(f"vlm3 {command[0]}: {out / name}: holds answers about {a}")
        assert run(command[0], folder / "more/../a.png", *command[2:], *extra)[0] == 0


def test_names_that_are_no_text(model, folder, tmp_path, monkeypatch):
    """A Latin-1 name, as old cameras and archives have them; and a terminal that has no umlauts."""
    monkeypatch.setenv(MODEL, str(model))
    old, new = os.fsdecode(b"gr\xfcn.png"), "grün.png"
    for name in (old, new):
        shutil.copy(folder / "a.png", folder / name)
    for encoding, name, shown in (("utf-8", old, b"gr\xfcn"), ("ascii", new, rb"gr\xfcn")):
        for words in (["depth", folder / name], ["match", folder / name, folder / "a.png"]):
            printed = io.BytesIO()
            monkeypatch.setattr("sys.stdout", io.TextIOWrapper(printed, encoding))
            monkeypatch.setattr("sys.argv", ["vlm3", *map(str, words), "--out", str(tmp_path / "out"), *GRID])
            assert cli.main() == 0
            assert b"out/" + shown in printed.getvalue()
    tree = json.loads((tmp_path / "out" / os.fsdecode(b"gr\xfcn.depth.json")).read_text())
    assert tree["image"] == str(folder / "gr\ufffdn.png")


def test_urls_of_files(run, fails, folder):
    """What `ask` takes as an image, `depth` does."""
    (folder / "a.png").rename(folder / "my a.png")
    assert run("depth", (folder / "my a.png").as_uri(), *GRID)[0] == 0
    line = fails("depth", "https://a.b/c.jpg", *GRID)
    assert line == "https://a.b/c.jpg: images are not fetched from the net; download it and give the file"
    assert fails("depth", "data:image/png;base64,AAAA" + "A" * 9999, *GRID) == "data: URL: give a file here"


def test_no_place_for_the_files(run, fails, folder, depth_files, tmp_path):
    """A full disk and a folder that cannot be made: one line, exit code 2, no half of a file."""
    resource = pytest.importorskip("resource")
    (tmp_path / "file").write_text("")
    code, out, err = run("depth", folder / "a.png", "--out", tmp_path / "file/out", *GRID)
    # Nothing was asked.
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].endswith(
        "cannot be written (Not a directory); mend that and run the same command again"
    )
    assert "file/out: cannot be written (Not a directory)" in fails("depth", folder, "--out", tmp_path / "file/out")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(UserError, match=r"a\.depth\.json: cannot be written \(File too large\); mend that and run"):
            saving.save(tmp_path / "full", "a", ["json"], saving.DEPTH, *depth_files)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "full/a.depth.json").exists()


@pytest.fixture
def depth_files(folder):
    """An answer and its photo."""
    photo = open_photo(folder / "a.png")
    points = np.array([[1, 2]])
    return Depth(points, np.array([2.0]), ["2"], photo.camera, photo.source), photo
