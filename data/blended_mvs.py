"""BlendedMVS: 502 scenes reconstructed from photos, rendered and blended with them."""

import pathlib
import re

from vlm3_jax.builders import posed
from vlm3_jax.builders.common import image, subfolders
from vlm3_jax.builders.readers.mvsnet import read_cam, read_pairs
from vlm3_jax.builders.readers.pfm import read_pfm
from vlm3_jax.errors import UserError


class BlendedMVS(posed.PairBuilder):
    """The low-resolution release (768x576), as MVSNet stores it.

    cams/NNNNNNNN_cam.txt holds world-to-camera (OpenCV) and K, pair.txt the neighbours of each view, best first; depth
    is z, rows from the bottom up. The author counts pixels from the corner of the image (MVSNet issue 38), so the first
    pixel's centre is (0.5, 0.5). The scale is that of the reconstruction. Held out: the scenes of DUSt3R's rule,
    int(id[8:], 16) % 10 == 0, which MapAnything lists by name.
    """

    name, title = "blended_mvs", "BlendedMVS"
    splits, held_out = ("train", "val"), "val"
    metric = False
    layout = "<24 hex digits>/{blended_images/%08d.jpg, cams/{%08d_cam.txt, pair.txt}, rendered_depth_maps/%08d.pfm}"
    labels = "z-depth in units of the reconstruction (not metric), poses; pairs from pair.txt"
    licence = "CC BY 4.0; github.com/YoYo000/BlendedMVS"
    doubts = ("half a pixel: as the author says of MVSNet's files, not measured on these",)
    test = "tests/builders/test_blended_mvs.py"

    def scenes(self, raw, split):
        """Folders named by 24 hexadecimal digits; their views are those that have a camera file."""
        found = [f.name for f in subfolders(raw, "folders named by 24 hexadecimal digits")]
        found = [name for name in found if re.fullmatch(r"[0-9a-f]{24}", name)]
        if not found:
            raise UserError(f"{raw}: no folder is named by 24 hexadecimal digits, as the scenes of BlendedMVS are")
        for name in found:
            if (int(name[8:], 16) % 10 == 0) == (split == "val"):
                cams = sorted(path.name for path in (raw / name / "cams").glob("*_cam.txt"))
                yield name, [{"key": cam.removesuffix("_cam.txt")} for cam in cams]

    def pairs(self, raw, scene, frames):
        """The neighbours of pair.txt, each pair once, the better informed view first."""
        path = raw / scene / "cams" / "pair.txt"
        if not path.exists():
            raise UserError(f"{path}: not there; it lists which views are neighbours")
        place = {int(frame["key"]): n for n, frame in enumerate(frames)}
        met = set()
        for view, neighbours in sorted(read_pairs(path.read_bytes(), f"{scene}/pair.txt").items()):
            for other in neighbours:
                pair = frozenset((view, other))
                if view in place and other in place and len(pair) == 2 and pair not in met:
                    met.add(pair)
                    yield place[view], place[other]

    def frame(self, raw: pathlib.Path, scene, data):
        """Image, camera file and PFM of a view."""
        folder, key = raw / scene, data["key"]
        cam = read_cam(posed.contents(folder / "cams" / f"{key}_cam.txt"), f"{scene}/{key}_cam.txt")
        depth = read_pfm(posed.contents(folder / "rendered_depth_maps" / f"{key}.pfm"), f"{scene}/{key}.pfm")
        photo = image(folder / "blended_images" / f"{key}.jpg", f"{scene}/{key}.jpg")
        K = cam.K
        camera = posed.camera(K[0, 0], K[1, 1], K[0, 2], K[1, 2], photo, first=0.5)
        return posed.PosedFrame(photo, camera, posed.inverse(cam.cam_T_world, f"{scene}/{key}"), depth)
