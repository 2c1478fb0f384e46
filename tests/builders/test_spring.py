import numpy as np
import pytest

from tests.builders import files, pairs
from vlm3_jax.builders.spring import BASELINE_M, Spring, fitted, middles

h5py = pytest.importorskip("h5py")
CAMERA = {"fx": 60.0, "fy": 60.0, "cx": 31.1, "cy": 23.9}
FRAMES = {}
for number, pose in enumerate(pairs.WALK[:2], start=1):
    for side, shift in (("left", 0.0), ("right", BASELINE_M)):
        at = pose @ pairs.world.pose(shift)
        FRAMES[f"{number:04d}_{side}"] = pairs.walk(poses=(at,), **CAMERA)[0]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spring") / "train/0001"
    for name, frame in FRAMES.items():
        number, side = name.split("_")
        files.png(folder / f"frame_{side}/frame_{side}_{number}.png", frame.seen().rgb)
        # Twice the resolution: a quarter of a pixel around the centres.
        fine = pairs.world.pixels(2 * frame.width, 2 * frame.height) / 2 - 0.25
        z = frame.seen(fine).z
        (folder / f"disp1_{side}").mkdir(parents=True, exist_ok=True)
        with h5py.File(folder / f"disp1_{side}/disp1_{side}_{number}.dsp5", "w") as file:
            file["disparity"] = np.where(np.isfinite(z), frame.fx * BASELINE_M / z, 0.02).astype(np.float32)
        files.png(
            folder / f"maps/skymap_{side}/skymap_{side}_{number}.png", np.where(np.isfinite(z), 0, 255).astype("u1")
        )
    left = [frame for name, frame in FRAMES.items() if name.endswith("left")]
    rows = [" ".join(f"{v:.9g}" for v in np.linalg.inv(frame.world_T_cam).ravel()) for frame in left]
    files.text(folder / "cam_data/extrinsics.txt", "\n".join(rows) + "\n")
    K = [f"{f.fx} {f.fy} {f.cx + 0.5} {f.cy + 0.5}" for f in left]
    files.text(folder / "cam_data/intrinsics.txt", "\n".join(K) + "\n")
    return folder.parent.parent


def test_gives_back_depth_cameras_and_poses(raw):
    records, skipped = pairs.build(Spring(), raw)
    assert not skipped
    assert len(records) == 6
    # The mean of four disparities is exact on planes. Edges have no depth, but for those of hardly any height.
    pairs.check(records, FRAMES, tolerance_m=0.002, covered=0.7, share=0.97)


def test_every_second_disparity_would_be_off():
    frame = FRAMES["0001_left"]
    fine = frame.seen(pairs.world.pixels(2 * frame.width, 2 * frame.height) / 2 - 0.25).z
    middle = 1 / middles(1 / fine, "x")
    there, truth = np.isfinite(middle), frame.seen().z
    assert np.quantile(np.abs(middle[there] - truth[there]), 0.97) < 1e-3
    assert np.quantile(np.abs(fine[::2, ::2][there] - truth[there]), 0.5) > 3e-3


def test_masks_of_another_size_are_brought_to_the_maps():
    np.testing.assert_array_equal(fitted(np.array([[0, 1]]), (2, 4)), [[0, 0, 1, 1]] * 2)


def test_a_frame_beyond_the_cameras_is_skipped(raw, tmp_path):
    import shutil

    shutil.copytree(raw, tmp_path / "copy")
    lines = (tmp_path / "copy/train/0001/cam_data/extrinsics.txt").read_text().splitlines()
    files.text(tmp_path / "copy/train/0001/cam_data/extrinsics.txt", lines[0] + "\n")
    records, skipped = pairs.build(Spring(), tmp_path / "copy")
    assert len(records) == 1
    assert set(skipped.values()) == {"a frame has no line in cam_data"}
