"""Pose prompts to the character, AUC against an independent histogram, real ScanNet pairs."""

import itertools
import pathlib

import numpy as np
import pytest
from records_for_tests import random_record, view
from scipy.spatial.transform import Rotation

from vlm3_jax import pose, tasks
from vlm3_jax.camera import Camera
from vlm3_jax.errors import BadRecord
from vlm3_jax.records import Record
from vlm3_jax.tasks.pose import KINDS, auc, direction_words, question
from vlm3_jax.tasks.protocol import given

task = tasks.get("pose")
CAMERA = Camera(500, 500, 320, 240, 640, 480)


def pair(euler, t, metric=True, name="a"):
    second = np.eye(4)
    second[:3, :3], second[:3, 3] = pose.matrix_from_euler(*euler), t
    return Record(name, (view(CAMERA, np.eye(4)), view(CAMERA, second)), metric=metric)


def by_kind(record, rng, wording="release", vary=False, **fields):
    return {e.target["kind"]: e for e in task.examples(record, rng, given("pose", wording, **fields), vary)}


def test_prompts_to_the_character(rng):
    examples = by_kind(pair((12.34, -4.52, 0.6), np.array([-0.62, 0.03, 0.784]) * 2), rng)
    expected_angle = np.degrees(Rotation.from_euler("YXZ", (12.34, -4.52, 0.6), degrees=True).magnitude())
    assert {kind: e.answer for kind, e in examples.items()} == {
        "rotation_angle": f"Rotation angle: {expected_angle:.1f} degrees",
        "euler_natural": "Yaw=+12.3°, Pitch=-4.5°, Roll=+0.6°",
        "translation_direction": "The camera moves left, forward, unit vector (-0.62, +0.03, +0.78).",
        "translation_distance": "Translation distance: 2.00 meters",
    }
    questions = {kind: e.question for kind, e in examples.items()}
    assert questions["rotation_angle"] == (
        "Given these two images captured from different viewpoints, what is the relative rotation angle (in degrees) "
        "between the two camera poses?"
    )
    assert (
        "yaw -> pitch -> roll.  Conventions: yaw is rotation about the vertical (down) axis"
        in (questions["euler_natural"])
    )
    assert questions["euler_natural"].endswith(
        "positive = bank to the right (image content rotates clockwise from the operator's POV)."
    )
    assert questions["translation_direction"] == (
        "Where did the camera move, expressed in the first camera's local frame (X right, Y down, Z forward)?  Give a "
        "qualitative direction and the precise unit direction vector (x, y, z)."
    )
    assert questions["translation_distance"] == (
        "Estimate the magnitude of the camera translation between the two viewpoints."
    )


def test_short_and_paper_styles(rng):
    record = pair((12.34, -4.52, -0.01), (0.0, -2.0, 0.0))
    short = by_kind(record, rng, "short")
    assert {e.question: e.answer for e in short.values()} == {
        "pa": "13",
        "pe": "+12,-05,+00",
        "pt": "+0.00,-1.00,+0.00",
        "pd": "2.00",
    }
    assert set(by_kind(record, rng, "paper")) == set(KINDS) - {"rotation_angle"}


def test_which_questions_are_asked(rng):
    record = pair((1, 2, 3), (1, 0, 0))
    assert set(by_kind(record, rng, questions=2)) == {"euler_natural", "translation_direction"}
    varied = {tuple(sorted(by_kind(record, rng, questions=2, vary=True))) for _ in range(60)}
    assert len(varied) == 6
    assert "translation_distance" not in by_kind(pair((1, 2, 3), (1, 0, 0), metric=False), rng)
    assert "translation_direction" not in by_kind(pair((1, 2, 3), (0, 0, 0)), rng)
    with pytest.raises(BadRecord, match="a, view 1"):
        task.examples(pair((1, 2, 3), (np.inf, 0, 0)), rng, given("pose"))


def test_training_draws_from_five_wordings_of_each_question_and_evaluation_asks_the_first(rng):
    record = pair((1, 2, 3), (1, 0, 0))
    asked = {kind: set() for kind in KINDS}
    for _ in range(100):
        for kind, example in by_kind(record, rng, vary=True).items():
            asked[kind].add(example.question)
    for kind in KINDS:
        assert len(asked[kind]) == 5
        assert question(kind, given("pose")) in asked[kind]
    assert {by_kind(record, rng)["euler_natural"].question for _ in range(20)} == {question(KINDS[0], given("pose"))}
    # What an answer must follow stands in each of them.
    for text in asked["euler_natural"]:
        assert "yaw -> pitch -> roll" in text
        assert "local axes" in text or "own axes" in text
        assert text.endswith("(image content rotates clockwise from the operator's POV).")
    assert all("X right, Y down, Z forward" in text for text in asked["translation_direction"])
    assert all("degrees" in text for text in asked["rotation_angle"])


def test_cameras_that_no_answer_could_tell_apart(rng):
    """A distance beyond what is read is a label in other units; without a scale there is none."""
    with pytest.raises(BadRecord, match=r"^a: its cameras are 2e\+06 m apart, above 1e\+06"):
        tasks.get("pose").examples(pair((0, 0, 0), (0, 0, 2e6)), rng, given("pose"))
    assert len(tasks.get("pose").examples(pair((0, 0, 0), (0, 0, 2e6), metric=False), rng, given("pose"))) == 3


def test_direction_words():
    assert direction_words((1, 0, 0)) == ["right"]
    assert direction_words((-0.1, -0.7, -0.7)) == ["left", "up", "backward"]
    assert direction_words((0.09, 0.7, 0.7)) == ["down", "forward"]
    assert direction_words((0.3, 0.7, 0.6), threshold=0.5) == ["down", "forward"]


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("rotation_angle", "Rotation angle: 31.4 degrees", 31.4),
        ("rotation_angle", "<think> 5 degrees </think> it is 7°", 7),
        ("rotation_angle", "2 views, 12 deg", 12),
        ("rotation_angle", "31 meters", None),
        ("euler_natural", "Yaw=+12.3°, Pitch=-4.5°, Roll=+0.6°", (12.3, -4.5, 0.6)),
        ("euler_natural", "yaw 1, pitch = \u22122, ROLL: 3", (1, -2, 3)),
        ("euler_natural", "roll=3, yaw=1, pitch=2", (1, 2, 3)),
        ("euler_natural", "+12.3,-4.5,+0.6", (12.3, -4.5, 0.6)),
        ("euler_natural", "+12,-05,+00", (12.0, -5.0, 0.0)),
        ("euler_natural", "Yaw=1°, Pitch=2°", None),
        ("translation_direction", "moves left, unit vector (-0.62, +0.03, +0.78).", (-0.62, 0.03, 0.78)),
        ("translation_direction", "(0, 0, 0)", None),
        ("translation_direction", "left", None),
        ("translation_distance", "Translation distance: 1.23 meters", 1.23),
        ("translation_distance", "2m", 2),
        ("translation_distance", "far", None),
    ],
)
def test_parse(kind, text, value):
    assert task.parse(text, {"kind": kind}) == value
    if value is not None and "," not in text[:6]:
        assert task.parse(text) == value


def histogram_auc(rotation, translation, degrees):
    """The published recipe with numpy's histogram, as VGGT and MapAnything compute it."""
    errors = np.maximum(rotation, translation)
    counts, _ = np.histogram(errors, bins=np.arange(degrees + 1))
    return np.mean(np.cumsum(counts / len(errors)))


def test_auc_equals_the_histogram(rng):
    errors = np.concatenate([rng.uniform(0, 40, 200), np.arange(0, 32), [29.999999, 30, 30.000001, np.inf]])
    for degrees in (3, 5, 15, 30):
        expected = histogram_auc(errors, np.zeros(len(errors)), degrees)
        assert np.mean([auc(e, degrees) for e in errors]) == pytest.approx(expected, abs=1e-12)
    assert [auc(e, 30) for e in (0, 0.99, 1, 29, 30, 30.01, np.nan)] == [1, 1, 29 / 30, 1 / 30, 1 / 30, 0, 0]


def test_score_equals_an_independent_implementation(rng):
    targets, predictions, rotation, translation = [], [], [], []
    for index in range(80):
        record = random_record(rng)
        relative = pose.relative_pose(*(v.world_T_cam for v in record.views))
        noise = Rotation.from_rotvec(rng.normal(size=3) * rng.choice([0.03, 0.15, 0.4]))
        guess = relative[:3, :3] @ noise.as_matrix()
        direction = relative[:3, 3] + rng.normal(size=3) * rng.choice([0.05, 0.3]) * np.linalg.norm(relative[:3, 3])
        direction *= rng.choice([-1, 1])
        for example in task.examples(record, rng, given("pose")):
            targets.append({**example.target, "pair": f"pair {index}"})
            if example.target["kind"] == "euler_natural":
                predictions.append("yaw {} pitch {} roll {}".format(*pose.euler_from_matrix(guess)))
            elif example.target["kind"] == "translation_direction":
                predictions.append("({}, {}, {})".format(*(f"{v:.15f}" for v in direction)))
            else:
                predictions.append(example.answer)
        rotation.append(np.degrees(Rotation.from_matrix(relative[:3, :3].T @ guess).magnitude()))
        cosine = direction @ relative[:3, 3] / np.linalg.norm(direction) / np.linalg.norm(relative[:3, 3])
        translation.append(np.degrees(np.arccos(cosine)))
    rotation, translation = np.array(rotation), np.array(translation)
    blind = np.minimum(translation, 180 - translation)
    order = rng.permutation(len(targets))
    metrics = task.score([predictions[i] for i in order], [targets[i] for i in order])
    for degrees in (3, 5, 15, 30):
        assert metrics[f"auc{degrees}"] == pytest.approx(histogram_auc(rotation, blind, degrees))
        assert metrics[f"auc{degrees}_signed"] == pytest.approx(histogram_auc(rotation, translation, degrees))
    assert 0.1 < metrics["auc30_signed"] < metrics["auc30"] < 0.9
    assert metrics["rotation_error_deg"] == pytest.approx(np.median(rotation))
    assert metrics["pairs"] == 80


def test_failures_and_items_that_are_no_pair(rng):
    examples = task.examples(pair((10, 0, 0), (1, 0, 0)), rng, given("pose"))
    targets = [e.target for e in examples]
    texts = ["?" if e.target["kind"] == "translation_direction" else e.answer for e in examples]
    metrics = task.score(texts, targets)
    assert (metrics["auc30"], metrics["pairs"], metrics["parse_failures"]) == (0, 1, 1)
    scores = task.item_scores([task.parse(x, t) for x, t in zip(texts, targets)], targets)
    units = [i for i, t in enumerate(targets) if t["kind"] in ("euler_natural", "translation_direction")]
    assert np.flatnonzero(~np.isnan(scores)).tolist() == [max(units)]
    # A pair asked a second time is a second unit.
    assert task.score([e.answer for e in examples] * 2, targets * 2)["pairs"] == 2
    alone = [t for t in targets if t["kind"] == "euler_natural"]
    assert np.isnan(task.score(["?"], alone)["auc30"])


def test_angle_and_distance_errors_by_hand(rng):
    examples = by_kind(pair((10, 0, 0), (2, 0, 0)), rng)
    targets = [examples["rotation_angle"].target, examples["translation_distance"].target]
    metrics = task.score(["12.5 degrees", "3 meters"], targets)
    assert metrics["rotation_angle_error_deg"] == pytest.approx(2.5)
    assert metrics["distance_abs_rel"] == pytest.approx(0.5)


def test_real_scannet_pairs(samples: pathlib.Path, rng):
    files = sorted((samples / "scannet_pose_sample" / "pose").glob("*.txt"))
    examples = []
    for one, two in itertools.permutations(files, 2):
        views = tuple(view(CAMERA, np.loadtxt(path)) for path in (one, two))
        examples += task.examples(Record(f"{one.stem}-{two.stem}", views), rng, given("pose"))
    targets = [e.target for e in examples]
    metrics = task.score([e.answer for e in examples], targets)
    assert (metrics["pairs"], metrics["auc3"], metrics["auc30_signed"]) == (12, 1, 1)
    # Neighbouring frames turn little: answering "no motion" is right about the rotation.
    constant = task.item_scores(task.constant_answers(targets), targets)
    assert 0 <= np.nanmean(constant) < 0.9
    # The truth with its translation turned around: same sign-blind score, none with the sign.
    turned = [
        "({}, {}, {})".format(*(-v for v in t["translation"])) if t["kind"] == "translation_direction" else e.answer
        for e, t in zip(examples, targets)
    ]
    assert task.score(turned, targets)["auc30"] == 1
    assert task.score(turned, targets)["auc30_signed"] == 0
