import dataclasses
import itertools
import json
import threading

import numpy as np
import pytest
from PIL import Image
from small_data import Opened, small_record, write_shard

from vlm3_jax import synth
from vlm3_jax.data import inspect, items
from vlm3_jax.data.component import SampleSettings
from vlm3_jax.data.loader import Loader
from vlm3_jax.data.mixture import Mixture, build_components, component_config, first_phase
from vlm3_jax.data.packing import RowBudget
from vlm3_jax.data.plan import PlanState, host_streams
from vlm3_jax.data.quarantine import Quarantine
from vlm3_jax.data.samples import unsupervised
from vlm3_jax.errors import BadRecord, UserError


def load(opened, settings, batches, state=None, **kwargs):
    loader = Loader(opened.mixture, state or opened.state, opened.streams, settings.budget, settings.vision, **kwargs)
    with loader:
        return list(itertools.islice(loader, batches))


def same(one, two):
    assert one.ids == two.ids
    np.testing.assert_array_equal(one.state.cursors, two.state.cursors)
    assert one.arrays.keys() == two.arrays.keys()
    for name, array in one.arrays.items():
        np.testing.assert_array_equal(array, two.arrays[name], err_msg=name)


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
        saved = PlanState.from_tree(json.loads(json.dumps(whole[cut].state.to_tree(), default=np.ndarray.tolist)))
        again = Opened(table, settings, 4, saved=saved)
        rest = load(again, settings, 5 - cut, workers=2, prefetch=3)
        for one, two in zip(whole[cut + 1 :], rest, strict=True):
            same(one, two)


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_load_their_rows_of_the_global_batch(opened, settings, hosts):
    whole = load(opened, settings, 3, workers=0)
    parts = []
    for host in range(hosts):
        first, end = host_streams(4, host, hosts)
        own = dataclasses.replace(opened.state, cursors=opened.state.cursors[first:end])
        parts.append(load(opened, settings, 3, own, workers=0))
    for step, batch in enumerate(whole):
        for name, array in batch.arrays.items():
            np.testing.assert_array_equal(array, np.concatenate([part[step].arrays[name] for part in parts]))
        np.testing.assert_array_equal(batch.state.cursors, np.concatenate([part[step].state.cursors for part in parts]))


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
    assert batch.stats["wait_s"] > 0
    assert (batch.stats["bad"], batch.stats["skipped"]) == (0, 0)


@pytest.fixture
def jsonl(tmp_path):
    """Ten images with labels; the pixels of number 3 are cut off."""
    lines = []
    for number in range(10):
        record = small_record(number)
        data = record.views[0].image.data
        (tmp_path / f"{number}.png").write_bytes(data[: len(data) // 2] if number == 3 else data)
        lines.append(
            {
                "image": f"{number}.png",
                "intrinsics": [100, 100, 64, 48, 128, 96],
                "pixel_coords": record.depth[0].points_px.tolist(),
                "depth": record.depth[0].depth_m.tolist(),
            }
        )
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return {"x": {
        "kind": "depthlm", "path": str(tmp_path / "x.jsonl"), "depth_kind": "z", "style": "short", "focal": 100.0,
        "questions": 6,
    }}  # fmt: skip


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
    assert (rows[0]["source"], rows[0]["file"]) == ("x", "3.png")
    assert "3.png: cannot decode the image" in rows[0]["reason"]


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


def test_errors_in_threads_reach_the_caller_and_threads_end(opened, settings, monkeypatch):
    before = threading.active_count()
    loader = Loader(opened.mixture, opened.state, 4, settings.budget, settings.vision, workers=2)
    next(loader)
    loader.close()
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="the loader is closed"):
        next(loader)
    for error, expected in [
        (OSError("disk on fire"), "the data loader failed: OSError: disk on fire"),
        (UserError("x.jsonl:3: image leaves"), "x.jsonl:3: image leaves"),
    ]:

        def fail(index, error=error):
            raise error

        monkeypatch.setattr(opened.mixture.components[0].source.__class__, "__getitem__", lambda self, i: fail(i))
        with pytest.raises((RuntimeError, UserError)) as caught:
            load(opened, settings, 1, workers=2)
        assert str(caught.value) == expected
        assert threading.active_count() == before


def test_pairs_that_barely_overlap_are_skipped(settings, tmp_path):
    overlaps = [0.1, 0.3, None, 0.2, 0.9, 0.25]
    write_shard(tmp_path / "a.array_record", [small_record(i, covisibility=c) for i, c in enumerate(overlaps)])
    entry = {"path": str(tmp_path), "style": "short", "focal": 100.0, "covisibility_min": 0.25, "questions": 6}
    batches = load(Opened({"a": entry}, settings, 1), settings, 4, workers=0)
    drawn = {id.split("/")[1].split("@")[0] for batch in batches for row in batch.ids for id in row}
    assert drawn == {"1", "2", "4", "5"}
    assert sum(batch.stats["skipped"] for batch in batches) > 0
    assert sum(batch.stats["bad"] for batch in batches) == 0


def test_evaluation_items_depend_on_seed_and_record_only(opened, table, settings, tmp_path):
    component = opened.components[1]
    found = items.evaluation_items(component, 10, seed=1)
    assert len(found) == 10 * 6
    assert len({item.id for item in found}) == 60
    assert [(i.id, i.question, i.answer) for i in items.evaluation_items(component, 3, seed=1)] == [
        (i.id, i.question, i.answer) for i in found[:18]
    ]
    assert found[0].images is found[5].images
    assert [i.question for i in items.evaluation_items(component, 3, seed=2)] != [i.question for i in found[:18]]
    write_shard(tmp_path / "a.array_record", [small_record(1), small_record(1)])
    twins = Opened({"far": {**table["far"], "path": str(tmp_path)}}, settings, 1).components[0]
    questions = [i.question for i in items.evaluation_items(twins)]
    assert set(questions[:6]) != set(questions[6:])
    shifted = Opened({"far": {**table["far"], "first": 3}}, settings, 1).components[0]
    assert {i.id for i in items.evaluation_items(shifted, 1)} == {f"far/r3/{number}" for number in range(6)}


def test_check_lists_every_fault(jsonl, settings, tmp_path):
    with open(tmp_path / "x.jsonl", "a") as file:
        file.write('\n{"image": 1}\n')
    with pytest.raises(UserError, match=r"x\.jsonl:11: field 'intrinsics' is missing \(1 of 11"):
        Opened(jsonl, settings, 2)
    (tmp_path / "5.png").unlink()
    components = inspect.build_components(jsonl, settings, max_bad_fraction=1.0)
    report = inspect.check(components, Quarantine(max_bad_fraction=0.1))
    assert report.counts["x"] == {"records": 11, "skipped": 0, "bad": 3, "points_removed": 0}
    assert [item.id.rpartition("/")[2] for item in report.bad] == ["x.jsonl:11", "3", "5"]
    assert "5.png: no such image file" in report.text()
    with pytest.raises(UserError, match="3 of 11 samples"):
        report.quarantine.check(final=True)
    # A run writes the lines into its quarantine, and does not count them again.
    opened = Opened(jsonl, settings, 2, max_bad_fraction=0.1)
    Loader(
        opened.mixture, opened.state, 2, settings.budget, settings.vision, quarantine=Quarantine(tmp_path / "q.jsonl")
    )
    (row,) = map(json.loads, (tmp_path / "q.jsonl").read_text().splitlines())
    assert row["id"].endswith("x.jsonl:11")
    assert (row["source"], row["reason"]) == ("x", "field 'intrinsics' is missing")


def test_show_says_what_the_model_sees(opened, settings, tmp_path):
    index = next(i for i in range(20) if opened.mixture.sample(i).images[0].flip)
    text = inspect.show(opened.mixture, index, tmp_path / "a.png")
    sample = opened.mixture.sample(index)
    assert text.startswith(f"{sample.id}: record r")
    assert "seen 160 x 128, 80 patches, 20 visual tokens, mirrored" in text
    answers = settings.chat.decode(sample.target_tokens).split()
    assert [part.split("]")[0] for part in text.split("[")[2:]] == answers
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (160 * 6, 128 * 6)
    seen = inspect.pixels(sample.images[0], settings.vision)
    stored = opened.components[1].source[opened.mixture.draw(index).record].views[0].image.load()[:, ::-1]
    np.testing.assert_array_equal(seen, Image.fromarray(stored).resize((166, 124), 3).resize((160, 128), 3))


def test_proposed_rows_hold_every_sample(table, settings):
    report = inspect.mix_report(table, settings, samples=120)
    assert len(report.sizes) == 120
    near = (report.sizes[:, 0] == 0).mean()
    assert near == pytest.approx(0.75, abs=0.1)
    for fill in report.proposed:
        assert (report.sizes[:, 1:].max(0) <= [fill.budget.tokens, fill.budget.patches, fill.budget.targets]).all()
        assert fill.token_fill > 0.9
        assert fill.budget.patches % 4 == 0
    assert "proposed" in report.text()
    # The forecast is what the loader then does.
    best = report.proposed[0].budget
    sized = SampleSettings(settings.chat, settings.vision, best)
    batches = load(Opened(table, sized, 4), sized, 6, workers=0)
    assert np.mean([b.stats["token_fill"] for b in batches]) == pytest.approx(report.proposed[0].token_fill, abs=0.05)


def test_rows_as_measured_by_hand():
    sizes = np.array([[40, 8, 2]] * 80)
    fill = inspect.row_fill(sizes, RowBudget(100, 32, 10))
    assert (fill.samples, fill.token_fill, fill.patch_fill) == (2, 0.8, 0.5)
    assert fill.dense_attention == pytest.approx(100**2 / (2 * 40**2))


def test_pairs_for_long_samples(settings):
    """Two samples of three blocks each in a row, causal in themselves; a third starts the next row."""
    tokens = 3 * inspect.PAIR_BLOCK
    sample = unsupervised(np.zeros(tokens, np.int32), np.zeros((3, tokens), np.int32), np.zeros(0, np.int32), ())
    fill = inspect.row_fill(np.array([[tokens, 0, 1]] * 24), RowBudget(2 * tokens + 128, 128, 10))
    found = inspect.with_pairs(fill, [sample] * 24, np.array([[tokens, 0, 1]] * 24))
    assert (found.samples, found.pairs, found.patch_pairs) == (2, 2 * 6, 0)


def test_quarantine_waits_for_enough_samples():
    quarantine = Quarantine(max_bad_fraction=0.01)
    error = BadRecord("why")
    quarantine.add(50, [inspect.BadSample("a/1@0", "a", "f", str(error))])
    quarantine.check()
    quarantine.add(50, [])
    quarantine.check()
    quarantine.add(1, [inspect.BadSample("a/2@0", "a", "f", "torn")])
    with pytest.raises(UserError, match=r"2 of 101 samples .* a/2@0: torn"):
        quarantine.check()


def test_show_draws_whichever_view_is_asked_about(tmp_path, settings):
    """Depth asks about either view of a pair: the picture and the labels are those of the view that is shown."""
    options = synth.SynthOptions(width=64, height=48, focal_px=64.0, focal_factor=(1.0, 1.0), depth_points=6)
    synth.build(tmp_path / "pairs", 4, options, seed=0, workers=1, progress=False)
    entry = component_config(path=str(tmp_path / "pairs"), task="depth", style="short", focal=64.0, questions=4)
    parts = build_components({"pairs": entry}, settings)
    table = Mixture(parts, 0, [first_phase({"pairs": 4}, {"pairs": 1.0})])
    for index in range(8):
        record, sample = table.make(index)
        text = inspect.show(table, index, tmp_path / "sample.png")
        assert f"image {record.views[sample.views[0]].image.name}:" in text
        with Image.open(tmp_path / "sample.png") as picture:
            assert picture.width % sample.images[0].final[0] == 0
    assert {table.sample(index).views for index in range(8)} == {(0,), (1,)}
