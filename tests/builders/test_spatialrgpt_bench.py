"""SpatialRGPT-Bench: a jsonl of questions about regions, in no order, of images of other sets."""

import json

import pytest

from tests.builders import files, world
from vlm3_jax.builders import common
from vlm3_jax.builders.spatialrgpt_bench import SpatialRgptBench
from vlm3_jax.errors import BadRecord, UserError

BOXES = [[3, 4, 20, 30], [30, 10, 60, 40]]


def _row(number: int, kind: str, category: str, answer: str, file: str = "nuscenes/a1.jpg") -> dict:
    return {
        "id": number,
        "image_info": {"file_path": file, "height": 48, "width": 64},
        "bbox": BOXES,
        "text_q": "Is <mask> <depth> left of <mask> <depth>?",
        "qa_info": {"type": kind, "category": category, "class": ["car", "tree"]},
        "conversations": [
            {"from": "human", "value": "<image>\nIs <mask> left of <mask>?"},
            {"from": "gpt", "value": answer},
        ],
    }


ROWS = [
    _row(7, "quantitative", "direct distance", "Region [0] and Region [1] are 2.5 meters apart."),
    _row(3, "qualitative", "left_predicate", "No, Region [0] is right of Region [1]."),
    _row(4, "qualitative", "left_predicate", "Yes.", "sunrgbd/missing.jpg"),
    _row(5, "qualitative", "left_predicate", "Yes.") | {"bbox": BOXES[:1]},
]


@pytest.fixture(params=["SpatialRGPT-Bench_v1.jsonl", "bench.json"])
def raw(tmp_path, request):
    rgb = world.render(world.pinhole(50, 50, 32, 24, 64, 48)).rgb
    files.jpeg(tmp_path / "images" / "nuscenes" / "a1.jpg", rgb)
    lines = request.param.endswith("l")
    files.text(tmp_path / request.param, "\n".join(map(json.dumps, ROWS)) if lines else json.dumps(ROWS))
    return tmp_path


def test_questions_with_their_regions(raw):
    builder = SpatialRgptBench()
    items = builder.frames(raw, "test")
    keys = ["00000000-quantitative-direct_distance"]
    keys += [f"0000000{n}-qualitative-left_predicate" for n in (1, 2, 3)]
    assert [item.key for item in items] == keys
    for item, row in zip(items[:2], ROWS, strict=False):
        record = builder.record(raw, item)
        assert record.id == item.key
        assert record.conversation.boxes_px.tolist() == BOXES
        asked, answered = record.conversation.turns
        assert (asked.text, asked.regions) == (row["conversations"][0]["value"], (0, 1))
        assert answered.text == row["conversations"][1]["value"]
        assert (record.views[0].camera.width, record.views[0].camera.height) == (64, 48)
    with pytest.raises(common.Skip, match="missing"):
        builder.record(raw, items[2])
    # Two masks, one box.
    with pytest.raises(BadRecord):
        builder.record(raw, items[3])


def test_a_folder_without_the_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="found none"):
        SpatialRgptBench().frames(tmp_path, "test")
