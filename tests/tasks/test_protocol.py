"""How a model is asked: the published protocols, their file beside a model, and resize rules."""

import json

import numpy as np
import pytest

from vlm3_jax import records
from vlm3_jax.camera import AsIs, AtMost, Camera, Focal, Longest, resize_rule
from vlm3_jax.errors import UserError
from vlm3_jax.tasks import TASKS, protocol
from vlm3_jax.tasks.correspondence import CorrespondenceTask

PHOTO = Camera(1500.0, 1498.0, 1010.5, 760.25, 2016, 1512)


def test_the_published_protocols():
    """VLM3 release: depth and objects at 1000 px, pairs at 1,024 px a side, pose at 750 px per axis."""
    release = {t: (p.coord_range, str(p.resize)) for t, p in protocol.RELEASE.items()}
    assert release["depth"] == (2000, "focal:1000")
    assert release["objects"] == (1000, "focal:1000")
    assert release["correspondence"] == (1000, "longest:1024")
    assert release["pose"][1] == "focal:750:per_axis"
    assert protocol.PAPER["pose"].questions == 3
    assert {p.coord_range for p in protocol.PAPER.values()} == {2000}
    for table in protocol.NAMED.values():
        assert set(table) == set(TASKS)
        assert all(p.task == task for task, p in table.items())


def test_the_longest_side_scales_both_axes_alike_and_rounds_the_other():
    found = Longest(1024).camera(Camera(700, 700, 320, 213, 640, 427))
    assert (found.width, found.height) == (1024, 683)
    assert (found.fx, found.cx, found.cy) == pytest.approx((1120, 512, 340.8))
    assert Longest(1024).camera(PHOTO).width == 1024
    assert Longest(1024).camera(Camera(700, 700, 213, 320, 427, 640)).height == 1024
    assert AsIs().camera(PHOTO) is PHOTO
    assert AtMost(1024).camera(PHOTO) == Longest(1024).camera(PHOTO)
    assert AtMost(2016).camera(PHOTO) is PHOTO
    assert Focal(750, "per_axis").camera(PHOTO) == PHOTO.unify(750, "per_axis")


@pytest.mark.parametrize(
    "text", ["focal:1000", "focal:750:per_axis", "focal:333.5", "longest:1024", "at_most:800", "as_is"]
)
def test_a_rule_is_read_as_it_is_written(text):
    assert str(resize_rule(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "1000", "focal", "focal:0", "focal:nan", "focal:inf", "focal:9:both", "longest:1.5", "longest:-2", "as"],
)
def test_no_rule(text):
    with pytest.raises(
        ValueError, match=r"resize is .*write focal:PX, focal:PX:per_axis, longest:PX, at_most:PX or as"
    ):
        resize_rule(text)


def test_matches_are_named_as_the_release_names_them(rng):
    """pixel * (1024 / longer side) over the resized size, times 1000, rounded (release notebook); none truncated."""
    view = records.View(
        records.encode_image(np.zeros((427, 640, 3), np.uint8), "a"), Camera(700, 700, 320, 213, 640, 427)
    )
    points = rng.integers(0, [640, 427], (40, 2))
    matches = records.Matches(points, points[::-1].astype(float))
    record = records.Record("r", (view, view), matches=matches)
    asked = protocol.given("correspondence", questions=100)
    examples = CorrespondenceTask().examples(records.unify(record, asked.resize), rng, asked)
    exact = points * (1024 / 640) / (1024, 683) * 1000
    # A half may be rounded either way: that is a matter of the last bit.
    clear = exact[(np.abs(exact % 1 - 0.5) > 1e-6).all(1)]
    found = {tuple(e.target["coords"]) for e in examples}
    assert len(clear) > 30
    assert found >= {tuple(np.minimum(np.rint(p), 999).astype(int).tolist()) for p in clear}
    assert len(found) == len({tuple(p) for p in points.tolist()})


def test_the_file_beside_a_model_comes_back(tmp_path):
    assert protocol.read(tmp_path) == {}
    written = {**protocol.RELEASE, "depth": protocol.given("depth", "short", resize="focal:128", coord_range=10)}
    protocol.write(tmp_path, written)
    assert protocol.read(tmp_path) == written
    assert [path.name for path in tmp_path.iterdir()] == [protocol.FILE]
    tree = json.loads((tmp_path / protocol.FILE).read_text())
    assert tree["protocols"]["pose"]["resize"] == "focal:750:per_axis"


@pytest.mark.parametrize(
    ("protocols", "reason"),
    [
        ([], "expected version 1 and protocols by task"),
        ({"deep": {}}, "protocols.deep: there is no such task; choose one of depth"),
        ({"depth": 3}, "protocols.depth: expected an object with resize as text"),
        ({"depth": {"resize": "half"}}, "protocols.depth: resize is 'half'; write"),
        ({"depth": {"resize": "as_is", "wording": "long"}}, "protocols.depth: wording is 'long'; choose one of"),
        ({"depth": {"resize": "as_is", "coord_range": 0}}, "protocols.depth: coord_range is 0, but must be"),
        ({"depth": {"resize": "as_is", "coord_range": "9"}}, "protocols.depth: coord_range is '9', but must be"),
        ({"depth": {"resize": "as_is", "think": 1}}, "protocols.depth: think is 1, but must be"),
        ({"depth": {"resize": "as_is", "colour": 1}}, "unexpected keyword argument 'colour'"),
        ({"depth": {"resize": "as_is", "task": "pose"}}, "multiple values for argument 'task'"),
    ],
)
def test_a_broken_file_costs_one_line(tmp_path, protocols, reason):
    (tmp_path / protocol.FILE).write_text(json.dumps({"version": 1, "protocols": protocols}))
    with pytest.raises(UserError, match=protocol.FILE) as caught:
        protocol.read(tmp_path)
    assert reason in str(caught.value)


def test_an_entry_changes_what_it_names():
    own = protocol.given("pose")
    assert own == protocol.RELEASE["pose"]
    changed = protocol.given("pose", "paper", resize="longest:512", questions=2)
    assert (changed.resize, changed.questions, changed.coord_range) == (Longest(512), 2, 2000)
    with pytest.raises(ValueError, match="protocol is 'mine'"):
        protocol.given("pose", "mine")
