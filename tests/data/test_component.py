"""Samples larger than a row: cropped to what its fields leave, or an error with numbers that would do."""

import dataclasses
import re

import numpy as np
import pytest
from small_data import QWEN_VISION, blank_depthlm, small_record, write_shard

from tests.support import pair_record
from vlm3_jax import config as configs
from vlm3_jax import records
from vlm3_jax.camera import Focal
from vlm3_jax.data.component import Component, SampleSettings
from vlm3_jax.data.packing import RowBudget, fits, needs
from vlm3_jax.data.sources import make_source
from vlm3_jax.errors import UserError
from vlm3_jax.processor.chat import ChatFormat

# Rows that hold whatever the tests show, and count what the lists of blocks would need.
LISTS = RowBudget(4096, 4096, 512, pair_block=16, pairs=10**6, patch_pairs=10**6)


def opened(settings, path, **fields):
    entry = {"path": str(path), "protocol": "short", "resize": "focal:100", "questions": 6, **fields}
    return Component("c", entry, make_source("c", entry), settings)


def budget_of(name: str) -> RowBudget:
    return RowBudget.from_config(configs.load(name).data)


def test_a_wide_image_is_cropped_to_the_lists_of_the_depth_recipe(qwen_dir, tmp_path):
    """640 x 480 at 90 degrees has fewer patches than a row, but more pairs of blocks than its list."""
    blank_depthlm(tmp_path / "x.jsonl", [(640, 480)], 320.0, 1)
    settings = SampleSettings(ChatFormat.from_dir(qwen_dir), QWEN_VISION, budget_of("depth"))
    fields = {"kind": "depthlm", "depth_kind": "z", "protocol": "release", "resize": "focal:1000", "questions": 10}
    loose = dataclasses.replace(settings.budget, pairs=10**6, patch_pairs=10**6)
    whole = opened(dataclasses.replace(settings, budget=loose), tmp_path / "x.jsonl", **fields).sample(0, (0, 0), "x")
    assert whole.n_patches == 11_656 < settings.budget.patches
    assert needs([whole], settings.budget).patch_pairs == 92**2 > settings.budget.patch_pairs == 4608
    sample = opened(settings, tmp_path / "x.jsonl", **fields).sample(0, (0, 0), "x")
    taken = needs([sample], settings.budget)
    assert 0.9 * 4608 < taken.patch_pairs <= 4608
    assert taken.pairs <= settings.budget.pairs
    camera = sample.record.views[0].camera
    assert camera.fx == 1000
    assert camera.width / camera.height == pytest.approx(4 / 3, rel=0.03)


def test_an_arrow_points_at_the_pixel_that_is_asked_about(settings, tmp_path):
    """Through mirroring, resizing and cropping: the red pixels stand left of a label of the same depth."""
    write_shard(tmp_path / "one.array_record", [small_record(k, (640, 480)) for k in range(4)])
    source = make_source("c", {"path": str(tmp_path)})
    for fields, budget in (({"flip": 1.0}, LISTS), ({"resize": "focal:50"}, LISTS), ({}, RowBudget(512, 400, 200))):
        own = dataclasses.replace(settings, budget=budget)
        component = opened(own, tmp_path, **{"marker": True, "questions": 1} | fields)
        for index in range(4):
            sample = component.sample(index, (0, index), "x")
            (layout,), (example,) = sample.images, sample.examples
            assert layout.crop is None or layout.crop[2] - layout.crop[0] < 640
            x, y = layout.marker
            assert (np.asarray(layout.picture())[y, x - 5 : x] == (255, 0, 0)).all()
            assert (np.asarray(dataclasses.replace(layout, marker=None).picture())[y, x - 5 : x] != (255, 0, 0)).any()
            # Where the stored label of that depth comes to lie.
            record = source[index]
            record = records.flip(record) if layout.flip else record
            record = records.with_cameras(records.unify(record, component.protocol.resize), sample.record.cameras)
            at = record.depth[0].depth_m == example.target["depth_m"]
            assert [x, y] in record.depth[0].points_px[at].tolist()


def test_what_is_held_out_is_asked_in_the_released_words(settings, tmp_path):
    """Not mirrored and in one wording, but cropped to a row where it is for a loss."""
    write_shard(tmp_path / "pair.array_record", [pair(0, ((640, 480), (640, 480)))])
    fields = {"task": "correspondence", "protocol": "release", "resize": "focal:100", "flip": 1.0}
    component = opened(dataclasses.replace(settings, budget=RowBudget(2048, 700, 600)), tmp_path, **fields)
    openings = {True: set(), False: set()}
    for training, found in openings.items():
        for key in range(8):
            sample = component.sample(0, (0, key), "x", training=training)
            assert fits([sample], component.settings.budget)
            assert sample.images[0].flip == training
            found.update(e.question.partition("(")[0] for e in sample.examples)
    assert openings[False] == {"Given these two images, what pixel in the second image corresponds to pixel "}
    assert len(openings[True]) == 5
    whole = component.sample(0, (0, 0), "x", training=False, cropped=False)
    assert not fits([whole], component.settings.budget)


def pair(number: int, sizes) -> records.Record:
    """Two views that match around their middles, so that crops leave something to ask about."""
    near = np.random.default_rng(number).integers(-8, 8, (2, 40, 2))
    first, second = (np.array(size) // 2 + offset for size, offset in zip(sizes, near, strict=True))
    return dataclasses.replace(pair_record(number, sizes), matches=records.Matches(first, second.astype(float)))


def cases(tmp_path):
    """(data, fields of its entry): a large image, and pairs of large images of other shapes."""
    write_shard(tmp_path / "one.array_record", [small_record(k, (640, 480)) for k in range(3)])
    pairs = [pair(k, sizes) for k, sizes in enumerate([((640, 320), (480, 480)), ((96, 64), (640, 480))])]
    write_shard(tmp_path / "two.array_record", pairs)
    return [
        (tmp_path / "one.array_record", {"task": "depth"}),
        (tmp_path / "two.array_record", {"task": "correspondence", "resize": "focal:40"}),
    ]


@pytest.mark.parametrize("mode", ["turns", "independent"])
@pytest.mark.parametrize("field", ["patch_pairs", "pairs"])
def test_the_lists_bound_the_crop(settings, tmp_path, mode, field):
    """Where each of them has room for part of a sample only, the crop fits and uses most of it."""
    for path, fields in cases(tmp_path):
        whole = opened(dataclasses.replace(settings, mode=mode, budget=LISTS), path, **fields)
        for index in range(len(whole)):
            sample = whole.sample(index, (0, index), "x")
            least = needs([without_images(sample)], LISTS)
            full, empty = (getattr(taken, field) for taken in (needs([sample], LISTS), least))
            for part in (0.3, 0.7, 0.95):
                tight = dataclasses.replace(LISTS, **{field: empty + int(part * (full - empty))})
                cropping = opened(dataclasses.replace(settings, mode=mode, budget=tight), path, **fields)
                cropped = cropping.sample(index, (0, index), "x")
                assert fits([cropped], tight)
                assert cropped.n_patches < sample.n_patches
                assert {view.camera.fx for view in cropped.record.views} == {sample.record.views[0].camera.fx}
                # An image and a block more or less: sides are whole visual tokens.
                used = getattr(needs([cropped], LISTS), field) - empty
                assert used >= 0.5 * part * (full - empty) - 2, (part, used, full, empty)


def without_images(sample):
    cut = sum(layout.n_visual for layout in sample.images)
    return dataclasses.replace(sample, images=(), tokens=sample.tokens[cut:], questions=sample.questions[cut:])


def test_labels_that_a_crop_to_the_lists_leaves_lie_where_they_did(settings, tmp_path):
    path, fields = cases(tmp_path)[0]
    tight = dataclasses.replace(LISTS, patch_pairs=900)
    sample = opened(dataclasses.replace(settings, budget=tight), path, **fields).sample(0, (0, 0), "x")
    record = sample.record
    whole = records.unify(make_source("c", {"path": str(path)})[0], Focal(100.0))
    known = {(x, y): d for (x, y), d in zip(whole.depth[0].points_px.tolist(), whole.depth[0].depth_m, strict=True)}
    moved = record.depth[0].points_px + np.array(sample.images[0].crop[:2])
    assert 0 < len(moved) < 40
    assert [known[tuple(point)] for point in moved.tolist()] == record.depth[0].depth_m.tolist()


@pytest.mark.parametrize(
    ("budget", "oversize", "other"),
    [
        (dataclasses.replace(LISTS, patch_pairs=900, patches=800), "error", 'set data.oversize = "crop"'),
        (dataclasses.replace(LISTS, tokens=32, pairs=3, targets=5), "crop", "ask fewer questions a record"),
    ],
)
def test_the_numbers_of_the_error_would_do(settings, tmp_path, budget, oversize, other):
    """Where a sample may not be cropped, or its text alone is too much for the row or its lists."""
    path, fields = cases(tmp_path)[0]
    settings = dataclasses.replace(settings, budget=budget, oversize=oversize, mode="independent")
    with pytest.raises(UserError, match=r"^c: record r0 is larger than a row \(.*; set data\.\w+ = .*, or ") as caught:
        opened(settings, path, **fields).sample(0, (0, 0), "x")
    assert str(caught.value).endswith(other)
    named = dict(re.findall(r"data\.(\w+) = (\d+)", str(caught.value)))
    wanted = {name.removeprefix("row_"): int(value) for name, value in named.items()}
    assert wanted
    larger = dataclasses.replace(settings, budget=dataclasses.replace(budget, **wanted))
    sample = opened(larger, path, **fields).sample(0, (0, 0), "x")
    assert sample.images[0].crop is None
    for field, value in wanted.items():
        assert value > getattr(budget, field), field
    # Not a bit too much, but for whole blocks.
    taken = needs([sample], budget)
    assert all(value - getattr(taken, field) < 16 for field, value in wanted.items())
