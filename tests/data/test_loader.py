import json

import numpy as np
import pytest
from small_data import Opened, load, same, small_record, write_shard

from vlm3_jax import records
from vlm3_jax.data.quarantine import Quarantine
from vlm3_jax.data.samples import Bad
from vlm3_jax.data.schedule import Schedule
from vlm3_jax.data.sources import removed
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.evaluate import items


def test_batches_do_not_depend_on_workers(opened, settings):
    inline = load(opened, settings, 5, workers=0)
    assert inline[0].samples == sum(map(len, inline[0].ids)) > 4
    assert inline[0].arrays["patches"].any()
    assert not np.array_equal(inline[0].arrays["tokens"], inline[1].arrays["tokens"])
    for workers, prefetch in [(1, 1), (2, 3), (4, 2)]:
        for one, two in zip(inline, load(opened, settings, 5, workers=workers, prefetch=prefetch), strict=True):
            same(one, two)


def test_restoring_any_state_continues_identically(table, opened, settings):
    whole = load(opened, settings, 6, workers=2, prefetch=3)
    for cut in range(5):
        saved = Schedule.from_tree(json.loads(json.dumps(whole[cut].state.to_tree(), default=np.ndarray.tolist)))
        again = Opened(table, settings, 4, saved=saved)
        rest = load(again, settings, 5 - cut, workers=2, prefetch=3)
        for one, two in zip(whole[cut + 1 :], rest, strict=True):
            same(one, two)


def test_new_weights_repeat_no_sample(table, opened, settings):
    before = load(opened, settings, 4, workers=0)
    table = {"near": {**table["near"], "weight": 1.0}, "far": {**table["far"], "weight": 5.0}}
    later = Opened(table, settings, 4, saved=before[-1].state)
    assert len(later.state.phases) == 2
    after = load(later, settings, 4, workers=0)
    ids = [id for batch in before + after for row in batch.ids for id in row]
    assert len(set(ids)) == len(ids)
    far = np.mean([id.startswith("far") for batch in after for row in batch.ids for id in row])
    assert far == pytest.approx(5 / 6, abs=0.2)


def test_stats(opened, settings):
    (batch,) = load(opened, settings, 1, workers=2)
    filled = (batch.arrays["segments"] > 0).mean()
    assert batch.stats["token_fill"] == pytest.approx(filled)
    assert batch.stats["patch_fill"] == pytest.approx((batch.arrays["patch_images"] > 0).mean())
    # Without lists of blocks attention looks at every pair of a row; the mode is "turns".
    tokens = sum(n * (n + 1) / 2 for row in batch.arrays["segments"] for n in np.bincount(row)[1:])
    patches = sum(n * n for row in batch.arrays["patch_images"] for n in np.bincount(row)[1:])
    assert batch.stats["text_work"] == pytest.approx(4 * settings.budget.tokens**2 / tokens)
    assert batch.stats["vision_work"] == pytest.approx(4 * settings.budget.patches**2 / patches)
    assert batch.stats["wait_s"] > 0
    assert (batch.stats["bad"], batch.stats["passed_over"]) == (0, 0)


def test_broken_pixels_mask_their_sample_only(jsonl, settings, tmp_path):
    broken = Opened(jsonl, settings, 2)
    bad = load(broken, settings, 3, workers=2, quarantine=Quarantine(tmp_path / "w" / "quarantine.jsonl", 0.5))
    (tmp_path / "3.png").write_bytes(small_record(3).views[0].image.data)
    good = load(Opened(jsonl, settings, 2), settings, 3, workers=2)
    masked = 0
    for one, two in zip(bad, good, strict=True):
        assert one.ids == two.ids
        for row, ids in enumerate(one.ids):
            for segment, id in enumerate(ids, 1):
                at_slot = one.arrays["segments"][row, one.arrays["target_slot"][row]] == segment
                own = at_slot & (two.arrays["target_weight"][row] > 0)
                assert own.any()
                is_broken = id.startswith("x/3@")
                masked += is_broken
                assert (one.arrays["target_weight"][row][own] == (0 if is_broken else 1)).all()
        for name in ("tokens", "positions", "segments", "target_slot", "patch_images"):
            np.testing.assert_array_equal(one.arrays[name], two.arrays[name])
    assert masked >= 1
    rows = [json.loads(line) for line in (tmp_path / "w" / "quarantine.jsonl").read_text().splitlines()]
    assert len(rows) == masked == sum(batch.stats["bad"] for batch in bad)
    assert rows[0]["id"].startswith("x/3@")
    assert (rows[0]["component"], rows[0]["file"]) == ("x", "3.png")
    assert "3.png: cannot decode the image" in rows[0]["reason"]


def test_broken_pixels_are_noted_under_their_component(jsonl, settings, tmp_path):
    """Whatever stands before it in the table: entries without a weight have a place there too."""
    table = {"off": {"path": "nowhere", "weight": 0.0}, **jsonl}
    load(Opened(table, settings, 2), settings, 3, workers=0, quarantine=Quarantine(tmp_path / "q.jsonl", 0.5))
    rows = [json.loads(line) for line in (tmp_path / "q.jsonl").read_text().splitlines()]
    assert {(row["id"].split("@")[0], row["component"]) for row in rows} == {("x/3", "x")}


def test_labels_that_are_left_out_are_noted(settings, tmp_path, monkeypatch):
    """By file, record, label and reason; of many records some, and how many are not."""
    monkeypatch.setattr(removed, "MOST_RECORDS", 2)
    items = [small_record(n) for n in range(12)]
    for item in items[:7]:
        item.depth[0].depth_m[[3, *range(20, 26)]] = -1
    write_shard(tmp_path / "a.array_record", items)
    table, path = {"x": {"path": str(tmp_path), "protocol": "short", "questions": 4}}, tmp_path / "q.jsonl"
    load(Opened(table, settings, 2), settings, 8, workers=0, quarantine=Quarantine(path, 0))
    *rows, last = (json.loads(line) for line in path.read_text().splitlines())
    assert len(rows) == 3
    for row in rows:
        number = int(row["record"][1:])
        x, y = items[number].depth[0].points_px[3].tolist()
        assert (row["id"], row["component"]) == (f"x/{number}", "x")
        assert row["file"] == f"{tmp_path / 'a.array_record'}[{number}]"
        assert row["label"].startswith(f"depth[0][3] ({x}, {y}) -1 m, [20] (")
        assert row["label"].endswith(" and 2 more")
        assert row["reason"] == f"not {records.DepthPoints.RULE}"
    assert (last["id"], last["label"]) == ("x", "28 labels of 4 more records")


def test_too_much_broken_data_stops_the_run(jsonl, settings, tmp_path):
    opened = Opened(jsonl, settings, 2)
    for workers in (0, 2):
        with pytest.raises(
            UserError, match=r"of 1\d\d samples were unusable, above data.max_bad_fraction = 0.05 .*q\.jso"
        ):
            load(opened, settings, 1000, workers=workers, quarantine=Quarantine(tmp_path / "q.jsonl", 0.05))
    few = Quarantine(max_bad_fraction=0.01)
    load(opened, settings, 6, workers=0, quarantine=few)
    with pytest.raises(UserError, match="samples were unusable"):
        few.check(final=True)


def test_pairs_that_barely_overlap_are_skipped(settings, tmp_path):
    overlaps = [0.1, 0.3, None, 0.2, 0.9, 0.25]
    write_shard(tmp_path / "a.array_record", [small_record(i, covisibility=c) for i, c in enumerate(overlaps)])
    entry = {
        "path": str(tmp_path),
        "protocol": "short",
        "resize": "focal:100",
        "covisibility_min": 0.25,
        "questions": 6,
    }
    batches = load(Opened({"a": entry}, settings, 1), settings, 4, workers=0)
    drawn = {id.split("/")[1].split("@")[0] for batch in batches for row in batch.ids for id in row}
    assert drawn == {"1", "2", "4", "5"}
    assert sum(batch.stats["passed_over"] for batch in batches) > 0
    assert sum(batch.stats["bad"] for batch in batches) == 0


def test_evaluation_questions_depend_on_seed_and_record_only(opened, table, settings, tmp_path):
    def texts(found):
        return [(example.question, example.answer) for questions in found for example in questions.examples]

    component = opened.components[1]
    found = list(items.HeldOut([component], 10, seed=1))
    assert [len(questions.examples) for questions in found] == [6] * 10
    assert len({id for questions in found for id in questions.ids}) == 60
    assert texts(list(items.HeldOut([component], 3, seed=1))) == texts(found[:3])
    assert texts(list(items.HeldOut([component], 3, seed=2))) != texts(found[:3])
    write_shard(tmp_path / "a.array_record", [small_record(1), small_record(1)])
    twins = Opened({"far": {**table["far"], "path": str(tmp_path)}}, settings, 1).components[0]
    first, second = items.HeldOut([twins])
    assert set(texts([first])) != set(texts([second]))
    shifted = Opened({"far": {**table["far"], "first": 3}}, settings, 1).components[0]
    (third,) = items.HeldOut([shifted], 1)
    assert (third.record, third.ids) == ("r3", [f"far/r3/{number}" for number in range(6)])


def test_quarantine_waits_for_enough_samples():
    quarantine = Quarantine(max_bad_fraction=0.01)
    error = BadRecord("why")
    quarantine.add(50, [Bad("a/1@0", "a", "f", str(error))])
    quarantine.check()
    quarantine.add(50, [])
    quarantine.check()
    quarantine.add(1, [Bad("a/2@0", "a", "f", "torn")])
    with pytest.raises(UserError, match=r"2 of 101 samples .* a/2@0: torn"):
        quarantine.check()
