import json

import numpy as np
import pytest
from PIL import Image

from tests.builders import files, pairs
from vlm3_jax.builders.sail_vos3d import SailVos3D

# The centre of the projection is in the middle here, as the data set has it.
FRAMES = {f"{n:018d}": frame for n, frame in enumerate(pairs.walk(cx=(pairs.WIDTH - 1) / 2, cy=(pairs.HEIGHT - 1) / 2))}
NEAR, FAR = 0.1, 800.0


def projection(frame) -> np.ndarray:
    """OpenGL's, of columns; the first and the last pixel are at -1 and 1. Depth runs from 1 (near) to 0 (far)."""
    return np.array(
        [
            [2 * frame.fx / (frame.width - 1), 0, 0, 0],
            [0, 2 * frame.fy / (frame.height - 1), 0, 0],
            [0, 0, NEAR / (FAR - NEAR), NEAR * FAR / (FAR - NEAR)],
            [0, 0, -1, 0],
        ]
    )


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sail_vos3d") / "ah_3a_ext"
    for part in ("images", "depth", "camera", "rage_matrices"):
        (folder / part).mkdir(parents=True)
    for key, frame in FRAMES.items():
        seen, P = frame.seen(), projection(frame)
        Image.fromarray(seen.rgb).save(folder / f"images/{key}.bmp")
        z = np.where(np.isfinite(seen.z), seen.z, FAR)
        device = (P[2, 2] * -z + P[2, 3]) / z
        np.save(folder / f"depth/{key}.npy", np.where(np.isfinite(seen.z), (device + 4e-5) * 6, 24e-5))
        np.savez(folder / f"rage_matrices/{key}.npz", P_inv=np.linalg.inv(P).T, P=P.T)
        K = [[frame.fx, 0, 0], [0, frame.fy, 0], [0, 0, 1]]
        gl_T_world = np.diag([1.0, -1, -1, 1]) @ np.linalg.inv(frame.world_T_cam)
        files.text(folder / f"camera/{key}.yaml", f"K: {json.dumps(K)}\nRt: {json.dumps(gl_T_world[:3].tolist())}\n")
    return folder.parent


def test_gives_back_depth_cameras_and_poses(raw):
    records, skipped = pairs.build(SailVos3D(), raw)
    assert not skipped
    assert len(records) == 3
    pairs.check(records, FRAMES)
    assert not pairs.build(SailVos3D(), raw, "val")[0]


def test_a_frame_without_its_depth_is_skipped(raw, tmp_path):
    import shutil

    shutil.copytree(raw, tmp_path / "copy")
    (tmp_path / "copy/ah_3a_ext/depth" / f"{1:018d}.npy").unlink()
    records, skipped = pairs.build(SailVos3D(), tmp_path / "copy")
    assert len(records) == 1
    assert set(skipped.values()) == {"a frame has no file in depth"}
