"""How stored answers are judged, and how stored turns become questions."""

import numpy as np
import pytest
from records_for_tests import random_record, view

from vlm3_jax import records, tasks
from vlm3_jax.camera import Camera, Focal, Longest
from vlm3_jax.records import Conversation, Record, Turn
from vlm3_jax.tasks import protocol, stored
from vlm3_jax.tasks.base import Example


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [
        ("2.1 m", "Region is 7 feet tall.", True),
        ("5 m", "It is 7 feet tall.", False),
        ("no", "It is 7 feet tall.", None),
        ("about 4 o'clock", "Region is at 3 o'clock.", True),
        ("9 o'clock", "Region is at 3 o'clock.", False),
        ("No, it is not.", "No, region A is thinner.", True),
        ("Yes.", "No, region A is thinner.", False),
        ("A Chair!", "a chair", True),
        ("<think> a table </think> chair", "chair", True),
        ("a table", "a chair", False),
        ("", "a chair", None),
    ],
)
def test_stored_answers_are_judged_by_their_own_form(answer, truth, right):
    parsed = stored.read(answer, truth)
    assert (None if parsed is None else stored.same(parsed, truth)) == right
    assert stored.same(stored.read(truth, truth), truth)


def conversation(*turns, boxes=(), cameras=1):
    views = tuple(view(Camera(50, 50, 32, 24, 64, 48)) for _ in range(cameras))
    return Record("r", views, conversation=Conversation(tuple(turns), np.array(boxes).reshape(-1, 4)))


def asked(record, task="conversation", vary=True):
    return tasks.get(task).examples(record, np.random.default_rng(0), protocol.RELEASE[task], vary=vary)


def test_images_stand_where_the_text_says():
    record = conversation(
        Turn("user", "<image>\nA <image> and literal <image>", (0, 1)),
        Turn("assistant", "<image> stays"),
        Turn("user", "B", (0,)),
        Turn("assistant", "b"),
        cameras=2,
    )
    first, second = asked(record)
    assert first.parts == (None, "A", None, "and literal <image>")
    assert (first.answer, second.parts, second.system) == ("<image> stays", (None, "B"), "")
    assert first.views == second.views == (0, 1, 0)
    (alone,) = tasks.get("conversation").alone([first, second])
    assert (alone.views, alone.question, alone.parts) == ((0, 1), "Aand literal <image>", None)


def test_masks_without_regions_are_text():
    record = conversation(Turn("user", "<mask> <depth>?"), Turn("assistant", "Region [0] <mask>"), cameras=0)
    (example,) = asked(record)
    assert (example.question, example.answer, example.views) == ("<mask> <depth>?", "Region [0] <mask>", ())
    assert tasks.get("conversation").alone([example]) == []


@pytest.mark.parametrize("rule", [Focal(77.7), Longest(100), Focal(33.3, "per_axis")])
def test_boxes_are_told_as_parts_of_the_stored_image(rule, rng):
    """Whatever the resize: round(x R / W) of the stored image (SpatialRGPT's rows, VLM3's prompts)."""
    boxes = np.sort(rng.integers(0, [[64], [48]], (30, 2, 2)), -1).transpose(0, 2, 1).reshape(30, 4)
    asking = [Turn("user", "<image> <mask>" if n == 0 else "<mask>", (0,) * (n == 0), (n,)) for n in range(30)]
    turns = [t for turn in asking for t in (turn, Turn("assistant", "Region [0]"))]
    record = records.unify(conversation(*turns, boxes=boxes), rule)
    for box, example in zip(boxes.tolist(), asked(record, "objects", vary=False), strict=False):
        told = [min(999, round(value * 1000 / (64, 48)[n % 2])) for n, value in enumerate(box)]
        assert example.target["boxes"] == [told]
        assert example.answer == f"bounding box region ({', '.join(map(str, told))})"


def test_a_crop_moves_boxes_and_takes_what_speaks_of_one_that_is_left_out():
    record = conversation(Turn("user", "<mask>", (0,), (0,)), Turn("assistant", "x"), boxes=[[20, 10, 40, 30]])
    cut = records.keep_inside(records.with_cameras(record, [record.cameras[0].crop(10, 5, 40, 30)]))
    assert asked(cut, "objects")[0].target["boxes"] == [[250, 167, 750, 833]]
    gone = records.keep_inside(records.with_cameras(record, [record.cameras[0].crop(40, 5, 20, 30)]))
    assert asked(gone, "objects") == asked(gone) == []


def test_objects_prefers_what_it_can_make_itself(rng):
    record = random_record(rng)
    assert {e.target["kind"] for e in asked(record, "objects")} != {"stored"}
    assert isinstance(asked(record)[0], Example)
