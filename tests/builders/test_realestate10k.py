"""RealEstate10K: normalised cameras and world-to-camera rows; only frames that are there are paired."""

import numpy as np
import pytest

from tests.builders import files, truth, world
from vlm3_jax.builders import common
from vlm3_jax.builders.realestate10k import PAIRS, RealEstate10K, draw_pairs
from vlm3_jax.errors import BadRecord

SIZE = 64, 48
CLIP = "0123456789abcdef"
TIMES = [33_000 * n for n in range(1, 13)]


def frame(time: int) -> truth.Frame:
    n = TIMES.index(time)
    pose = world.pose(0.15 * n, 0.01 * n, -0.1 * n, yaw=4.0 * n, pitch=n)
    return truth.Frame(50.0, 49.0, 31.0, 24.5, *SIZE, pose)


def write(root, split: str = "train"):
    lines = ["https://www.youtube.com/watch?v=xyz"]
    for time in TIMES:
        shot = frame(time)
        w2c = np.linalg.inv(shot.world_T_cam)[:3].ravel()
        # Parts of the image, whose left edge is half a pixel left of the first pixel's centre.
        camera = shot.fx / 64, shot.fy / 48, (shot.cx + 0.5) / 64, (shot.cy + 0.5) / 48, 0, 0
        lines.append(" ".join([str(time), *(f"{value:.9f}" for value in (*camera, *w2c))]))
        files.png(root / "frames" / split / CLIP / f"{time}.png", shot.seen().rgb)
    files.text(root / split / f"{CLIP}.txt", "\n".join(lines) + "\n")
    files.text(root / split / "ffffffffffffffff.txt", "https://www.youtube.com/watch?v=gone\n")
    return root


def test_pairs_are_what_the_world_shows(tmp_path):
    raw = write(tmp_path)
    items = RealEstate10K().frames(raw, "train")
    assert 5 < len(items) <= PAIRS
    assert items == RealEstate10K().frames(raw, "train")
    for item in items:
        record = RealEstate10K().record(raw, item)
        frames = [frame(int(time)) for time in item.key.rpartition("/")[2].split("-")]
        assert not record.metric
        assert record.scene == CLIP

        def pose(one, frames=frames):
            truth.check_pose(one, frames)

        def camera(one, frames=frames):
            for view, shot in enumerate(frames):
                truth.check_camera(one, shot, view)

        pose(record)
        camera(record)
        for view, shot in enumerate(frames):
            truth.check_image(record, shot, view, tolerance=0)
        truth.all_fail(pose, truth.wrong_poses(record))
        half = {name: one for name, one in truth.wrong_depths(record).items() if not name.startswith("z ")}
        truth.all_fail(camera, half)


def test_pairs_depend_on_name_and_count_alone():
    assert draw_pairs("a", 40) == draw_pairs("a", 40)
    assert draw_pairs("a", 40) != draw_pairs("b", 40)
    assert all(2 <= second - first <= 14 and second < 40 for first, second in draw_pairs("a", 40))
    assert draw_pairs("a", 2) == []
    assert draw_pairs("a", 3) == [(0, 2)]


def test_frames_without_a_row_and_broken_rows(tmp_path):
    raw = write(tmp_path)
    items = RealEstate10K().frames(raw, "train")
    text = raw / "train" / f"{CLIP}.txt"
    lines = text.read_text().splitlines()
    text.write_text("\n".join(lines[:1]) + "\n")
    with pytest.raises(common.Skip, match="no row of frame"):
        RealEstate10K().record(raw, items[0])
    text.write_text("\n".join([lines[0], lines[1][:40]]) + "\n")
    with pytest.raises(BadRecord, match="rows of 19 numbers"):
        RealEstate10K().record(raw, items[0])
    text.write_text("\n".join([lines[0], lines[1].replace(" 0.0", " x.0", 1)]) + "\n")
    with pytest.raises(BadRecord, match="rows of numbers"):
        RealEstate10K().record(raw, items[0])
