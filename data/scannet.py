"""ScanNet: rooms filmed with a depth sensor, pairs of frames."""

import numpy as np

from vlm3_jax.builders import posed
from vlm3_jax.builders.common import Skip, image, need_files
from vlm3_jax.builders.readers.numbers import read_rows
from vlm3_jax.builders.readers.raster import read_steps
from vlm3_jax.errors import BadRecord, UserError

MILLIMETRES = 1e-3


class ScanNet(posed.PairBuilder):
    """Frames as the set's SensReader writes them, each with four of the sixteen that follow.

    Poses are camera-to-world, OpenCV's axes, metres; those of frames whose tracking was lost are not finite, and the
    frames are skipped. Depth (640x480, z in millimetres) covers the colour image; where it was not extracted the pairs
    have poses alone, and are kept whatever they share. scannetv2_{train,val,test}.txt are the release's lists of
    scenes.
    """

    name, title = "scannet", "ScanNet"
    folder = "bench"
    splits, held_out = ("train", "val", "test"), "test"
    layout = (
        "scannetv2_{train,val,test}.txt, scans/SCENE/{color/N.jpg, depth/N.png, pose/N.txt, "
        "intrinsic/intrinsic_color.txt}"
    )
    labels = "z-depth in metres where it is there, poses; pairs within 16 frames"
    licence = "ScanNet terms of use, for research; scan-net.org"
    checked = (
        "fixture; poses of four real frames, whose matches lie 1 to 5 pixels off epipolar lines (inverted: 6 to 49)"
    )
    doubts = ("that depth covers the colour image to the pixel: their intrinsics differ by a thousandth",)
    test = "tests/builders/test_scannet.py"

    def scenes(self, raw, split):
        """The scenes of a list that are there; a frame is an image, its number the name of its other files."""
        path = raw / f"scannetv2_{split}.txt"
        need_files([path, raw / "scans"])
        found = False
        for scene in sorted(path.read_text().split()):
            folder = raw / "scans" / scene / "color"
            if folder.is_dir():
                found = True
                files = (file for file in folder.iterdir() if file.stem.isdigit())
                frames = sorted((int(file.stem), file.name, file.stem) for file in files)
                yield scene, [{"key": f"{n:06d}", "file": name, "stem": stem} for n, name, stem in frames]
        if not found:
            raise UserError(f"{raw / 'scans'}: none of the scenes of {path.name} has a folder color in it")

    def frame(self, raw, scene, data):
        """Photo, camera, pose, and depth where there is some."""
        folder, stem = raw / "scans" / scene, data["stem"]
        photo = image(folder / "color" / data["file"], f"{scene}/{data['file']}")
        name = f"{scene}/intrinsic_color.txt"
        K = read_rows(posed.contents(folder / "intrinsic" / "intrinsic_color.txt"), name, 4)
        if K.shape != (4, 4):
            raise BadRecord(f"{name}: expected a matrix of 4 x 4 numbers")
        camera = posed.camera(K[0, 0], K[1, 1], K[0, 2], K[1, 2], photo)
        try:
            pose = np.array(posed.contents(folder / "pose" / f"{stem}.txt").split(), np.float64).reshape(4, 4)
        except ValueError:
            raise BadRecord(f"{scene}/pose/{stem}.txt: expected a matrix of 4 x 4 numbers") from None
        if not np.isfinite(pose).all():
            raise Skip("the tracking of a frame was lost")
        path = folder / "depth" / f"{stem}.png"
        depth = read_steps(path, f"{scene}/depth/{stem}.png") * MILLIMETRES if path.exists() else None
        return posed.PosedFrame(photo, camera, pose, depth)
