import numpy as np
import pytest

from tests.builders import files, pairs
from vlm3_jax.builders.mvs_synth import METRES_PER_UNIT, MvsSynth

OpenEXR = pytest.importorskip("OpenEXR")


def write(raw, frames, fx_of=lambda frame: frame.fx) -> None:
    """The world is right, up, forward and ten times as large."""
    own = np.diag([1.0, -1, 1, 1])
    for key, frame in frames.items():
        seen = frame.seen()
        files.png(raw / f"images/{key}.png", seen.rgb)
        path = raw / f"depths/{key}.exr"
        path.parent.mkdir(parents=True, exist_ok=True)
        z = (seen.z / METRES_PER_UNIT).astype(np.float32)
        OpenEXR.File({"type": OpenEXR.scanlineimage}, {"Y": z}).write(str(path))
        pose = own @ frame.world_T_cam
        pose[:3, 3] /= METRES_PER_UNIT
        tree = {"extrinsic": np.linalg.inv(pose).tolist(), "f_x": fx_of(frame), "f_y": frame.fy}
        files.dump(raw / f"poses/{key}.json", tree | {"c_x": frame.cx + 0.5, "c_y": frame.cy + 0.5})


# 16:9, as the data set has it.
FRAMES = {f"{n:04d}": frame for n, frame in enumerate(pairs.walk(64, 36))}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mvs_synth")
    write(folder / "GTAV_720/0000", FRAMES)
    return folder


def test_gives_back_depth_cameras_and_poses(raw):
    records, skipped = pairs.build(MvsSynth(), raw)
    assert not skipped
    assert len(records) == 3
    # EXR holds float32 here.
    pairs.check(records, FRAMES)
    assert all(record.metric for record in records.values())


def test_a_folder_of_sequences_itself_is_read_too(raw):
    assert len(MvsSynth().frames(raw / "GTAV_720", "train")) == 3


def test_the_wrong_focal_length_of_the_small_release_is_put_right(tmp_path):
    # 810x540 is not 16:9, so pixels are higher than wide: f_x is smaller than f_y.
    size, stretch = (81, 54), 81 / 1920 * 1080 / 54
    frames = pairs.walk(*size, own_cameras=False, fy=60.0, fx=60.0 * stretch, cx=40.0, cy=26.5)
    named = {f"{n:04d}": frame for n, frame in enumerate(frames)}
    for wrong in (60.0, 60.0 / 0.5 * 0.421875 * 2):
        folder = tmp_path / f"{wrong:.0f}"
        write(folder / "GTAV_540/0000", named, fx_of=lambda frame, wrong=wrong: wrong)
        pairs.check(pairs.build(MvsSynth(), folder)[0], named)
