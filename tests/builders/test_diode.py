"""DIODE: depth and its mask as npy files."""

import numpy as np
import pytest

from tests.builders import files, truth, world
from vlm3_jax.builders.diode import INTRINSICS, Diode
from vlm3_jax.errors import BadRecord, UserError

# The set's camera is for 1024 x 768 px; rendering fewer of them is faster, with the principal point where it is.
FRAME = truth.Frame(*INTRINSICS, 100, 75, world.pose(0, 0, 0, 30, -25, 1))
NAME = "outdoor/scene_00022/scan_00193/00022_00193_outdoor_000_010"


def write(root, kind="z"):
    """One photo; depth [H, W, 1] with a mask of floats, as released."""
    stem = root / "val" / NAME
    seen = FRAME.seen()
    files.png(stem.with_name(f"{stem.name}.png"), seen.rgb)
    depth = getattr(seen, kind)
    np.save(
        stem.with_name(f"{stem.name}_depth.npy"), np.where(np.isfinite(depth), depth, 0)[..., None].astype(np.float32)
    )
    mask = np.isfinite(depth)
    mask[:, 40:50] = False
    np.save(stem.with_name(f"{stem.name}_depth_mask.npy"), mask.astype(np.float64))
    return root


def _record(root):
    builder = Diode()
    (item,) = builder.frames(root, "val")
    assert item.key == NAME
    assert item.scene == "scene_00022"
    return builder.record(root, item)


def test_gives_back_the_world(tmp_path):
    record = _record(write(tmp_path))
    valid = np.isfinite(FRAME.seen().z)
    valid[:, 40:50] = False

    def check(record):
        truth.check_depth(record, FRAME, 1e-3, valid=valid)

    check(record)
    truth.all_fail(check, truth.wrong_depths(record))


def test_distances_in_the_files_would_fail(tmp_path):
    with pytest.raises(AssertionError):
        truth.check_depth(_record(write(tmp_path, "distance")), FRAME, 1e-3, least=0.1)


def test_what_is_missing_is_named(tmp_path):
    stem = write(tmp_path) / "val" / NAME
    np.save(stem.with_name(f"{stem.name}_depth.npy"), np.array([{}], object), allow_pickle=True)
    with pytest.raises(BadRecord, match="_depth"):
        _record(tmp_path)
    stem.with_name(f"{stem.name}_depth.npy").unlink()
    with pytest.raises(BadRecord, match="_depth"):
        _record(tmp_path)
    with pytest.raises(UserError, match="train"):
        Diode().frames(tmp_path, "train")
