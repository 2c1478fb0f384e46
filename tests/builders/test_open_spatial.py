"""OpenSpatialDataset: conversations with the boxes of their regions, however these are given."""

import numpy as np
import pytest

from tests.builders import files, streets
from vlm3_jax import records
from vlm3_jax.builders import common
from vlm3_jax.builders.open_spatial import OpenSpatial
from vlm3_jax.builders.running.plan import Images
from vlm3_jax.builders.running.prepare import prepare
from vlm3_jax.errors import BadRecord, UserError

TURNS = [
    {"from": "human", "value": "<image>\nHow far is <mask> from <mask>?"},
    {"from": "gpt", "value": "Region [0] is 1.2 meters from Region [1]."},
]
BOXES = [[3, 4, 20, 30], [30, 10, 60, 40]]


def mask(box) -> dict:
    """COCO's run lengths, uncompressed, of a filled box: column by column, 0 first."""
    width, height = streets.SIZE
    filled = np.zeros((height, width), bool)
    filled[box[1] : box[3], box[0] : box[2]] = True
    flat = filled.T.ravel()
    ends = np.flatnonzero(np.diff(flat)) + 1
    return {"size": [height, width], "counts": np.diff([0, *ends, flat.size]).tolist()}


@pytest.fixture
def raw(tmp_path):
    for name in ("a1", "b2"):
        files.jpeg(tmp_path / "images" / f"{name}.jpg", streets.frame(0).seen().rgb)
    rows = [
        {"filename": "b2", "bbox": BOXES, "conversations": TURNS},
        {"filename": "a1", "rle": [mask(box) for box in BOXES], "conversations": TURNS},
        {"filename": "c3", "bbox": BOXES, "conversations": TURNS},
        {"filename": "a1", "bbox": BOXES, "conversations": TURNS[::-1]},
    ]
    files.dump(tmp_path / "result_10_depth_convs.json", rows)
    return tmp_path


def test_conversations_and_boxes(raw):
    items = OpenSpatial().frames(raw, "train")
    assert [item.key for item in items] == ["00000000", "00000001", "00000002", "00000003"]
    for item, name in zip(items[:2], ("b2.jpg", "a1.jpg"), strict=True):
        record = OpenSpatial().record(raw, item)
        assert record.scene == name
        assert record.conversation.boxes_px.tolist() == BOXES
        assert [turn.role for turn in record.conversation.turns] == ["user", "assistant"]
        assert record.conversation.turns[0].regions == (0, 1)
        assert record.conversation.turns[1].text == TURNS[1]["value"]
        stored = records.from_bytes(prepare(record, item, Images())[0])
        assert stored.views[0].image.data == (raw / "images" / name).read_bytes()
        assert stored.conversation.turns == record.conversation.turns


def test_boxes_stay_where_they_are_when_images_are_stored_resized(raw):
    item = OpenSpatial().frames(raw, "train")[0]
    record = OpenSpatial().record(raw, item)
    rule = records.unify(record, Images("focal:73").rule)
    stored = records.from_bytes(prepare(record, item, Images("focal:73"))[0])
    found = records.unify(stored, Images("focal:73").rule)
    for one in (found, rule):
        assert one.conversation.normalised(one.cameras, 1000).tolist() == [
            [round(x * 1000 / side) for x, side in zip(box, streets.SIZE * 2, strict=True)] for box in BOXES
        ]


def test_what_is_not_there_and_what_is_wrong(raw):
    items = OpenSpatial().frames(raw, "train")
    with pytest.raises(common.Skip, match=r"no image c3.jpg"):
        OpenSpatial().record(raw, items[2])
    with pytest.raises(BadRecord, match="expected user and assistant"):
        OpenSpatial().record(raw, items[3])
    files.dump(raw / "other.json", [])
    with pytest.raises(UserError, match=r"found other\.json, result_10"):
        OpenSpatial().frames(raw, "train")
