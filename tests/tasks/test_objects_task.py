"""Relations, quantities and metrics by hand; real nuScenes boxes."""

import collections
import json
import pathlib
import re

import numpy as np
import pytest
from records_for_tests import random_record, view

from vlm3_jax import tasks
from vlm3_jax.camera import Camera, normalize_points
from vlm3_jax.errors import BadRecord
from vlm3_jax.records import Objects, Record
from vlm3_jax.tasks.objects import FAMILIES, GROUPS, QUANTITIES, _Scene, clock_hour, compare, measure
from vlm3_jax.tasks.protocol import given

task = tasks.get("objects")


def corners(low, high):
    return np.array([[x, y, z] for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])])


def scene(*clouds):
    """Two boxes: A is 1 x 2 x 1 m at (-2, 0, 4); B is 3 x 1 x 2 m at (2, 1, 8)."""
    clouds = clouds or (corners((-2.5, -1, 3.5), (-1.5, 1, 4.5)), corners((0.5, 0.5, 7), (3.5, 1.5, 9)))
    camera = Camera(500, 500, 320, 240, 640, 480)
    boxes = np.array([[20 * i, 30, 100 + 100 * i, 200] for i in range(len(clouds))])
    return Record("a", (view(camera),), objects=(Objects(boxes, ("x",) * len(clouds), clouds),))


def build(record):
    return _Scene.build(record, record.objects[0], given("objects"))


def test_relations_and_quantities_by_hand():
    built = build(scene())
    expected = {
        "below_above": -1,  # A's centre is higher: smaller y
        "left_right": 1,
        "big_small": -1,  # 2 against 6 cubic metres
        "tall_short": 1,
        "wide_thin": -1,
        "behind_front": -1,  # 3.5 against 7 m
    }
    assert {group: compare(built, group, 0, 1) for group in GROUPS} == expected
    assert {group: compare(built, group, 1, 0) for group in GROUPS} == {g: -s for g, s in expected.items()}
    assert measure(built, "horizontal", 0, 1) == pytest.approx(np.hypot(4, 4))
    assert measure(built, "vertical", 0, 1) == pytest.approx(1)
    assert (measure(built, "width", 1, None), measure(built, "height", 1, None)) == (3, 1)
    # Two single points: the nearest points are these.
    points = build(scene(np.array([[0.0, 0, 5]]), np.array([[3.0, 0, 5], [3.0, 4, 5]])))
    # A -> B: 3; B -> A: 3 and 5; the mean over all points.
    assert measure(points, "direct", 0, 1) == pytest.approx((3 + 3 + 5) / 3)


def test_near_ties_are_not_asked():
    near = corners((-1.05, -1, 5), (1, 1, 7)), corners((-1, -1, 5.3), (1, 1, 7.3))
    built = build(scene(*near))
    assert [compare(built, g, 0, 1) for g in ("big_small", "tall_short", "wide_thin", "behind_front")] == [0] * 4
    # The centres are 0.3 m apart in depth and 2.5 cm sideways.
    assert compare(built, "left_right", 0, 1) == 0


@pytest.mark.parametrize(
    ("offset", "hour"),
    [
        ((0, 0, 1), 12),
        ((1, 0, 0), 3),
        ((0, 0, -1), 6),
        ((-1, 0, 0), 9),
        ((1, 5, 1), 2),
        ((-1, 0, 1), 11),
        ((1e-30, 0, 1), 12),
    ],
)
def test_clock_hours(offset, hour):
    assert clock_hour(np.array(offset, float)) == hour


def test_clock_hour_follows_the_published_formula(rng):
    for x, z in rng.normal(size=(200, 2)):
        angle = np.degrees(np.arctan2(-x, z)) % 360
        assert clock_hour((x, 0, z)) == (12 - int(np.floor(angle / 30)) or 12)


def questions(record, count=250, wording="release", vary=False):
    found = []
    for seed in range(count):
        found += task.examples(record, np.random.default_rng(seed), given("objects", wording, questions=100), vary)
    return found


def test_regions_are_written_to_the_character():
    regions = {r for e in questions(scene(), 3) for r in re.findall(r"bounding box region \([^)]*\)", e.question)}
    assert regions == {"bounding box region (0, 62, 156, 417)", "bounding box region (31, 62, 312, 417)"}
    short = {e.question for e in questions(scene(), 20, "short")}
    assert {q for q in short if q.startswith("width")} == {"width 00,06,16,42", "width 03,06,31,42"}
    assert "left 00,06,16,42;03,06,31,42" in short


def test_yes_and_no_and_all_words_are_balanced():
    found = questions(scene())
    counts = collections.Counter((e.target["kind"], e.target["truth"]) for e in found if e.target["family"] in GROUPS)
    total = sum(counts.values())
    for (kind, truth), count in counts.items():
        assert count / sum(c for (k, _), c in counts.items() if k == kind) == pytest.approx(0.5, abs=0.05), truth
    words = collections.Counter(e.target["word"] for e in found if e.target["family"] in GROUPS)
    assert len(words) == 12
    assert all(count / total == pytest.approx(1 / 12, abs=0.02) for count in words.values())
    constant = task.item_scores(task.constant_answers([e.target for e in found]), [e.target for e in found])
    relations = np.array([e.target["family"] in GROUPS for e in found])
    assert constant[relations].mean() < 0.56


def test_families_are_spread_and_metric_ones_need_a_metric_scale(rng):
    record = random_record(rng)
    first = [task.examples(record, np.random.default_rng(s), given("objects", questions=12)) for s in range(30)]
    for examples in first:
        assert max(collections.Counter(e.target["family"] for e in examples).values()) <= 2
        assert len({e.question for e in examples}) == len(examples)
    assert {e.target["family"] for examples in first for e in examples} == set(FAMILIES)
    up_to_scale = random_record(rng, metric=False)
    assert not {e.target["family"] for e in questions(up_to_scale, 20)} & set(QUANTITIES)


def test_metrics_by_hand():
    boxes = [[0, 0, 10, 10], [20, 20, 30, 30]]

    def quantity(family, truth):
        return {"kind": "quantity", "family": family, "truth": truth, "boxes": boxes}

    def predicate(group, word, truth):
        return {"kind": "predicate", "family": group, "word": word, "truth": truth, "boxes": boxes}

    items = [
        ("75 cm", quantity("width", 1.0)),  # the lower end counts
        ("1.26 meters", quantity("width", 1.0)),
        ("?", quantity("width", 1.0)),
        ("10 feet", quantity("direct", 3.048)),
        ("11 o'clock", {"kind": "direction", "family": "direction", "truth": 12}),
        ("2 o'clock", {"kind": "direction", "family": "direction", "truth": 12}),
        ("Yes", predicate("left_right", "left", True)),
        ("Yes", predicate("left_right", "left", False)),
        ("It is smaller.", predicate("big_small", "big", False)),
        ("?", predicate("big_small", "big", True)),
        (
            "bounding box region (20, 20, 30, 30)",
            {"kind": "choice", "family": "big_small", "word": "big", "truth": 1, "boxes": boxes},
        ),
    ]
    metrics = task.score(*zip(*items))
    assert metrics == {
        "success": pytest.approx(6 / 11),
        "qualitative": pytest.approx(3 / 5),
        # Mean of the families' 1/3, 1/1 and 1/2.
        "quantitative": pytest.approx((1 / 3 + 1 + 1 / 2) / 3),
        "abs_rel": pytest.approx(((0.25 + 0.26) / 2 + 0) / 2),
        "left_right": 0.5,
        "big_small": pytest.approx(2 / 3),
        "width_success": pytest.approx(1 / 3),
        "direct_success": 1,
        "direction_success": 0.5,
        "width_abs_rel": pytest.approx(0.255),
        "direct_abs_rel": pytest.approx(0),
        "direction_error_deg": 45,
        "count": 11,
        "parse_failures": 2,
    }


def test_published_overall_is_the_mean_over_families():
    published = [34.09, 53.38, 58.41, 44.11, 65.64, 95.42]
    assert np.mean(published) == pytest.approx(58.51, abs=0.005)


def test_broken_objects_are_bad_records(rng):
    cloud = corners((0, 0, 4), (1, 1, 5))
    for clouds in [(cloud, cloud[:0]), (cloud, cloud * np.nan)]:
        with pytest.raises(BadRecord, match="a: every object"):
            task.examples(scene(*clouds), rng, given("objects"))
    record = scene()
    short = Record("a", record.views, objects=(Objects(record.objects[0].boxes_px[:1], ("x", "y"), (cloud,) * 2),))
    with pytest.raises(BadRecord, match="1 boxes, 2 names"):
        task.examples(short, rng, given("objects"))


def nuscenes_records(folder: pathlib.Path):
    """Each camera's objects as a record, and box -> its 3-D centre; (x, y, z, l, h, w, yaw) in a level camera frame."""
    for entry in json.loads((folder / "objects.json").read_text()):
        (fx, _, cx), (_, fy, cy), _ = entry["K"]
        size = entry["width"], entry["height"]
        clouds, centres = [], {}
        for instance in entry["instances"]:
            x, y, z, length, height, width, yaw = instance["bbox_3d_camera"]
            x1, y1, x2, y2 = box = tuple(map(int, instance["bbox"]))
            # Some 2-D boxes belong to another camera's object: the 3-D centre must project into its box.
            if z < 1 or not (x1 <= fx * x / z + cx <= x2 and y1 <= fy * y / z + cy <= y2):
                continue
            turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
            local = corners((-length / 2, -height / 2, -width / 2), (length / 2, height / 2, width / 2))
            clouds.append(local @ turn.T + [x, y, z])
            centres[box] = np.array([x, y, z])
        assert len(centres) == len(clouds)
        objects = Objects(np.array(list(centres), int).reshape(-1, 4), ("thing",) * len(clouds), tuple(clouds))
        record = Record(entry["image"], (view(Camera(fx, fy, cx, cy, *size)),), objects=(objects,))
        written = normalize_points(objects.boxes_px.reshape(-1, 2), size, 1000).reshape(-1, 4)
        yield record, dict(zip(map(tuple, written.tolist()), centres.values()))


def test_real_nuscenes_objects(samples: pathlib.Path, rng):
    families, same_depth = collections.Counter(), []
    # Per group: the axis and the side on which the group's first word lies.
    axes = {"left_right": (0, -1), "below_above": (1, 1), "behind_front": (2, 1)}
    for record, centres in nuscenes_records(samples / "nuscenes_sample"):
        examples = task.examples(record, rng, given("objects", questions=300))
        targets = [e.target for e in examples]
        assert not targets or task.score([e.answer for e in examples], targets)["success"] == 1
        families.update(t["family"] for t in targets)
        for target in targets:
            first, *others = (centres[tuple(box)] for box in target["boxes"])
            if target["kind"] == "predicate" and target["family"] in axes:
                axis, side = axes[target["family"]]
                is_first_word = (target["word"] == target["family"].split("_")[0]) == target["truth"]
                difference = side * (first - others[0])[axis]
                # Behind/front compares nearest points, so long objects at nearly the same depth may differ.
                assert (axis == 2 and abs(difference) < 6) or (difference > 0) == is_first_word
                if axis == 0 and abs(first[2] - others[0][2]) < 0.05 * first[2]:
                    x1, x2 = ((box[0] + box[2]) / 2 for box in target["boxes"])
                    same_depth.append((x1 < x2) == is_first_word)
            elif target["family"] == "height":
                assert 0.3 < target["truth"] < 5
            elif target["family"] == "horizontal":
                assert target["truth"] == pytest.approx(np.hypot(*(first - others[0])[[0, 2]]), rel=1e-6)
    assert set(families) == set(FAMILIES)
    # At a like depth, left in space is left in the image.
    assert len(same_depth) > 5
    assert np.mean(same_depth) > 0.95
