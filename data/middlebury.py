"""Middlebury 2014: high-resolution stereo pairs of still lifes with disparities from structured light."""

import re

import numpy as np

from vlm3_jax.builders import posed
from vlm3_jax.builders.common import image, subfolders
from vlm3_jax.builders.readers.pfm import read_pfm
from vlm3_jax.errors import BadRecord, UserError

METRES = 1e-3


class Middlebury(posed.PairBuilder):
    """The two views of each scene, rectified, with their disparities d in pixels: z = baseline f / (d + doffs).

    calib.txt holds both cameras, doffs (the difference of their principal points) and the baseline in millimetres; the
    second camera stands that far to the right. inf is where nothing was measured. Where disp1 is missing, the second
    view's depth is the first's moved there, the nearest surface in front.
    """

    name, title = "middlebury", "Middlebury 2014 (stereo)"
    folder = "bench"
    splits, held_out = ("test",), "test"
    layout = "SCENE-perfect/{im0.png, im1.png, disp0.pfm, disp1.pfm, calib.txt}"
    labels = "dense z in metres, poses; the published pairs"
    licence = "for research, to be cited (Scharstein et al., GCPR 2014); vision.middlebury.edu/stereo/data/scenes2014"
    checked = "fixture; one real scene at quarter resolution (Motorcycle), looked at"
    doubts = ("whether principal points count pixels from 0",)
    test = "tests/builders/test_middlebury.py"
    covisible = -1.0
    """The pairs are published: all are kept, whatever they share."""

    def scenes(self, raw, split):
        """Every folder with a calibration is a scene of two frames."""
        found = [
            folder.name for folder in subfolders(raw, "a folder for each scene") if (folder / "calib.txt").exists()
        ]
        if not found:
            raise UserError(f"{raw}: none of its folders has a calib.txt")
        return [(scene, [{"key": "im0"}, {"key": "im1"}]) for scene in found]

    def pairs(self, raw, scene, frames):
        """The first view with the second."""
        return iter([(0, 1)])

    def frame(self, raw, scene, data):
        """One view."""
        folder, view = raw / scene, int(data["key"][-1])
        calibration = _calibration(posed.contents(folder / "calib.txt").decode("utf-8", "replace"), scene)
        photo = image(folder / f"im{view}.png", f"{scene}/im{view}.png")
        f, _, cx, _, fy, cy, *_ = calibration[f"cam{view}"]
        baseline, doffs = calibration["baseline"][0], calibration["doffs"][0]
        pose = np.eye(4)
        pose[0, 3] = view * baseline * METRES
        with np.errstate(divide="ignore", invalid="ignore"):
            depth = baseline * f / (self._disparity(folder, scene, view) + doffs) * METRES
        if depth.shape != (photo.height, photo.width):
            raise BadRecord(f"{scene}/disp{view}.pfm: {depth.shape[::-1]}, its image {photo.width} x {photo.height}")
        return posed.PosedFrame(photo, posed.camera(f, fy, cx, cy, photo), pose, depth)

    def _disparity(self, folder, scene, view) -> np.ndarray:
        """float64 [H, W]; NaN where there is none."""
        path = folder / f"disp{view}.pfm"
        if view and not path.exists():
            return _moved(self._disparity(folder, scene, 0))
        disparity = read_pfm(posed.contents(path), f"{scene}/{path.name}").astype(np.float64)
        return np.where(np.isfinite(disparity), disparity, np.nan)


def _calibration(text: str, scene: str) -> dict[str, list[float]]:
    """The numbers of each line NAME=VALUES."""
    found = {}
    for line in text.splitlines():
        name, equals, values = line.partition("=")
        if equals:
            found[name.strip()] = [float(word) for word in re.findall(r"[-+]?\d+\.?\d*(?:[eE][-+]?\d+)?", values)]
    for name, count in (("cam0", 9), ("cam1", 9), ("doffs", 1), ("baseline", 1)):
        if len(found.get(name, ())) != count:
            raise BadRecord(f"{scene}/calib.txt: expected {count} numbers after {name}=")
    return found


def _moved(disparity: np.ndarray) -> np.ndarray:
    """The first view's disparities at the pixels of the second that they lead to; the largest, which is nearest."""
    rows, columns = np.nonzero(np.isfinite(disparity))
    values = disparity[rows, columns]
    target = np.rint(columns - values).astype(np.int64)
    inside = (target >= 0) & (target < disparity.shape[1])
    moved = np.full(disparity.shape, -np.inf)
    np.maximum.at(moved, (rows[inside], target[inside]), values[inside])
    return np.where(np.isfinite(moved), moved, np.nan)
