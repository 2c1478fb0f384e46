import io

import numpy as np
import pytest
from PIL import Image

from tests.builders import pairs
from vlm3_jax.builders.gta_sfm import GtaSfm
from vlm3_jax.errors import BadRecord, UserError

h5py = pytest.importorskip("h5py")
FRAMES = {f"{n:06d}": frame for n, frame in enumerate(pairs.walk())}
SCENE = "20190124_203632"


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gta_sfm")
    (folder / "train").mkdir()
    with h5py.File(folder / f"train/{SCENE}.hdf5", "w") as file:
        for n, frame in enumerate(FRAMES.values()):
            seen, buffer = frame.seen(), io.BytesIO()
            Image.fromarray(seen.rgb).save(buffer, "JPEG", quality=98, subsampling=0)
            file[f"image_{n}"] = np.frombuffer(buffer.getvalue(), np.uint8)
            K = [[frame.fx, 0, frame.cx + 0.5], [0, frame.fy, frame.cy + 0.5], [0, 0, 1]]
            file[f"K_{n}"], file[f"pose_{n}"] = np.array(K), frame.world_T_cam
            file[f"depth_{n}"] = np.where(np.isfinite(seen.z), seen.z, 1e5).astype(np.float32)
    return folder


def test_gives_back_depth_cameras_and_poses(raw):
    records, skipped = pairs.build(GtaSfm(), raw)
    assert not skipped
    assert sorted(record.scene for record in records.values()) == [SCENE] * 3
    pairs.check(records, FRAMES)


def test_a_file_that_is_cut_off_is_named(raw, tmp_path):
    (tmp_path / "train_hdf5").mkdir()
    (tmp_path / "train_hdf5" / f"{SCENE}.hdf5").write_bytes((raw / f"train/{SCENE}.hdf5").read_bytes()[:1000])
    with pytest.raises(BadRecord, match=rf"^{SCENE}.hdf5: not a readable HDF5 file"):
        GtaSfm().frames(tmp_path, "train")
    with pytest.raises(UserError, match="test_hdf5"):
        GtaSfm().frames(tmp_path, "test")
