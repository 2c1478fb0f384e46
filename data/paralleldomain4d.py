"""ParallelDomain-4D: rendered traffic, seen at once by 19 cameras around the car."""

import numpy as np

from vlm3_jax.builders import posed
from vlm3_jax.builders.common import Skip, image, subfolders
from vlm3_jax.builders.readers import dgp
from vlm3_jax.errors import UserError
from vlm3_jax.formats.npz import read_npz
from vlm3_jax.pose import from_quaternion

OPEN_M = 500.0
"""Depth from here on is the sky."""
DEPTH = "6"
"""The number that DGP gives to annotations of depth."""


class ParallelDomain4D(posed.PairBuilder):
    """DGP's layout (`readers.dgp`), without an index: scene_*.json in each scene's folder.

    depth/<camera>/*.npz ("data") is z in metres. Poses are camera-to-world of OpenCV's camera axes; MapAnything turns
    the world as well, which changes no pair. Cars and people move between moments. One scene in 20 is held out.
    """

    name, title = "paralleldomain4d", "ParallelDomain-4D"
    splits, held_out = ("train", "val"), "val"
    layout = "scene_%06d/{rgb/<camera>/%018d.png, depth/<camera>/%018d.npz, scene_*.json, calibration/*.json}"
    labels = "z-depth in metres, poses; pairs of all cameras within 2 moments"
    licence = "see gcd.cs.columbia.edu"
    doubts = (
        "the camera's axes: as MapAnything has them",
        posed.HALF_A_PIXEL,
        "images: a docstring of MapAnything says npz",
    )
    test = "tests/builders/test_paralleldomain4d.py"
    window = 38

    def scenes(self, raw, split):
        """Folders with a scene file; all cameras of a moment, then the next."""
        found = False
        for folder in subfolders(raw, "folders such as scene_000000"):
            for path in sorted(folder.glob("scene_*.json"), key=str)[:1]:
                found = True
                if posed.one_in(folder.name, 20) == (split == "val"):
                    yield folder.name, self._frames(path)
        if not found:
            raise UserError(f"{raw}: expected scene_000000/scene_*.json and so on in it")

    def _frames(self, path) -> list[dict]:
        found = []
        for number, data in dgp.samples(path):
            for name, datum in sorted(data.items()):
                if datum.size:
                    paths = {"image": datum.file, "depth": datum.annotations.get(DEPTH, "")}
                    numbers = {"pose": list(datum.pose), "intrinsics": list(datum.intrinsics or ())}
                    found.append({"key": f"{number:06d}_{name}", **paths, **numbers})
        return found

    def frame(self, raw, scene, data):
        """Image and depth by the paths of the scene file."""
        if not data["depth"] or len(data["intrinsics"]) != 4:
            raise Skip("a frame has no depth or no intrinsics")
        folder, name = raw / scene, f"{scene}/{data['key']}"
        path = posed.below(folder, data["image"])
        if not path.exists():
            raise Skip("a frame has no image")
        photo = image(path, name)
        depth = read_npz(posed.contents(posed.below(folder, data["depth"])), name, "data").astype(np.float64)
        pose = from_quaternion(data["pose"][:4], data["pose"][4:])
        camera = posed.camera(*data["intrinsics"], photo, first=0.5)
        return posed.PosedFrame(photo, camera, pose, np.where(depth < OPEN_M, depth, np.nan))
