"""ETH3D, high-resolution multi-view: photos of 13 scenes with depth of a laser scanner."""

import functools
import pathlib

import numpy as np

from vlm3_jax.builders import common
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.formats import colmap
from vlm3_jax.processor.undistort import Distortion
from vlm3_jax.records import Record, View, encode_depth

SCENES = ("courtyard", "delivery_area", "electro", "facade", "kicker", "meadow", "office", "pipes", "playground")
SCENES += ("relief", "relief_2", "terrace", "terrains")


class Eth3d(common.Builder):
    """Each photo (JPEG, as taken) undistorted, with its depth: z in metres, inf where the scanner saw nothing.

    Depth files are headerless float32 on the grid of the distorted photo; photo and depth are undistorted together, all
    eight parameters of THIN_PRISM_FISHEYE taken into account, depth by the nearest pixel. A photo and its depth share
    their name, and cameras and poses are found by it (dslr_calibration_jpg). The authors write COLMAP's pixels (first
    centre 0.5: ground_truth_creator adds a half). Photos taken in portrait stay as they are stored, on their side.
    With `depthlm` labels are distances, as DepthLM's curator stored them.
    """

    name = "eth3d"
    title = "ETH3D (high-res multi-view, training)"
    folder = "bench"
    splits = ("train",)
    held_out = "train"
    layout = "SCENE/{dslr_calibration_jpg/*.txt, images/dslr_images/*.JPG, ground_truth_depth/dslr_images/*.JPG}"
    labels = "dense z in metres; camera poses in the scene"
    licence = "CC BY-NC-SA 4.0, eth3d.net"
    checked = "fixture"
    doubts = ("that depth is z: the documents do not say, its program writes the z-buffer",)
    test = "tests/builders/test_eth3d.py"
    honours_depthlm = True

    def frames(self, raw: pathlib.Path, split: str) -> list[common.Item]:
        """The photos of all scenes that are there, each with its depth or without."""
        found = [scene for scene in SCENES if (raw / scene).is_dir()]
        if not found:
            raise UserError(f"{raw}: none of the scenes {', '.join(SCENES)} is there")
        items = []
        for scene in found:
            for image in sorted(_model(raw / scene)):
                name = pathlib.PurePosixPath(image).name
                items.append(common.Item(f"{scene}/{name.rsplit('.', 1)[0]}", scene, {"image": image, "name": name}))
        return common.by_key(items)

    def record(self, raw: pathlib.Path, item: common.Item) -> Record:
        """A photo with its depth map and pose."""
        folder, name = raw / item.scene, item.data["name"]
        path = folder / "ground_truth_depth" / "dslr_images" / name
        if not path.exists():
            raise common.Skip("the photo has no depth")
        posed = _model(folder)[item.data["image"]]
        distorted, lens = Distortion.from_colmap(
            posed.camera.model, posed.camera.params, posed.camera.width, posed.camera.height
        )
        stored = common.image(folder / "images" / "dslr_images" / name, item.key)
        if (stored.width, stored.height) != (distorted.width, distorted.height):
            raise BadRecord(f"{item.key}: the photo is {stored.width} x {stored.height}, its camera {distorted}")
        size = 4 * stored.width * stored.height
        if path.stat().st_size != size:
            raise BadRecord(
                f"{item.key}: depth of {path.stat().st_size} bytes, {size} are {stored.width} x {stored.height}"
            )
        depth = np.frombuffer(path.read_bytes(), "<f4").reshape(stored.height, stored.width)
        pixels, camera = lens.remove(stored.load(), distorted)
        depth, _ = lens.remove(depth, distorted, camera, sampling="nearest")
        kind = "z"
        if self.options.depthlm:
            kind = "distance"
            grid = np.stack(np.meshgrid(np.arange(camera.width), np.arange(camera.height)), -1).reshape(-1, 2)
            depth = camera.distance_from_z(grid, depth.ravel()).reshape(depth.shape)
        depth_map = encode_depth(depth, kind, name=f"{item.key} depth")
        view = View(common.encode(pixels, f"{item.key}.jpg"), camera, posed.world_T_cam)
        return Record(item.key, (view,), depth_maps=(depth_map,), scene=item.scene)


@functools.lru_cache(maxsize=16)
def _model(folder: pathlib.Path) -> dict:
    return colmap.read_images(folder / "dslr_calibration_jpg")
