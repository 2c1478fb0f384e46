"""Photos, their cameras, points and answers in a bucket: found, opened and written as on a disk."""

import argparse
import io
import json
import time

import numpy as np
import pytest
from PIL import Image

from vlm3_jax.answers import saving
from vlm3_jax.answers.values import Depth
from vlm3_jax.commands import many, photo_options
from vlm3_jax.processor.photo import open_photo


@pytest.fixture
def photos(place):
    """A folder of photos with answers in it, beside other things."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), (9, 99, 200)).save(buffer, "PNG")
    names = ("a.png", "sub/b ü.png", "x.gif", ".thumbs/a.png", "answers/z.png", "sub/a.depth-view.png")
    for name in names:
        (place / "photos" / name).write_bytes(buffer.getvalue())
    (place / "photos/a.camera.json").write_text('{"K": [[70, 0, 32], [0, 70, 24], [0, 0, 1]]}')
    return place / "photos"


def test_a_folder_of_photos(photos, capsys):
    found = many.find([str(photos)], photos / "answers")
    assert [source.stem for source in found] == ["a", "sub/b ü"]
    assert capsys.readouterr().err == f"{photos}: left out 1 .gif: not read here; convert them to JPEG or PNG\n"
    assert open_photo(str(found[0].path)).source == "a.camera.json"


def test_points_in_a_file(photos):
    (photos / "p.txt").write_text("1 2\n")
    with (photos / "p.npy").open("wb") as file:
        np.save(file, np.array([[3, 4]]))
    words = [str(photos / "p.txt"), "5,6", str(photos / "p.npy")]
    asked = photo_options.asked_points(argparse.Namespace(points=words, grid=None))
    assert asked == {"points": [[1, 2], [5, 6], [3, 4]]}


def test_answers(photos):
    """Written whole, and one after the other goes on from them."""
    photo, out = open_photo(str(photos / "a.png")), photos / "answers"
    found = Depth(np.array([[1, 2]]), np.array([2.0]), ["2"], photo.camera, photo.source)

    def save(stem, found, photo):
        saving.save(out, stem, ["npz", "json"], saving.DEPTH, found, photo)

    def walk():
        sources, settings = many.find([str(photos)], out), {"command": "depth"}
        return many.walk(sources, out, ".depth.json", settings, None, 1.0, lambda photo: (found, 1, 0), save)

    assert (walk().photos, walk().before) == (2, 2)
    assert json.loads((out / "sub/b ü.depth.json").read_text())["image"] == str(photos / "sub/b ü.png")
    assert sorted(p.name for p in out.rglob("*")) == sorted(
        ["z.png", many.RUN, *(f"{stem}.depth.{end}" for stem in ("a", "b ü") for end in ("npz", "json"))]
    )
    # S3 tells whole seconds.
    time.sleep(1.1)
    (photos / "a.camera.json").write_text('{"K": [[80, 0, 32], [0, 80, 24], [0, 0, 1]]}')
    assert (walk().photos, walk().before) == (1, 2)
