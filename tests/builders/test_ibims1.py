"""iBims-1: 16-bit depth over 50 m, masks, calibration files; and the unit on real labels."""

import json

import numpy as np
import pytest

from tests.builders import files, truth, world
from vlm3_jax.builders import common
from vlm3_jax.builders.ibims1 import SCALE, IBims1
from vlm3_jax.errors import BadRecord, UserError

K = (55.5, 54.25, 31.75, 22.5)
FRAMES = {
    "corridor_01": truth.Frame(*K, 64, 48, world.pose(0.1, 0, 0, 5, -3, 2)),
    "kitchen_03": truth.Frame(*K, 64, 48, world.pose(-0.4, 0.1, 0.3, -20, 4, -1)),
}
INVALID, GLASS = np.s_[5:9, 10:20], np.s_[20:30, 40:50]


def write(root, kind="z"):
    """Two photos, listed in no order; part of each is invalid and part is glass."""
    folder = root / "ibims1_core_raw"
    for name, frame in FRAMES.items():
        seen = frame.seen()
        files.png(folder / "rgb" / f"{name}.png", seen.rgb)
        files.png(folder / "depth" / f"{name}.png", files.steps(getattr(seen, kind), 65535 / 50))
        for part, hole in (("mask_invalid", INVALID), ("mask_transp", GLASS)):
            mask = np.full((48, 64), 255, np.uint8)
            mask[hole] = 0
            files.png(folder / part / f"{name}.png", mask)
        files.text(folder / "calib" / f"{name}.txt", ",".join(map(str, K)) + "\n")
    files.text(root / "imagelist.txt", "kitchen_03\ncorridor_01\n")
    return root


def _built(root, **options) -> dict:
    builder = IBims1(common.Options(**options))
    return {item.key: builder.record(root, item) for item in builder.frames(root, "test")}


@pytest.mark.parametrize("depthlm", [False, True])
@pytest.mark.parametrize("name", list(FRAMES))
def test_gives_back_the_world(tmp_path, name, depthlm):
    record, frame = _built(write(tmp_path), depthlm=depthlm)[name], FRAMES[name]
    valid = np.isfinite(frame.seen().z)
    valid[INVALID] = False
    if not depthlm:
        valid[GLASS] = False

    def check(record):
        truth.check_depth(record, frame, SCALE, valid=valid)

    check(record)
    assert record.depth_maps[0].kind == "z"
    assert record.scene == name
    truth.check_image(record, frame, tolerance=0)
    truth.all_fail(check, truth.wrong_depths(record))
    other = next(FRAMES[key] for key in FRAMES if key != name)
    with pytest.raises(AssertionError):
        truth.check_depth(record, other, SCALE, valid=valid)


def test_distances_in_the_files_would_fail(tmp_path):
    record = _built(write(tmp_path, "distance"))["corridor_01"]
    with pytest.raises(AssertionError):
        truth.check_depth(record, FRAMES["corridor_01"], SCALE, least=0.3)


def test_what_is_missing_is_named(tmp_path):
    write(tmp_path)
    (tmp_path / "ibims1_core_raw" / "calib" / "kitchen_03.txt").write_text("1,2,3")
    with pytest.raises(BadRecord, match="four numbers"):
        _built(tmp_path)
    (tmp_path / "ibims1_core_raw" / "depth" / "corridor_01.png").unlink()
    with pytest.raises(BadRecord, match="depth/corridor_01"):
        _built(tmp_path)
    with pytest.raises(UserError, match="ibims1_core_raw"):
        _built(tmp_path / "depth")


def test_the_unit_explains_the_real_labels(samples):
    """Every label of DepthLM's bundle is a whole number of our steps, to float32's rounding."""
    lines = (samples / "ibims1" / "ibims1.jsonl").read_text().splitlines()
    depth = np.concatenate([json.loads(line)["depth"] for line in lines])
    steps = depth / SCALE
    assert len(depth) == 7000
    np.testing.assert_allclose(steps, np.rint(steps), atol=0.02)
