"""DTU: objects on a table under lights, photographed by a robot, with depth of a structured-light scanner."""

import numpy as np

from vlm3_jax.builders import posed
from vlm3_jax.builders.common import image, subfolders
from vlm3_jax.builders.readers.mvsnet import read_cam, read_pairs
from vlm3_jax.builders.readers.pfm import read_pfm
from vlm3_jax.errors import UserError

METRES = 1e-3
# MVSNet's evaluation scans, and the one of seven lights that it takes.
TEST_SCANS = (1, 4, 9, 10, 11, 12, 13, 15, 23, 24, 29, 32, 33, 34, 48, 49, 62, 75, 77, 110, 114, 118)
LIGHT = 3


class Dtu(posed.PairBuilder):
    """MVSNet's copy: photos (1600x1200) of the light that its evaluation takes, depth and cameras of 49 views.

    Views are counted from 0 in Cameras and Depths_raw and from 1 in Rectified. Cameras are world-to-camera (OpenCV),
    lengths millimetres, here metres; depth is z, 0 where the scanner saw nothing. Pairs are those of pair.txt, each
    once. Records are marked as not metric: objects are 20 cm large, so whether a pixel is hidden has to be judged by a
    share of the distance (4 %, 2.4 cm at 60 cm; UFM's rule for this set comes to 2.6 cm), not by the rule for rooms.
    """

    name, title = "dtu", "DTU (MVSNet's copy)"
    folder = "bench"
    splits, held_out = ("test",), "test"
    metric = False
    layout = "Rectified/scan*/rect_%03d_3_r5000.png, Depths_raw/scan*/depth_map_%04d.pfm, Cameras/{%08d_cam,pair}.txt"
    labels = "dense z, poses, both in metres but marked as without scale; pairs from pair.txt"
    licence = "for research; roboimagedata.compute.dtu.dk"
    doubts = (
        "half a pixel: as the author says of MVSNet's files (corner of the image), not measured on these",
        "UFM's own list of pairs (every 50th is evaluated) is not public",
    )
    test = "tests/builders/test_dtu.py"
    covisible = 0.0

    def scenes(self, raw, split):
        """The evaluation scans that are there; their views are those of Cameras."""
        known = {f"scan{number}" for number in TEST_SCANS}
        found = [folder.name for folder in subfolders(raw / "Rectified", "folders scan1, scan4, ...")]
        found = [name.removesuffix("_train") for name in found if name.removesuffix("_train") in known]
        if not found:
            raise UserError(f"{raw / 'Rectified'}: none of the evaluation scans {', '.join(sorted(known))} is there")
        views = sorted(path.name.removesuffix("_cam.txt") for path in (raw / "Cameras").glob("*_cam.txt"))
        for name in sorted(set(found)):
            yield name, [{"key": view} for view in views]

    def pairs(self, raw, scene, frames):
        """The neighbours of pair.txt, each pair once, the better informed view first."""
        path = raw / "Cameras" / "pair.txt"
        if not path.exists():
            raise UserError(f"{path}: not there; it lists which views are neighbours")
        place, met = {int(frame["key"]): n for n, frame in enumerate(frames)}, set()
        for view, neighbours in sorted(read_pairs(path.read_bytes(), "Cameras/pair.txt").items()):
            for other in neighbours:
                pair = frozenset((view, other))
                if pair <= place.keys() and len(pair) == 2 and pair not in met:
                    met.add(pair)
                    yield place[view], place[other]

    def frame(self, raw, scene, data):
        """Photo, camera and depth of a view."""
        key, number = data["key"], int(data["key"])
        cam = read_cam(posed.contents(raw / "Cameras" / f"{key}_cam.txt"), f"{key}_cam.txt")
        depth_name = f"depth_map_{number:04d}.pfm"
        depth = read_pfm(posed.contents(self._folder(raw, "Depths_raw", scene) / depth_name), f"{scene}/{depth_name}")
        photo_name = f"rect_{number + 1:03d}_{LIGHT}_r5000.png"
        photo = image(self._folder(raw, "Rectified", scene) / photo_name, f"{scene}/{photo_name}")
        K, pose = cam.K, posed.inverse(cam.cam_T_world, f"{scene}/{key}")
        pose[:3, 3] *= METRES
        camera = posed.camera(K[0, 0], K[1, 1], K[0, 2], K[1, 2], photo, first=0.5)
        return posed.PosedFrame(photo, camera, pose, depth * np.float32(METRES))

    def _folder(self, raw, part, scene):
        """A scan's folder, which some copies call scan1_train."""
        return next((f for f in (raw / part / scene, raw / part / f"{scene}_train") if f.is_dir()), raw / part / scene)
