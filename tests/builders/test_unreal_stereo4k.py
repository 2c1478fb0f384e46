import numpy as np
import pytest
from PIL import Image

from tests.builders import files, pairs
from vlm3_jax.builders import posed
from vlm3_jax.builders.unreal_stereo4k import UnrealStereo4K

BASELINE = 0.2
CAMERA = {"fx": 52.0, "fy": 52.0, "cx": 30.9, "cy": 24.2}


def right_of(pose):
    """The other camera of the rig, as far to the right as the baseline."""
    return pose @ pairs.world.pose(BASELINE)


FRAMES = {
    f"{n:05d}_{c}": pairs.walk(poses=(right_of(pose) if c else pose,), **CAMERA)[0]
    for n, pose in enumerate(pairs.WALK[:2])
    for c in (0, 1)
}


def write(raw, scene, left_handed=True):
    # Right, up, forward: mirrored in y.
    own = np.diag([1.0, -1, 1, 1]) if left_handed else np.eye(4)
    for name, frame in FRAMES.items():
        file, c = name.split("_")
        seen, folder = frame.seen(), raw / scene
        rgba = np.concatenate([seen.rgb, np.full((*seen.z.shape, 1), 255, np.uint8)], -1)
        path = folder / f"Image{c}/{file}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rgba, "RGBA").save(path)
        (folder / f"Disp{c}").mkdir(exist_ok=True)
        z = np.where(np.isfinite(seen.z), seen.z, 20_000.0)
        np.save(folder / f"Disp{c}/{file}.npy", (frame.fx * BASELINE / z).astype(np.float32))
        K = [frame.fx, 0, frame.cx + 0.5, 0, frame.fy, frame.cy + 0.5, 0, 0, 1]
        cam_T_own = np.linalg.inv(own @ frame.world_T_cam)
        files.text(folder / f"Extrinsics{c}/{file}.txt", f"{numbers(K)}\n{numbers(cam_T_own[:3].ravel())}\n")


def numbers(values) -> str:
    return " ".join(f"{value:.10g}" for value in values)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unreal_stereo4k")
    write(folder, "00001")
    write(folder, "00008", left_handed=False)
    return folder


@pytest.mark.parametrize(("split", "scene"), [("train", "00001"), ("val", "00008")])
def test_gives_back_depth_cameras_and_poses(raw, split, scene):
    records, skipped = pairs.build(UnrealStereo4K(), raw, split)
    assert not skipped
    assert len(records) == 6
    assert {record.scene for record in records.values()} == {scene}
    # Disparities are float32: at 10 m a millimetre of depth is far above their steps.
    pairs.check(records, FRAMES, tolerance_m=6e-4)


def test_poses_of_a_left_handed_world_are_mirrored():
    mirrored = np.diag([1.0, -1, 1, 1]) @ pairs.WALK[1]
    assert np.linalg.det(mirrored[:3, :3]) < 0
    from vlm3_jax.builders.unreal_stereo4k import right_handed

    np.testing.assert_allclose(right_handed(mirrored), pairs.WALK[1])
    np.testing.assert_allclose(right_handed(pairs.WALK[1]), pairs.WALK[1])


def test_what_is_too_far_for_16_bits_has_no_depth():
    depth = np.array([[1.0, 600.0, 700.0, np.inf, -1, 0]])
    kept = posed.storable(depth, metric=True)
    assert np.isfinite(kept).tolist() == [[True, True, False, False, False, False]]
    assert posed.stored_depth(kept, "z", True, 0, "x").scale <= 0.01
