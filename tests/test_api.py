"""The Python front door: the same coordinates as in training, numpy out, one-line errors."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import vlm3_jax
from vlm3_jax import tasks
from vlm3_jax.camera import Camera, Focal
from vlm3_jax.checkpoint import tiny
from vlm3_jax.cli import main
from vlm3_jax.errors import UserError
from vlm3_jax.records import DepthPoints, Record, View, encode_image, unify
from vlm3_jax.tasks.protocol import given


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tiny.make(tmp_path_factory.mktemp("api") / "model", "test")
    protocols = {task: given(task, "short", resize="focal:40") for task in tasks.TASKS}
    return vlm3_jax.load(folder, protocols=protocols, max_new_tokens=4)


def test_asks_what_training_asks(model, rng):
    """A point of a photo is named as the training path names it."""
    pixels = rng.integers(0, 256, (60, 90, 3), dtype=np.uint8)
    camera = Camera(70.0, 66.0, 44.0, 31.0, 90, 60)
    points = rng.integers(0, [90, 60], (12, 2))
    record = Record(
        "r", (View(encode_image(pixels, "i"), camera),), (DepthPoints(points, np.full(12, 3.0), "distance"),)
    )
    examples = tasks.get("depth").examples(unify(record, Focal(40.0)), rng, given("depth", "short", questions=12))
    expected = {tuple(e.target["coords"]) for e in examples}
    asked = model.protocol("depth")
    _, stored, unified = model._layout(pixels, camera, asked.resize)
    assert {tuple(c) for c in model._coords(points, stored, unified, asked)} == expected


def test_answers_are_numpy(model, rng, tmp_path):
    pixels = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    found = model.depth(path, grid=(3, 2))
    assert found.points_px.tolist() == [[10, 12], [32, 12], [53, 12], [10, 36], [32, 36], [53, 36]]
    assert found.distance_m.shape == (6,)
    assert len(found.answers) == 6
    # The same question twice, from a file and from pixels, gives the same answer.
    assert model.depth(pixels, points=[[10, 12]]).answers == found.answers[:1]
    match = model.match(path, pixels, [[5, 5], [60, 40]])
    assert match.matches_px.shape == (2, 2)
    pose = model.pose(path, pixels)
    assert pose.rotation.shape == (3, 3)
    assert set(pose.answers) == set(tasks.pose.KINDS)
    assert isinstance(model.ask([path, pixels], "what is this?"), str)
    film = rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    assert isinstance(model.ask_video(film, "what happens?", times_s=range(4), images=[path]), str)


def test_errors_are_one_line(model, tmp_path, rng):
    with pytest.raises(UserError, match="no model directory"):
        vlm3_jax.load(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"missing.png: cannot be read"):
        model.ask(tmp_path / "missing.png", "what?")
    Image.fromarray(np.full((9, 8), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(UserError, match=r"deep.png: I;16 has more than 8 bits a pixel; convert it to 8 bits"):
        model.ask(tmp_path / "deep.png", "what?")
    with pytest.raises(UserError, match="the image has 8 x 9"):
        model.depth(rng.integers(0, 256, (9, 8, 3), dtype=np.uint8), Camera(10, 10, 5, 5, 20, 20))


def test_ask_draws_when_told_to(model, capsys):
    """Any of the four options draws; what is not given is what the checkpoint proposes."""
    folder = model._folder

    def ask(*options):
        command = ["ask", "--model", str(folder), "--question", "What is it?", "--max-new-tokens", "4", *options]
        assert main(command) == 0
        return capsys.readouterr().out

    greedy = ask()
    assert ask("--temperature", "0") == greedy
    drawn = [ask("--temperature", "100", "--top-p", "1", "--seed", seed) for seed in ("1", "1", "2")]
    assert drawn[0] == drawn[1]
    assert len({greedy, *drawn}) == 3
    assert ask("--top-k", "1") == greedy
    assert main(["ask", "--model", str(folder), "--question", "What?", "--top-p", "1.5"]) == 2
    assert "sampling: top_p is 1.5, expected above 0 and at most 1" in capsys.readouterr().err


def test_length_of_answers(model, tmp_path):
    assert model._engine.max_new_tokens == 4
    folder = shutil.copytree(model._folder, tmp_path / "model")
    assert vlm3_jax.load(folder)._engine.max_new_tokens == 256
    stored = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(stored | {"max_new_tokens": 7}))
    assert vlm3_jax.load(folder)._engine.max_new_tokens == 7
