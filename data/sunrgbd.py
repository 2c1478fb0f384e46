"""SUN RGB-D: indoor photos of four depth sensors, among them a copy of NYU Depth v2."""

import pathlib

import numpy as np

from vlm3_jax.builders import common
from vlm3_jax.builders.readers.numbers import read_rows
from vlm3_jax.builders.readers.raster import read_steps, same_size
from vlm3_jax.camera import Camera
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.records import Record, View, encode_depth

SENSORS = ("kv1/b3dodata", "kv2/align_kv2", "kv2/kinect2data", "realsense/lg", "realsense/sa", "realsense/sh")
SENSORS += ("realsense/shr", "xtion/xtion_align_data")
PLACES = "xtion/sun3ddata"
NYU = "kv1/NYUdata"
LISTS = {"train": "alltrain", "test": "alltest"}
# The toolbox (read3dPoints.m) takes what is farther for this far.
FARTHEST_M = 8.0
MILLIMETRES = 1e-3
# DepthLM's curator reads values / 10,000 without turning bits, and keeps what is within these.
DEPTHLM_STEP, DEPTHLM_RANGE_M = 1e-4, (0.005, 25.0)


class SunRGBD(common.Builder):
    """Each photo with the smoothed depth of the release (depth_bfx), z.

    A value is millimetres turned left by three bits (read3dPoints.m turns them back). What is beyond 8 m, where the
    toolbox clips, has no depth. Splits: train and test as in allsplit.mat; bench is what DepthLM evaluates: all photos
    but NYU's, of xtion/sun3ddata the first of each place. With `depthlm` labels are value / 10,000, 0.8 times metres.
    """

    name = "sunrgbd"
    title = "SUN RGB-D"
    folder = "bench"
    splits = ("train", "test", "bench")
    held_out = "test"
    layout = "SUNRGBD/SENSOR/.../FRAME/{image/*.jpg, depth_bfx/*.png, intrinsics.txt}, SUNRGBDtoolbox/.../allsplit.mat"
    labels = "dense z in metres, in millimetre steps"
    licence = "for research; rgbd.cs.princeton.edu"
    checked = "fixture"
    doubts = (
        "whether the intrinsics count pixels from 0 or 1",
        "which frame of a place DepthLM's unsorted listing met",
    )
    test = "tests/builders/test_sunrgbd.py"
    needs = ("scipy",)
    honours_depthlm = True
    depth_folder = "depth_bfx"

    def frames(self, raw: pathlib.Path, split: str) -> list[common.Item]:
        """Folders of frames, named as below SUNRGBD/."""
        root = raw / "SUNRGBD"
        common.need_files([root])
        names = self._bench(root) if split == "bench" else _listed(raw, LISTS[split])
        return common.by_key(common.Item(name, _scene(name), {}) for name in names)

    def _bench(self, root: pathlib.Path) -> list[str]:
        names = [f"{sensor}/{frame}" for sensor in SENSORS for frame in _folders(root / sensor)]
        for place in _folders(root / PLACES):
            frames = [
                f"{room}/{frame}"
                for room in _folders(root / PLACES / place)
                for frame in _folders(root / PLACES / place / room)
            ]
            names += [f"{PLACES}/{place}/{frame}" for frame in frames[:1]]
        if not names:
            raise UserError(f"{root}: no frame below {', '.join(SENSORS)}")
        return names

    def record(self, raw: pathlib.Path, item: common.Item) -> Record:
        """A photo with its depth map."""
        folder = raw / "SUNRGBD" / item.key
        stored = common.image(_only(folder / "image", item.key), item.key)
        values = read_steps(_only(folder / self.depth_folder, item.key), f"{item.key}/{self.depth_folder}")
        values = same_size(values, stored.width, stored.height, item.key).astype(np.uint16)
        if self.options.depthlm:
            depth, step = values * DEPTHLM_STEP, DEPTHLM_STEP
            low, high = DEPTHLM_RANGE_M
            depth = np.where((depth > low) & (depth < high), depth, 0)
        else:
            depth, step = ((values >> 3) | (values << 13)) * MILLIMETRES, MILLIMETRES
            depth = np.where(depth <= FARTHEST_M, depth, 0)
        path = folder / "intrinsics.txt"
        if not path.exists():
            raise BadRecord(f"{item.key}: no intrinsics.txt")
        K = read_rows(path.read_bytes(), f"{item.key}/intrinsics.txt").ravel()
        if K.size != 9:
            raise BadRecord(f"{item.key}/intrinsics.txt: expected 9 numbers, got {K.size}")
        camera = Camera(K[0], K[4], K[2], K[5], stored.width, stored.height).plausible(item.key)
        depth_map = encode_depth(depth, "z", step, name=item.key)
        return Record(item.key, (View(stored, camera),), depth_maps=(depth_map,), scene=item.scene)


class NYUv2Sun(SunRGBD):
    """NYU Depth v2 as SUN RGB-D has it, which DepthLM evaluates: crops of 561 x 427 px, raw depth (depth/), z.

    All 1,449 frames are one split, as there; smoothed depth is not used because it ends at 8.19 m. With `depthlm`
    labels are value / 10,000.
    """

    name = "nyuv2_sun"
    title = "NYU Depth v2 (SUN RGB-D's copy)"
    splits = ("bench",)
    held_out = "bench"
    layout = "SUNRGBD/kv1/NYUdata/NYU%04d/{image/*.jpg, depth/*.png, intrinsics.txt}"
    depth_folder = "depth"

    def _bench(self, root: pathlib.Path) -> list[str]:
        common.subfolders(root / NYU, "the frames NYU0001, NYU0002, ...")
        return [f"{NYU}/{frame}" for frame in _folders(root / NYU)]


def _scene(name: str) -> str:
    """The room of a video of sun3ddata; all other frames stand alone."""
    return name.rsplit("/", 1)[0] if name.startswith(f"{PLACES}/") else name


def _folders(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _only(folder: pathlib.Path, name: str) -> pathlib.Path:
    """The one file of a folder."""
    found = [path for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []
    if len(found) != 1:
        raise BadRecord(f"{name}/{folder.name}: expected one file, found {len(found)}")
    return found[0]


def _listed(raw: pathlib.Path, key: str) -> list[str]:
    """The frames of a split: a cell array of the authors' own paths, of which the part after SUNRGBD/ counts."""
    path = raw / "SUNRGBDtoolbox" / "traintestSUNRGBD" / "allsplit.mat"
    common.need_files([path])
    values = common.module("scipy.io").loadmat(path, variable_names=[key]).get(key)
    if values is None:
        raise UserError(f"{path}: has no list {key}")
    names = [str(np.ravel(cell)[0]) for cell in np.ravel(values)]
    return [name.split("SUNRGBD/", 1)[-1].strip("/") for name in names]
