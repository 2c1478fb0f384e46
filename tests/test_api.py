"""The Python front door: the same coordinates as in training, numpy out, one-line errors."""

import copy
import json
import re
import shutil

import numpy as np
import pytest
from PIL import ExifTags, Image

import vlm3_jax
from vlm3_jax import tasks
from vlm3_jax.camera import Camera, Focal
from vlm3_jax.checkpoint import tiny
from vlm3_jax.cli import main
from vlm3_jax.errors import UserError
from vlm3_jax.records import DepthPoints, Record, View, encode_image, unify
from vlm3_jax.tasks import protocol
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
    _, questions = model._depth_questions(pixels, camera, "distance")
    assert {tuple(c) for c in questions.coords(points)} == expected


def test_answers_are_numpy(model, rng, tmp_path):
    pixels = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    found = model.depth(path, grid=(3, 2))
    assert found.points_px.tolist() == [[10, 12], [32, 12], [53, 12], [10, 36], [32, 36], [53, 36]]
    assert found.distance_m.shape == (6,)
    assert len(found.answers) == 6
    # The same question twice, from a file and from pixels, gives the same answer.
    again = model.depth(pixels / 255, [[56, 0, 32], [0, 56, 24], [0, 0, 1]], points=(10, 12))
    assert model.depth(pixels, points=[[10, 12]]).answers == found.answers[:1]
    assert (found.camera_source, again.camera_source) == ("assumed 60 degrees", "given")
    assert again.camera == Camera(56, 56, 32, 24, 64, 48)
    match = model.match(path, pixels, [[5, 5], [60, 40]])
    assert match.matches_px.shape == (2, 2)
    assert match.outside.dtype == bool
    assert match.camera_sources == ("assumed 60 degrees", "assumed 60 degrees")
    pose = model.pose(path, pixels)
    assert pose.rotation.shape == (3, 3)
    assert set(pose.answers) == set(tasks.pose.KINDS)
    assert isinstance(model.ask([path, pixels], "what is this?"), str)
    film = rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    assert isinstance(model.ask_video(film, "what happens?", times_s=range(4), images=[path]), str)


def test_an_image_at_another_focal_length_is_told(model, rng, caplog):
    """A lens so long that the model's smallest image is larger than the photo at its focal length; told once."""
    pixels = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    model.depth(pixels, [[56, 0, 32], [0, 56, 24], [0, 0, 1]], points=(10, 12))
    assert not caplog.messages
    for _ in range(2):
        model.depth(pixels, [[800, 0, 32], [0, 800, 24], [0, 0, 1]], points=(10, 12))
    (line,) = caplog.messages
    start, end = line.split(" px, not 40: ")
    assert re.fullmatch(r"image: the model's limits of an image's size make its focal length \d{3,}", start)
    assert end == "lengths may be as wrong"


def test_errors_are_one_line(model, tmp_path, rng):
    with pytest.raises(UserError, match="no model directory"):
        vlm3_jax.load(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"missing.png: cannot be read"):
        model.ask(tmp_path / "missing.png", "what?")
    Image.fromarray(np.full((9, 8), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(UserError, match=r"deep.png: I;16 has more than 8 bits a pixel; convert it to 8 bits"):
        model.ask(tmp_path / "deep.png", "what?")
    photo = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    for call, why in [
        (lambda: model.depth(photo, Camera(60, 60, 5, 5, 20, 20)), "it is for 20 x 20 px, the image has 64 x 48"),
        (lambda: model.depth(photo, Camera(0.9, 1.2, 0.5, 0.5, 64, 48)), "implausible field of view"),
        (lambda: model.depth(photo, (60, 60, 32, 24)), "or a 3 x 3 matrix K in pixels, got an array of shape [4]"),
        (
            lambda: model.match(photo, photo, [[1, 2]], None, Camera(0.9, 1.2, 0, 0, 64, 48)),
            "implausible field of view",
        ),
        (lambda: model.pose(photo, photo, Camera(2, 2, 0, 0, 64, 48)), "implausible field of view"),
        (lambda: model.depth(photo, points=[[1, 2, 3]]), "points: expected pixels (x, y)"),
        (lambda: model.depth(photo, points=[[float("nan"), 2]]), "points[0]: (nan, 2) is not in the image"),
        (lambda: model.match(photo, photo, [[1, 2], [64, 2]]), "points[1]: (64, 2) is not in the image of 64 x 48 px"),
        (lambda: model.depth(photo, grid=(0, 6)), "grid: expected columns and rows, at most one a pixel of the image"),
        (lambda: model.depth(photo, grid=(8, 49)), "got (8, 49)"),
        (lambda: model.depth(photo[None]), "got shape [1, 48, 64, 3]; ask about one image at a time"),
        (lambda: model.ask(photo[None], "what?"), "ask about one image at a time"),
        (lambda: model.ask(photo, "what\udcff?"), "no text in UTF-8 ('\\udcff' is in it)"),
        (lambda: model.ask(photo, "what?", task="dept"), "task: 'dept' is unknown; choose one of depth, objects"),
        (lambda: vlm3_jax.load(model._folder, max_new_tokens=0), "max_new_tokens is 0, but must be a whole number"),
        (lambda: vlm3_jax.load(model._folder, max_new_tokens=-3), "max_new_tokens is -3, but must be a whole number"),
    ]:
        with pytest.raises(UserError, match=re.escape(why)):
            call()


def test_a_photo_is_seen_upright(model, rng, tmp_path):
    """What EXIF turns is asked about as it is seen, and its points are pixels of that."""
    pixels, exif = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLengthIn35mmFilm] = 26
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    upright = np.rot90(pixels, -1)
    shown = {}

    def seen(images, questions, sampling=None):
        shown["image"] = images[0][0].ref.load()
        return [["1.5"] * len(questions[0])]

    found = answering(model, seen).depth(tmp_path / "turned.png", points=[[47, 63]])
    np.testing.assert_array_equal(shown["image"], upright)
    assert (found.camera.width, found.camera.height, found.camera_source) == (48, 64, "EXIF")
    with pytest.raises(UserError, match=r"points\[0\]: \(63, 47\) is not in the image of 48 x 64 px"):
        model.depth(tmp_path / "turned.png", points=[[63, 47]])


def answering(model, answer):
    """The model with other answers: what parsing makes of them is the question, so the decoder may stay out of it."""
    other, engine = copy.copy(model), copy.copy(model._engine)
    engine.answer = answer
    other._engine = engine
    return other


def test_lengths_that_cannot_be_are_nan(model, rng):
    photo = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    other = answering(model, lambda images, questions: [["1.5", "-2", "0", "far"]])
    np.testing.assert_array_equal(
        other.depth(photo, points=[[1, 1], [9, 1], [19, 1], [29, 1]]).distance_m, [1.5, np.nan, np.nan, np.nan]
    )
    other = answering(model, lambda images, questions: [["-2"] * len(questions[0])])
    assert np.isnan(other.pose(photo, photo).distance_m)


def test_a_model_of_markers_is_asked_about_one_point_an_image(model, rng):
    photo = rng.integers(0, 200, (48, 64, 3), dtype=np.uint8)
    shown = []

    def answer(images, questions):
        (layout,), (question,) = images[0], questions[0]
        shown.append((layout.marker, question))
        x, y = layout.marker
        assert (np.asarray(layout.picture())[y, x - 5 : x] == (255, 0, 0)).all()
        return [[f"{len(shown)}.0"]]

    other = answering(model, answer)
    other.protocols = model.protocols | {"depth": given("depth", "short", resize="focal:40", marker=True)}
    camera = Camera(40.0, 40.0, 32.0, 24.0, 64, 48)
    found = other.depth(photo, camera, points=[[30, 20], [4, 20], [58, 42], [59, 20]])
    assert shown == [((30, 20), "d"), ((58, 42), "d")]
    np.testing.assert_array_equal(found.distance_m, [1, np.nan, 2, np.nan])
    assert found.answers == ["1.0", "", "2.0", ""]


def test_matches_outside_the_second_image_are_no_pixels(model, rng):
    first, second = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8), rng.integers(0, 256, (30, 50, 3), dtype=np.uint8)
    answers = ["10,20", "99,99", "100,20", "20,-1", "far"]
    match = answering(model, lambda images, questions: [answers]).match(first, second, [[1, 1]] * 5)
    np.testing.assert_allclose(match.matches_px, [[5, 6], [49.5, 29.7], *[[np.nan] * 2] * 3])
    assert match.outside.tolist() == [False, False, True, True, False]
    assert match.answers == answers


@pytest.mark.parametrize("text", ["30.9, -0.2, -0.9", "1e-200, 1e-200, 0", "0, 0, 0", "left", "+0.62, -0.03, -0.78"])
def test_a_direction_is_a_unit_vector_or_nan(model, rng, text):
    photo = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    kinds = {"translation_direction": text}
    answer = [[kinds.get(kind, "1") for kind in tasks.pose.KINDS]]
    found = answering(model, lambda images, questions: answer).pose(photo, photo)
    if text in ("0, 0, 0", "left"):
        assert np.isnan(found.direction).all()
    else:
        assert np.linalg.norm(found.direction) == pytest.approx(1)
        given = np.array(list(map(float, text.split(","))))
        np.testing.assert_allclose(np.cross(found.direction, given / np.abs(given).max()), 0, atol=1e-12)


def test_a_free_question_is_asked_at_the_models_resize_rule(model, rng):
    """Where all its tasks agree; a task may be named, and a model that says nothing gets the image as it is."""
    photo, sizes = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8), []

    def seen(images, questions, sampling):
        sizes.append(images[0][0].size)
        return [["yes"]]

    def size(protocols, **kwargs):
        other = answering(model, seen)
        other.protocols = protocols
        other._common = vlm3_jax.api.common_rule(protocols)
        other.ask(photo, "how far?", **kwargs)
        return sizes[-1]

    same = dict(model.protocols)
    assert size(same) == (46, 34)
    mixed = same | {"pose": given("pose", "short", resize="longest:32")}
    assert size(mixed) == (64, 48)
    assert size(mixed, task="pose") == (32, 24)
    assert size({}) == (64, 48)


def test_boxes_stand_in_the_question_as_regions(model, rng):
    """Normalised from the image's own integers (formats of the release), whatever the image is resized to."""
    photo = rng.integers(0, 256, (60, 90, 3), dtype=np.uint8)
    shown = model._shown([photo], model.resize_rule("objects"))
    question = model._with_regions("Is <mask> wider than <mask>?", [[9, 6, 45, 30], [0, 0, 89, 59]], shown)
    a, b = "bounding box region (10, 10, 50, 50)", "bounding box region (0, 0, 99, 98)"
    assert question == f"Is {a} wider than {b}?"
    assert isinstance(model.ask(photo, "What is <mask>?", boxes=[[9, 6, 45, 30]]), str)
    with pytest.raises(UserError, match=r"boxes: the question has 1 places <mask> for 2 boxes"):
        model.ask(photo, "What is <mask>?", boxes=[[9, 6, 45, 30], [0, 0, 89, 59]])
    with pytest.raises(UserError, match=r"boxes\[1\]: \(95, 30\) is not in the image of 90 x 60 px"):
        model.ask(photo, "What is <mask>?", boxes=[[9, 6, 95, 30]])
    with pytest.raises(UserError, match="boxes: expected"):
        model.ask(photo, "What is <mask>?", boxes=[[9, 6, 95]])
    for box in ([45, 30, 9, 6], [45, 6, 9, 30], [5, 5, 5, 9]):
        with pytest.raises(UserError, match=re.escape(f"boxes[0]: {box} is no box; write x1, y1 (left, top), then")):
            model.ask(photo, "What is <mask>?", boxes=[box])
    with pytest.raises(UserError, match="boxes: all lie between 0 and 1; give pixels, not fractions of the image"):
        model.ask(photo, "What is <mask>?", boxes=[[0.1, 0.2, 0.5, 0.6]])
    # The whole image: a box ends behind its last pixel.
    assert isinstance(model.ask(photo, "What is <mask>?", boxes=[[0, 0, 90, 60]]), str)


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


def test_a_model_is_asked_as_its_own_file_says(model, tmp_path, monkeypatch):
    """`load` needs to be told nothing: pose at 750 px per axis where the model's vlm3.json says so."""
    folder = shutil.copytree(model._folder, tmp_path / "model")
    protocol.write(folder, {"pose": protocol.RELEASE["pose"]})
    opened, shown = vlm3_jax.load(folder, max_new_tokens=2), []

    def answer(images, questions, *_):
        shown.extend(layout.size for layout in images[0])
        return [["unread" for _ in asked] for asked in questions]

    monkeypatch.setattr(opened._engine, "answer", answer)
    camera = Camera(70.0, 35.0, 32.0, 24.0, 64, 48)
    opened.pose(*[np.zeros((48, 64, 3), np.uint8)] * 2, camera, camera)
    assert shown == [(round(64 * 750 / 70), round(48 * 750 / 35))] * 2
