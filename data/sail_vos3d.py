"""SAIL-VOS 3D: cut scenes of a video game (GTA V) with depth and cameras."""

import numpy as np
from PIL import Image

from vlm3_jax.builders import posed
from vlm3_jax.builders.common import encode, module, subfolders
from vlm3_jax.builders.readers import rigid
from vlm3_jax.errors import BadRecord
from vlm3_jax.formats.npz import read_npz
from vlm3_jax.records.map_files import read_npy

SKY = 24e-5
"""The stored depth of the sky; 1e-9 of it is not rounding."""


class SailVos3D(posed.PairBuilder):
    """camera/*.yaml holds K, its principal point counted from the middle of the image, and Rt, world-to-camera.

    Camera axes are OpenGL's. depth/*.npy is the z-buffer: d / 6 - 4e-5 in normalised device coordinates, which P_inv of
    rage_matrices (rows are points) takes to the camera; metres. People move between frames. No hold-out was published:
    one scene in 20. MapAnything's loader drops the farthest 5 % of every map; a conversion does not.
    """

    name, title = "sail_vos3d", "SAIL-VOS 3D"
    splits, held_out = ("train", "val"), "val"
    layout = "<scene>/{images/%018d.bmp, depth/%018d.npy, camera/%018d.yaml, rage_matrices/%018d.npz}"
    labels = "z-depth in metres, poses; pairs within 8 frames; BMP images become JPEG"
    licence = "for research, on request; sailvos.web.illinois.edu"
    doubts = ("the middle of W pixels is taken as (W - 1) / 2", "that depths are metres: as MapAnything has it")
    test = "tests/builders/test_sail_vos3d.py"
    needs = ("yaml",)
    window = 8

    def scenes(self, raw, split):
        """Folders with images; a frame is an image."""
        found = [f.name for f in subfolders(raw, "a folder for each scene, with images/*.bmp")]
        for name in found:
            if posed.one_in(name, 20) == (split == "val"):
                images = sorted(path.name for path in (raw / name / "images").glob("*.bmp"))
                yield name, [{"key": file.removesuffix(".bmp")} for file in images]

    def frame(self, raw, scene, data):
        """Image, camera, z-buffer and projection of a frame."""
        folder, key = raw / scene, data["key"]
        name = f"{scene}/{key}"
        photo = encode(self._pixels(folder / "images" / f"{key}.bmp", name), f"{name}.jpg")
        K, cam_T_world = self._camera(posed.contents(folder / "camera" / f"{key}.yaml"), f"{name}.yaml")
        z_buffer = read_npy(posed.contents(folder / "depth" / f"{key}.npy"), f"{name}.npy")
        P_inv = read_npz(posed.contents(folder / "rage_matrices" / f"{key}.npz"), f"{name}.npz", "P_inv")
        middle = (photo.width - 1) / 2, (photo.height - 1) / 2
        camera = posed.camera(K[0, 0], K[1, 1], K[0, 2] + middle[0], K[1, 2] + middle[1], photo)
        pose = posed.inverse(cam_T_world, name) @ rigid.CV_T_GL
        return posed.PosedFrame(photo, camera, pose, z_of(z_buffer, P_inv, name))

    def _pixels(self, path, name: str) -> np.ndarray:
        try:
            with Image.open(path, formats=("BMP",)) as image:
                return np.asarray(image.convert("RGB"))
        except FileNotFoundError:
            raise BadRecord(f"{name}: no such image file") from None
        # Damaged bytes make Pillow raise all kinds of errors.
        except Exception as error:
            raise BadRecord(f"{name}: cannot decode the image ({error})") from None

    def _camera(self, data: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
        yaml = module("yaml")
        try:
            tree = yaml.safe_load(data)
            return np.array(tree["K"], np.float64).reshape(3, 3), np.array(tree["Rt"], np.float64).reshape(3, 4)
        except (yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise BadRecord(f"{name}: no camera with K and Rt ({error})") from None


def z_of(z_buffer: np.ndarray, P_inv: np.ndarray, name: str) -> np.ndarray:
    """The z (m) of a z-buffer [H, W], NaN in the sky. `P_inv` [4, 4]: of rows (x, y, z, 1) in device coordinates.

    Their x runs from -1 to 1 over the first to the last pixel, y from 1 to -1; z does not depend on them where the
    projection is a plain one.
    """
    if z_buffer.ndim != 2 or P_inv.shape != (4, 4):
        raise BadRecord(f"{name}: expected a map and a 4 x 4 matrix, got {z_buffer.shape} and {P_inv.shape}")
    height, width = z_buffer.shape
    depth, P_inv = z_buffer.astype(np.float64), P_inv.astype(np.float64)
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(1, -1, height))
    device = np.stack([x, y, depth / 6 - 4e-5, np.ones_like(depth)], -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        points = np.einsum("hwi,ij->hwj", device, P_inv)
        z = -points[..., 2] / points[..., 3]
    return np.where(np.abs(depth - SKY) <= 1e-6 * SKY, np.nan, z)
