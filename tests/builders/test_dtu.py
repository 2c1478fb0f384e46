"""DTU in MVSNet's layout: millimetres, views from 0 and from 1, rows of depth from the bottom up, a list of pairs."""

import numpy as np
import pytest

from tests.builders import files, truth, world
from vlm3_jax.builders import common
from vlm3_jax.builders.dtu import Dtu
from vlm3_jax.errors import UserError

K = (60.0, 59.5, 32.7, 24.2)
VIEWS = [world.pose(0.1, 0, 0, 4, -5, 2), world.pose(0.5, 0.1, 0.1, -6, -3, -3), world.pose(-0.4, 0, 0.2, 12, -4, 1)]
PAIRS = [(0, 1), (0, 2), (1, 2)]


def _frame(view: int) -> truth.Frame:
    fx, fy, cx, cy = K
    # The corner of the image is (0, 0) in these files.
    return truth.Frame(fx, fy, cx - 0.5, cy - 0.5, 64, 48, VIEWS[view])


def write(root, invert=False, kind="z"):
    """One evaluation scan and one of training, three views; a fourth has a camera and no files."""
    count = len(VIEWS)
    for number, world_T_cam in enumerate([*VIEWS, np.eye(4)]):
        matrix = (world_T_cam if invert else np.linalg.inv(world_T_cam)).copy()
        matrix[:3, 3] *= 1000
        rows = "\n".join(" ".join(map(repr, row.tolist())) for row in matrix)
        fx, fy, cx, cy = K
        intrinsic = f"{fx} 0.0 {cx}\n0.0 {fy} {cy}\n0.0 0.0 1.0"
        files.text(
            root / "Cameras" / f"{number:08d}_cam.txt", f"extrinsic\n{rows}\n\nintrinsic\n{intrinsic}\n\n425.0 2.5\n"
        )
        if number == count:
            continue
        seen = _frame(number).seen()
        depth = getattr(seen, kind)
        values = np.where(np.isfinite(depth), depth * 1000, 0).astype("<f4")[::-1]
        for scan in ("scan9", "scan2"):
            files.png(root / "Rectified" / scan / f"rect_{number + 1:03d}_3_r5000.png", seen.rgb)
            path = root / "Depths_raw" / scan / f"depth_map_{number:04d}.pfm"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"Pf\n64 48\n-1\n" + values.tobytes())
    lines = ["4", "0", "3 2 12.5 1 10.25 3 1", "1", "2 0 10.25 2 3.5", "2", "1 0 12.5", "3", "0"]
    files.text(root / "Cameras" / "pair.txt", "\n".join(lines) + "\n")
    return root


def _built(root) -> dict:
    builder, found = Dtu(), {}
    for item in builder.frames(root, "test"):
        try:
            found[item.key] = builder.record(root, item)
        except common.Skip as skip:
            found[item.key] = skip
    return found


def test_gives_back_the_world(tmp_path):
    found = _built(write(tmp_path))
    records = {key: value for key, value in found.items() if not isinstance(value, common.Skip)}
    assert sorted(records) == [f"scan9/{i:08d}-{j:08d}" for i, j in PAIRS]
    assert set(found) - set(records) == {"scan9/00000000-00000003"}
    for (i, j), record in zip(PAIRS, records.values(), strict=True):
        frames = [_frame(i), _frame(j)]
        assert not record.metric
        assert record.scene == "scan9"

        def check(record, frames=frames):
            for view, frame in enumerate(frames):
                truth.check_depth(record, frame, 5e-4, view=view)

        def check_pose(record, frames=frames):
            truth.check_pose(record, frames, world_T_own=np.eye(4))

        check(record)
        check_pose(record)
        truth.check_image(record, frames[1], view=1, tolerance=0)
        truth.all_fail(check, truth.wrong_depths(record))
        truth.all_fail(check_pose, truth.wrong_poses(record))


@pytest.mark.parametrize("wrong", [{"invert": True}, {"kind": "distance"}], ids=["inverted", "distances"])
def test_files_that_mean_something_else_would_fail(tmp_path, wrong):
    record = _built(write(tmp_path, **wrong))["scan9/00000000-00000001"]
    if isinstance(record, common.Skip):
        return
    with pytest.raises(AssertionError):
        _check_all(record)


def _check_all(record) -> None:
    for view in (0, 1):
        truth.check_depth(record, _frame(view), 5e-4, view=view)
    truth.check_pose(record, [_frame(0), _frame(1)], world_T_own=np.eye(4))


def test_what_is_missing_is_named(tmp_path):
    write(tmp_path)
    (tmp_path / "Cameras" / "pair.txt").unlink()
    with pytest.raises(UserError, match=r"pair\.txt"):
        _built(tmp_path)
    (tmp_path / "Rectified" / "scan9").rename(tmp_path / "Rectified" / "scan3")
    with pytest.raises(UserError, match="none of the evaluation scans"):
        _built(tmp_path)
