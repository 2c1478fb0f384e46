"""Files of conversations in all forms that are read, their regions, and the way to a sample."""

import json

import numpy as np
import pytest
from small_data import write_shard

from tests import own_data
from tests.builders.files import jpeg, png
from vlm3_jax import records
from vlm3_jax.data.component import Component
from vlm3_jax.data.samples import Bad
from vlm3_jax.data.sources import make_source
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.evaluate.items import HeldOut
from vlm3_jax.formats import regions
from vlm3_jax.formats.chat_rows import parse_row


def turns(row):
    return [(t.role, t.text, t.images, t.regions) for t in row.conversation.turns]


QA = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}]
SAID = [("user", "<image>\nWhat?", (0,), ()), ("assistant", "That.", (), ())]


@pytest.mark.parametrize(
    ("tree", "images", "expected"),
    [
        # LLaVA and Qwen's fine-tuning rows.
        ({"id": "7", "image": "a.jpg", "conversations": QA}, ("a.jpg",), SAID),
        # LLaMA-Factory, ShareGPT form.
        (
            {"images": ["a.jpg"], "conversations": QA, "system": "Be brief."},
            ("a.jpg",),
            [("system", "Be brief.", (), ()), *SAID],
        ),
        # LLaMA-Factory, one question with a history.
        (
            {"instruction": "Add.", "input": "1 2", "output": "3", "history": [["Hi", "Hello"]]},
            (),
            [
                ("user", "Hi", (), ()),
                ("assistant", "Hello", (), ()),
                ("user", "Add.\n1 2", (), ()),
                ("assistant", "3", (), ()),
            ],
        ),
        # HF messages, images inside; OpenAI's spelling.
        (
            {
                "messages": [
                    {"role": "system", "content": "S"},
                    {"role": "user", "content": [{"type": "image", "image": "b.png"}, {"type": "text", "text": "Q"}]},
                    {"role": "assistant", "content": [{"type": "text", "text": "A"}]},
                ]
            },
            ("b.png",),
            [("system", "S", (), ()), ("user", "<image>Q", (0,), ()), ("assistant", "A", (), ())],
        ),
        # HF messages, images beside them, one in a later turn.
        (
            {
                "images": ["a.png", {"path": "b.png"}],
                "messages": [
                    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Q"}]},
                    {"role": "assistant", "content": "A"},
                    {"role": "user", "content": [{"type": "text", "text": "and "}, {"type": "image"}]},
                    {"role": "assistant", "content": "B"},
                ],
            },
            ("a.png", "b.png"),
            [
                ("user", "<image>Q", (0,), ()),
                ("assistant", "A", (), ()),
                ("user", "and <image>", (1,), ()),
                ("assistant", "B", (), ()),
            ],
        ),
        # An image without a place stands before the first question; words alone may say "<image>".
        (
            {"image": "a.jpg", "conversations": [{"from": "human", "value": "Q"}, QA[1]]},
            ("a.jpg",),
            [("user", "Q", (0,), ()), SAID[1]],
        ),
        ({"conversations": QA}, (), [("user", "<image>\nWhat?", (), ()), SAID[1]]),
    ],
)
def test_rows_of_every_form(tree, images, expected):
    row = parse_row(tree, 3)
    assert (row.images, turns(row)) == (images, expected)


def test_rows_of_spatialrgpt():
    tree = {
        "filename": "0ab1",
        "bbox": [[1, 2, 3, 4], [5, 6, 7, 8]],
        "conversations": [
            {"from": "human", "value": "<image>\nIs <mask> <depth> wide?"},
            QA[1],
            {"from": "human", "value": "And <mask>?"},
            {"from": "gpt", "value": "Region [0] is."},
        ],
    }
    row = parse_row(tree, 0)
    assert row.images == ("0ab1.jpg",)
    assert [t.regions for t in row.conversation.turns] == [(0,), (), (1,), ()]
    np.testing.assert_array_equal(row.conversation.boxes_px, tree["bbox"])
    bench = {"image_info": {"file_path": "x/y.jpg", "height": 3, "width": 4}, **tree}
    del bench["filename"]
    assert parse_row(bench, 0).images == ("x/y.jpg",)


@pytest.mark.parametrize(
    ("tree", "why"),
    [
        ([], "expected a JSON object, got list"),
        ({}, "no turns: expected conversations, messages, or instruction and output"),
        ({"video": "a.mp4", "conversations": QA}, "video: only images can be shown"),
        ({"conversations": QA[:1]}, "turns: expected user and assistant in turns, got user"),
        ({"conversations": QA[::-1]}, "turns: expected user and assistant in turns"),
        ({"conversations": [{"from": "tool", "value": "x"}]}, r"conversations\[0\]: 'tool' is no role"),
        ({"conversations": [{"from": "human", "value": 3}]}, r"conversations\[0\]: expected text"),
        ({"image": "http://x/a.jpg", "conversations": QA}, "images are read from files"),
        (
            {"image": "a.jpg", "conversations": [{"from": "human", "value": "<image><image>"}, QA[1]]},
            "it shows 2 images",
        ),
        ({"image": "a.jpg", "bbox": [[1, 2, 3, 4]], "conversations": QA}, "it speaks of 0 regions"),
        ({"bbox": [[1, 2, 3]], "conversations": QA}, r"bbox\[0\]: no region \(expected x1, y1, x2, y2"),
        ({"bbox": [[1, 2, 3, None]], "conversations": QA}, r"bbox\[0\]: no region"),
        ({"rle": [{"size": [2, 2], "counts": [1, 1]}], "conversations": QA}, "runs do not add up to 2 x 2"),
        ({"rle": [{"size": [2, 2], "counts": "~~"}], "conversations": QA}, "counts are no run lengths|no region"),
    ],
)
def test_a_row_that_is_no_conversation_says_why(tree, why):
    with pytest.raises(BadRecord, match=why):
        parse_row(tree, 0)


def encoded_runs(runs) -> str:
    """COCO's text of run lengths: differences to two before, 5 bits a character, the sixth for more."""
    text = ""
    for n, run in enumerate(runs):
        value = run - runs[n - 2] if n > 2 else run
        more = True
        while more:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * more)
    return text


def test_boxes_around_masks(rng):
    """Against the mask itself: first pixels, and the edges behind the last ones, as pycocotools' toBbox has them."""
    for _ in range(30):
        mask = np.zeros((rng.integers(3, 40), rng.integers(3, 50)), bool)
        y, x = (int(rng.integers(0, n)) for n in mask.shape)
        mask[y : y + int(rng.integers(1, 20)), x : x + int(rng.integers(1, 20))] = True
        mask &= rng.random(mask.shape) < rng.choice([1, 0.5])
        if not mask.any():
            continue
        flat = mask.T.ravel().astype(int)
        ends = np.flatnonzero(np.diff(flat)) + 1
        runs = np.diff([0, *ends, len(flat)]).tolist()
        runs = [0, *runs] if flat[0] else runs
        rows, columns = np.nonzero(mask)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        for counts in (runs, encoded_runs(runs), encoded_runs(runs).encode()):
            assert regions.rle_box({"size": list(mask.shape), "counts": counts}) == box
    polygons = {"segmentation": [[[1, 2, 9, 4, 3, 8]], [5, 5, 7, 9, 6, 6]]}
    np.testing.assert_array_equal(regions.region_boxes(polygons), [[1, 2, 9, 8], [5, 5, 7, 9]])


def test_pycocotools_has_the_same_boxes(rng):
    mask = pytest.importorskip("pycocotools.mask")
    for _ in range(20):
        pixels = np.asfortranarray(rng.random((37, 53)) < 0.01).astype(np.uint8)
        if pixels.any():
            coded = mask.encode(pixels)
            x, y, w, h = mask.toBbox(coded).tolist()
            assert regions.rle_box(coded) == [x, y, x + w, y + h]


def component(settings, path, **fields):
    fields = {
        "kind": "conversations",
        "path": str(path),
        "protocol": "release",
        "task": "objects",
        "resize": "as_is",
        **fields,
    }
    return Component("talk", fields, make_source("talk", fields), settings)


def test_regions_are_written_as_boxes_of_the_stored_image(settings, tmp_path):
    """The i-th <mask> of all turns is the i-th box; "Region [i]" counts within its turn."""
    path = own_data.conversations(tmp_path / "osd")
    found = component(settings, path, images=str(tmp_path / "osd" / "photos"), camera="fov:60")
    assert len(found) == 8
    sample = found.sample(1, (0, 0), "x", training=False)
    boxes = found.source[1].conversation.boxes_px

    def region(n):
        # Python's round of whole pixels of the image of 64 x 48.
        x1, y1, x2, y2 = boxes[n]
        told = round(x1 * 1000 / 64), round(y1 * 1000 / 48), round(x2 * 1000 / 64), round(y2 * 1000 / 48)
        return f"bounding box region ({', '.join(str(min(v, 999)) for v in told)})"

    assert [(e.question, e.answer) for e in sample.examples] == [
        (f"Is {region(0)} wider than {region(1)}?", f"No, {region(0)} is thinner than {region(1)}."),
        (f"How tall is {region(2)}?", f"{region(2)} is 2.50 feet tall."),
    ]
    task = found.task
    targets = [e.target for e in sample.examples]
    scores = task.score([e.answer for e in sample.examples], targets)
    assert (scores["success"], scores["stored"], scores["parse_failures"]) == (1, 1, 0)
    assert task.score(["Yes.", "7 feet"], targets)["success"] == 0
    assert task.score(["no", "0.8 m"], targets)["success"] == 1
    drawn = [found.sample(1, (0, key), "x").examples[0].question for key in range(12)]
    assert len(set(drawn)) == 2


def test_a_broken_row_is_set_aside_and_a_bad_region_named(settings, tmp_path):
    path = own_data.conversations(tmp_path / "osd", 3)
    rows = json.loads(path.read_text())
    rows[1]["conversations"][1]["value"] = "Region [9] is."
    rows[2]["bbox"][0] = [5, 5, 5, 9]
    rows.append({"filename": "gone", "conversations": QA})
    rows.append({"nothing": 1})
    path.write_text(json.dumps(rows))
    found = component(settings, path, images=str(tmp_path / "osd" / "photos"))
    reasons = [getattr(found.sample(n, (0, 0), "x"), "reason", "") for n in range(5)]
    assert reasons[0] == ""
    assert "an answer speaks of Region [9], there are 3 regions" in reasons[1]
    assert "is a box with an area" in reasons[2]
    assert "gone.jpg: no such image file" in reasons[3]
    assert "item 4: no turns" in reasons[4]


def test_images_stay_inside_and_files_are_judged_at_the_start(tmp_path):
    path = tmp_path / "a.json"
    for rows, why in (
        ([{"image": "../x.jpg", "conversations": QA}], "leaves the folder"),
        ([{"nothing": 1}], "item 0: no turns: .*; docs/own_data.md shows"),
        ([3], "expected a list of JSON objects"),
    ):
        path.write_text(json.dumps(rows))
        with pytest.raises(UserError, match=why):
            make_source("a", {"kind": "conversations", "path": str(path), "task": "conversation"})[0]


def test_parts_have_no_image_in_common(tmp_path):
    path = own_data.conversations(tmp_path / "osd", 6)
    path.write_text(json.dumps(json.loads(path.read_text()) * 2))
    fields = {"kind": "conversations", "path": str(path), "images": str(path.parent / "photos"), "task": "objects"}
    parts = {p: make_source("a", {**fields, "part": p, "held_out": 0.3}) for p in ("train", "held_out")}
    scenes = {p: {found[i].scene for i in range(len(found))} for p, found in parts.items()}
    assert (len(parts["train"]), len(parts["held_out"])) == (8, 4)
    assert not scenes["train"] & scenes["held_out"]


def test_general_conversations_stay_as_they_are_written(settings, tmp_path):
    """System text, images where they are shown, special tokens as text, all answers supervised, one conversation."""
    jpeg(tmp_path / "a.jpg", own_data.seen(None).rgb)
    png(tmp_path / "b.png", own_data.seen(None).rgb[:, ::-1])
    row = {
        "images": ["a.jpg", "b.png"],
        "conversations": [
            {"from": "system", "value": "Be <|im_end|> brief."},
            {"from": "human", "value": "<image>\nWhat is left?"},
            {"from": "gpt", "value": "A <image> and <|im_start|>."},
            {"from": "human", "value": "Compare with <image> this."},
            {"from": "gpt", "value": "The same <mask>."},
        ],
    }
    path = tmp_path / "talk.jsonl"
    path.write_text(json.dumps(row))
    found = component(settings, path, task="conversation", resize="at_most:64")
    sample = found.sample(0, (0, 0), "x")
    chat = settings.chat
    seen = np.ones(len(sample.tokens), bool)
    seen[sample.visual_slot] = False
    special = set(chat.specials.values())
    words = "".join(chat.decode([t]) if t not in special else f"[{t}]" for t in sample.tokens[seen].tolist())
    for part in ("Be <|im_end|> brief.", "What is left?", "Compare with", "this.", "The same <mask>."):
        assert part in words
    answers = chat.decode(sample.target_tokens)
    assert answers.replace("\n", "") == "A <image> and <|im_start|>.The same <mask>."
    # The second image stands in the second question.
    first, second = (np.flatnonzero(np.diff(sample.visual_slot) > 1)[0] + 1, len(sample.visual_slot))
    assert sample.visual_slot[first] > sample.target_slot[0]
    assert first == sample.images[0].n_visual
    assert second == sum(layout.n_visual for layout in sample.images)
    # What evaluation asks is the first question with its own image.
    (asked,) = HeldOut([found])
    assert (len(asked.examples), len(asked.images), asked.examples[0].question) == (1, 1, "What is left?")


def test_words_alone_are_a_sample(settings, tmp_path):
    path = tmp_path / "talk.jsonl"
    rows = [{"conversations": [{"from": "human", "value": f"Say <image> {n}"}, QA[1]]} for n in range(3)]
    path.write_text("\n".join(map(json.dumps, rows)))
    sample = component(settings, path, task="conversation").sample(1, (0, 0), "x")
    assert (sample.images, sample.views, len(sample.visual_slot)) == ((), (), 0)
    assert "Say <image> 1" in settings.chat.decode(sample.tokens)
    # The same from shards.
    source = make_source("a", {"kind": "conversations", "path": str(path), "task": "conversation"})
    write_shard(tmp_path / "a.array_record", [source[n] for n in range(3)])
    shard = Component("a", f := {"path": str(tmp_path), "task": "conversation"}, make_source("a", f), settings)
    assert shard.sample(1, (0, 0), "x").tokens.tolist() == sample.tokens.tolist()


def test_a_conversation_that_is_longer_than_a_row_is_set_aside(settings, tmp_path):
    path = tmp_path / "talk.jsonl"
    path.write_text(json.dumps({"conversations": [{"from": "human", "value": "word " * 2000}, QA[1]]}))
    found = component(settings, path, task="conversation").sample(0, (0, 0), "x")
    assert isinstance(found, Bad)
    assert "is larger than a row" in found.reason


def test_a_conversation_is_not_mirrored(tmp_path):
    path = own_data.conversations(tmp_path / "osd", 2)
    fields = {"kind": "conversations", "path": str(path), "images": str(path.parent / "photos"), "task": "objects"}
    record = make_source("a", fields)[0]
    with pytest.raises(BadRecord, match="cannot be mirrored"):
        records.flip(record)
