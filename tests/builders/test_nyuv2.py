"""NYU Depth v2: Matlab's HDF5 with reversed axes, splits counted from 1, a sensor that ends at 10 m."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.builders import truth, world
from vlm3_jax.builders import common
from vlm3_jax.builders.nyuv2 import INTRINSICS, NYUv2
from vlm3_jax.errors import UserError

h5py = pytest.importorskip("h5py")
io = pytest.importorskip("scipy.io")

FRAME = truth.Frame(*INTRINSICS, 640, 480, world.pose(0.2, 0.1, -0.3, -8, 3, 2))
# Rendering all pixels would take seconds: one in 64 has a depth.
ROWS, COLUMNS = np.meshgrid(np.arange(3, 480, 8), np.arange(5, 640, 8), indexing="ij")
NUMBER, TEST = 2, [[1], [3]]


def write(root, kind="z", transpose=True):
    """Four frames, of which the third (3, counted from 1) shows the world."""
    seen = FRAME.seen(np.stack([COLUMNS, ROWS], -1))
    depth = np.zeros((480, 640), np.float32)
    depth[ROWS, COLUMNS] = np.where(np.isfinite(seen.z), getattr(seen, kind), 10.0)
    rgb = np.kron(seen.rgb, np.ones((8, 8, 1), np.uint8))
    axes = (2, 1, 0) if transpose else (2, 0, 1)
    images = np.zeros((4, 3, 640, 480) if transpose else (4, 3, 480, 640), np.uint8)
    depths = np.zeros((4, 640, 480) if transpose else (4, 480, 640), np.float32)
    images[NUMBER], depths[NUMBER] = rgb.transpose(axes), depth.T if transpose else depth
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w") as file:
        file.create_dataset("images", data=images, compression="gzip", compression_opts=1)
        for name in ("depths", "rawDepths"):
            file.create_dataset(name, data=depths if name == "rawDepths" else 0 * depths, compression="gzip")
        texts = [
            file.create_dataset(f"#refs#/{n}", data=np.array([[ord(letter)] for letter in name], np.uint16))
            for n, name in enumerate(("kitchen_0004", "kitchen_0004", "office_0001", "study_0002"))
        ]
        cells = file.create_dataset("scenes", (1, 4), dtype=h5py.ref_dtype)
        cells[0] = [text.ref for text in texts]
    io.savemat(root / "splits.mat", {"testNdxs": np.array(TEST), "trainNdxs": np.array([[2], [4]])})
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write(tmp_path_factory.mktemp("nyuv2"))


def _record(root, **options):
    builder = NYUv2(common.Options(**options))
    return {item.key: builder.record(root, item) for item in builder.frames(root, "test")}["0003"]


def _valid() -> np.ndarray:
    valid = np.zeros((480, 640), bool)
    z = FRAME.seen(np.stack([COLUMNS, ROWS], -1)).z
    valid[ROWS, COLUMNS] = z < 10
    return valid


def test_gives_back_the_world(root):
    record, valid = _record(root), _valid()

    def check(record):
        assert truth.check_depth(record, FRAME, 2e-4, valid=valid) > 2500

    check(record)
    assert record.scene == "office_0001"
    truth.all_fail(check, truth.wrong_depths(record))
    pixels = record.views[0].image.load()
    assert np.array_equal(pixels[ROWS, COLUMNS], FRAME.seen(np.stack([COLUMNS, ROWS], -1)).rgb)


def test_distances_in_the_file_would_fail(tmp_path):
    with pytest.raises(AssertionError):
        truth.check_depth(_record(write(tmp_path, "distance")), FRAME, 2e-4, least=0)


def test_depthlm_stored_four_fifths(root):
    ours, theirs = (_record(root, depthlm=flag).depth_maps[0].load() for flag in (False, True))
    valid = _valid()
    np.testing.assert_allclose(theirs[valid], 0.8 * ours[valid], atol=2.1e-4)


def test_splits(root):
    builder = NYUv2()
    assert [item.key for item in builder.frames(root, "train")] == ["0002", "0004"]
    assert [item.scene for item in builder.frames(root, "test")] == ["kitchen_0004", "office_0001"]


def test_other_files_are_refused(tmp_path):
    with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat", "w") as file:
        file.create_dataset("depth", data=np.zeros(3))
    io.savemat(tmp_path / "splits.mat", {"testNdxs": np.array([[1]])})
    with pytest.raises(UserError, match="rawDepths"):
        NYUv2().frames(tmp_path, "test")
    with pytest.raises(UserError, match="trainNdxs"):
        NYUv2().frames(tmp_path, "train")


def test_intrinsics_and_unit_of_real_frames(samples):
    folder = samples / "nyu_sample"
    camera = json.loads((folder / "camera.json").read_text())
    np.testing.assert_allclose(INTRINSICS, [camera[key] for key in ("fx", "fy", "cx", "cy")], rtol=1e-6)
    depth = np.asarray(Image.open(folder / "depth_00000.png")) / camera["depth_scale"]
    assert depth.shape == (480, 640)
    assert 0.5 < np.median(depth[depth > 0]) < 9.99
