import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from small_data import Opened, loader_of, small_record, write_shard

from vlm3_jax import records, synth
from vlm3_jax.config import component_config
from vlm3_jax.data import inspect
from vlm3_jax.data.mixture import Mixture, build_components, first_phase
from vlm3_jax.data.quarantine import Quarantine
from vlm3_jax.errors import UserError


def test_check_lists_every_fault(jsonl, settings, tmp_path):
    with open(tmp_path / "x.jsonl", "a") as file:
        file.write('\n{"image": 1}\n')
    with pytest.raises(UserError, match=r"x\.jsonl:11: field 'intrinsics' is missing \(1 of 11"):
        Opened(jsonl, settings, 2)
    (tmp_path / "5.png").unlink()
    components = build_components(jsonl, settings, max_bad_fraction=1.0)
    report = inspect.check(components, Quarantine(max_bad_fraction=0.1))
    assert report.counts["x"] == {"records": 11, "passed_over": 0, "bad": 3, "points_removed": 0}
    assert [item.id.rpartition("/")[2] for item in report.bad] == ["x.jsonl:11", "3", "5"]
    assert "5.png: no such image file" in report.text()
    with pytest.raises(UserError, match="3 of 11 samples"):
        report.quarantine.check(final=True)
    # A run writes the lines into its quarantine, and does not count them again.
    opened = Opened(jsonl, settings, 2, max_bad_fraction=0.1)
    loader_of(opened, settings, quarantine=Quarantine(tmp_path / "q.jsonl"))
    (row,) = map(json.loads, (tmp_path / "q.jsonl").read_text().splitlines())
    assert row["id"].endswith("x.jsonl:11")
    assert (row["component"], row["reason"]) == ("x", "field 'intrinsics' is missing")


def test_check_prints_lengths_and_doubts_millimetres(settings, tmp_path):
    pair = dataclasses.replace(small_record(0), views=small_record(0).views + small_record(1).views)
    poses = np.eye(4), np.eye(4)
    poses[1][:3, 3] = [0, 3, 4]
    views = tuple(dataclasses.replace(v, world_T_cam=pose) for v, pose in zip(pair.views, poses, strict=True))
    labels = records.DepthPoints(np.array([[1, 2], [3, 4], [5, 6]]), np.array([0.5, 2.0, 2500.0]), "z")
    write_shard(tmp_path / "a.array_record", [dataclasses.replace(pair, views=views, depth=(labels,))])
    entry = {"path": str(tmp_path), "protocol": "short", "resize": "focal:100"}
    text = inspect.check(build_components({"a": entry}, settings), Quarantine()).text().splitlines()
    assert text == [
        "a: 1 records, 0 passed over, 0 bad, 0 labels removed",
        "  depth: 0.5 to 2500 m, median 2 m",
        "  warning: depth above 500 m; are these millimetres? Lengths must be in metres",
        "  baseline: 5 to 5 m, median 5 m",
    ]


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


def test_show_draws_whichever_view_is_asked_about(tmp_path, settings):
    """Depth asks about either view of a pair: the picture and the labels are those of the view that is shown."""
    options = synth.SynthOptions(width=64, height=48, focal_px=64.0, focal_factor=(1.0, 1.0), depth_points=6)
    synth.build(tmp_path / "pairs", 4, options, seed=0, workers=1, progress=False)
    entry = component_config(
        path=str(tmp_path / "pairs"), task="depth", protocol="short", resize="focal:64", questions=4
    )
    parts = build_components({"pairs": entry}, settings)
    table = Mixture(parts, 0, [first_phase({"pairs": 4}, {"pairs": 1.0})])
    for index in range(8):
        sample = table.sample(index)
        record = sample.record
        text = inspect.show(table, index, tmp_path / "sample.png")
        assert f"image {record.views[sample.views[0]].image.name}:" in text
        with Image.open(tmp_path / "sample.png") as picture:
            assert picture.width % sample.images[0].final[0] == 0
    assert {table.sample(index).views for index in range(8)} == {(0,), (1,)}
