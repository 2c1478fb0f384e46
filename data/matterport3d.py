"""Matterport3D: panoramas of houses, undistorted images of three cameras at six yaws, with depth."""

import functools
import pathlib

import numpy as np

from vlm3_jax.builders import common
from vlm3_jax.builders.readers import rigid
from vlm3_jax.builders.readers.raster import read_steps, same_size
from vlm3_jax.camera import Camera
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.formats.numbers import pose_of
from vlm3_jax.records import Record, View, encode_depth

SCALE = 1 / 4000


class Matterport3D(common.Builder):
    """Each undistorted image with its depth: z = value / 4000 m, 0 where there is none.

    undistorted_camera_parameters/HOUSE.conf holds camera-to-world matrices of cameras that look along -z with y up, and
    an intrinsics_matrix before the scans that it is for. The undistorted images have their origin at the bottom left
    (data_organization.md), so the principal point from the top is H - cy. Splits are the benchmark's lists of houses,
    scenes_{train,val,test}.txt, to be put into the raw folder (they come with the set's repository, tasks/benchmark).
    With `depthlm` the camera has cy as it is written, and labels are distances computed with it.
    """

    name = "matterport3d"
    title = "Matterport3D"
    folder = "depth"
    splits = ("train", "val", "test")
    held_out = "val"
    layout = "scenes_SPLIT.txt, HOUSE/[HOUSE/]undistorted_{color_images,depth_images,camera_parameters}"
    labels = "dense z in metres, in steps of 1/4000 m; camera poses in the house"
    licence = "Matterport End User Licence, niessner.github.io/Matterport"
    checked = "fixture"
    doubts = (
        "H - cy, H - 0.5 - cy or H - 1 - cy: the documents do not say where in the first pixel the origin is",
        "whether depth images have their rows in the same order as the colour images",
    )
    test = "tests/builders/test_matterport3d.py"
    honours_depthlm = True

    def frames(self, raw: pathlib.Path, split: str) -> list[common.Item]:
        """The scans that the .conf of each house lists."""
        path = raw / f"scenes_{split}.txt"
        if not path.exists():
            raise UserError(
                f"{path}: not there; copy the lists of houses from tasks/benchmark of Matterport's repository"
            )
        items = []
        for house in path.read_text().split():
            folder = _house(raw, house)
            for number, scan in enumerate(_scans(folder / "undistorted_camera_parameters" / f"{house}.conf")):
                color = scan[1].rsplit(".", 1)[0]
                items.append(common.Item(f"{house}/{color}", house, {"scan": number}))
        return common.by_key(items)

    def record(self, raw: pathlib.Path, item: common.Item) -> Record:
        """One image with its depth map and pose."""
        house, folder = item.scene, _house(raw, item.scene)
        conf = folder / "undistorted_camera_parameters" / f"{house}.conf"
        depth_file, color_file, K, pose = _scans(conf)[item.data["scan"]]
        stored = common.image(folder / "undistorted_color_images" / color_file, f"{house}/{color_file}")
        values = read_steps(folder / "undistorted_depth_images" / depth_file, f"{house}/{depth_file}")
        depth = same_size(values, stored.width, stored.height, f"{house}/{depth_file}") * SCALE
        fx, cx, fy, cy = K
        from_top = cy if self.options.depthlm else stored.height - cy
        camera = Camera(fx, fy, cx, from_top, stored.width, stored.height).plausible(item.key)
        kind, scale = "z", SCALE
        if self.options.depthlm:
            kind, scale = "distance", None
            pixels = np.stack(np.meshgrid(np.arange(stored.width), np.arange(stored.height)), -1).reshape(-1, 2)
            depth = camera.distance_from_z(pixels, depth.ravel()).reshape(depth.shape)
        world_T_cam = pose_of(pose, f"{conf.name}: {color_file}") @ rigid.CV_T_GL
        depth_map = encode_depth(depth, kind, scale, name=f"{house}/{depth_file}")
        return Record(item.key, (View(stored, camera, world_T_cam),), depth_maps=(depth_map,), scene=house)


def _house(raw: pathlib.Path, house: str) -> pathlib.Path:
    """The folder of a house: the archives hold it once more inside."""
    return next((folder for folder in (raw / house / house, raw / house) if folder.is_dir()), raw / house)


@functools.lru_cache(maxsize=16)
def _scans(path: pathlib.Path) -> list[tuple]:
    """(depth file, colour file, (fx, cx, fy, cy), 16 numbers) of each scan of a .conf."""
    if not path.exists():
        raise UserError(f"{path}: not there; see docs/datasets.md for the layout of this data set")
    scans, K = [], None
    for number, line in enumerate(path.read_text().splitlines(), 1):
        word, *rest = line.split() or [""]
        try:
            if word == "intrinsics_matrix":
                fx, _, cx, _, fy, cy, *_ = map(float, rest)
                K = (fx, cx, fy, cy)
            elif word == "scan":
                depth, color, *pose = rest
                if K is None:
                    raise ValueError("no intrinsics_matrix before it")
                if any("/" in file or file.startswith(".") for file in (depth, color)):
                    raise ValueError("names of files only")
                scans.append((depth, color, K, np.array(pose, np.float64)))
        except ValueError as error:
            raise BadRecord(
                f"{path}:{number}: not as the undistorted camera parameters are written ({error})"
            ) from None
    return scans
