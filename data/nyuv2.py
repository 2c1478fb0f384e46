"""NYU Depth v2, the labelled set: 1,449 Kinect frames of homes and offices in one Matlab file."""

import pathlib

import numpy as np

from vlm3_jax.builders import common
from vlm3_jax.camera import Camera
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.formats import hdf5
from vlm3_jax.records import Record, View, encode_depth

# The colour camera of the toolbox (camera_params.m), of 640 x 480 px.
INTRINSICS = (518.857901, 519.469611, 325.582449, 253.736166)
# The sensor saturates there.
FARTHEST_M = 10.0
# DepthLM divides by 10,000 what is 8,000 a metre.
DEPTHLM = 0.8
SCALE = 2e-4


class NYUv2(common.Builder):
    """Each frame with the depth that the sensor measured (rawDepths), z in the colour camera; holes stay holes.

    The file is Matlab's v7.3, which is HDF5 with reversed axes. Measurements at 10 m, where the sensor saturates, are
    none. splits.mat says which frames are train (795) and test (654), counted from 1. With `depthlm` labels are 0.8
    times metres, as DepthLM's curator stored them (its frames are SUN RGB-D's crops: builder `nyuv2_sun`).
    """

    name = "nyuv2"
    title = "NYU Depth v2 (labelled)"
    folder = "bench"
    splits = ("train", "test")
    held_out = "test"
    layout = "nyu_depth_v2_labeled.mat, splits.mat"
    labels = "dense z in metres (raw sensor depth), in steps of 0.2 mm"
    licence = "for research; cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html"
    checked = "fixture; intrinsics and unit on two real frames"
    doubts = ("the toolbox counts pixels from 1 with these intrinsics: the principal point may be one pixel off",)
    test = "tests/builders/test_nyuv2.py"
    needs = ("h5py", "scipy")
    honours_depthlm = True

    def frames(self, raw: pathlib.Path, split: str) -> list[common.Item]:
        """The frames that splits.mat lists, with the scene of each where the file names it."""
        path = raw / "nyu_depth_v2_labeled.mat"
        common.need_files([path, raw / "splits.mat"])
        numbers = _mat(raw / "splits.mat", "testNdxs" if split == "test" else "trainNdxs")
        scenes = _scenes(path)
        chosen = [int(number) - 1 for number in numbers.ravel()]
        if chosen and not 0 <= min(chosen) <= max(chosen) < len(scenes):
            raise UserError(f"{raw / 'splits.mat'}: lists frame {max(chosen) + 1}, {path.name} has {len(scenes)}")
        return common.by_key(common.Item(f"{n + 1:04d}", scenes[n], {"frame": n}) for n in chosen)

    def record(self, raw: pathlib.Path, item: common.Item) -> Record:
        """One frame with its depth map."""
        path, n = raw / "nyu_depth_v2_labeled.mat", item.data["frame"]
        with hdf5.opened(path) as file:
            pixels = hdf5.dataset(file, "images", path.name, n).transpose(2, 1, 0)
            depth = hdf5.dataset(file, "rawDepths", path.name, n).T
        if pixels.shape != (480, 640, 3) or depth.shape != (480, 640):
            raise BadRecord(f"{path.name}: frame {n + 1} is {pixels.shape} and {depth.shape}, expected 480 x 640")
        metres = np.where(depth < FARTHEST_M, depth, 0) * (DEPTHLM if self.options.depthlm else 1)
        camera = Camera(*INTRINSICS, 640, 480)
        stored = common.encode(pixels.astype(np.uint8), item.key, quality=None)
        depth_map = encode_depth(metres, "z", SCALE, name=f"rawDepths {item.key}")
        return Record(item.key, (View(stored, camera),), depth_maps=(depth_map,), scene=item.scene)


def _mat(path: pathlib.Path, key: str) -> np.ndarray:
    """An array of whole numbers of a Matlab file before v7.3."""
    values = common.module("scipy.io").loadmat(path, variable_names=[key]).get(key)
    if values is None or values.dtype.kind not in "iuf":
        raise UserError(f"{path}: has no numbers {key}")
    return values


def _scenes(path: pathlib.Path) -> list[str]:
    """The scene of every frame: a cell array of texts, which HDF5 holds as references to arrays of characters."""
    with hdf5.opened(path) as file:
        if "images" not in file or "rawDepths" not in file:
            raise UserError(f"{path}: has no images and rawDepths; it is not the labelled set of NYU Depth v2")
        if "scenes" not in file:
            return [""] * len(file["images"])
        return ["".join(map(chr, np.ravel(file[one][()]))) for one in np.ravel(file["scenes"][()])]
