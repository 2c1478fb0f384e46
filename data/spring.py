"""Spring: a rendered stereo film with disparity of twice the resolution of its frames."""

import re

import numpy as np

from vlm3_jax.builders import posed
from vlm3_jax.builders.common import Skip, image, subfolders
from vlm3_jax.builders.readers import raster
from vlm3_jax.builders.readers.numbers import read_rows
from vlm3_jax.errors import BadRecord
from vlm3_jax.formats.hdf5 import read_array

BASELINE_M = 0.065
VAL = ("0013", "0023", "0037")
"""MapAnything's."""
EVEN = 0.05
"""The four values of a pixel must be this near to one another, or the pixel is on an edge."""


class Spring(posed.PairBuilder):
    """cam_data/intrinsics.txt (fx fy cx cy) and extrinsics.txt (world-to-camera) have a line for each frame.

    The right camera is the left one 0.065 m to its right. Disparities (dsp5: HDF5) are 3840x2160 and in pixels of the
    frames, which are 1920x1080: the middle of a pixel is where four of them meet, so a pixel takes their mean. (Every
    second one, as others take, lies a quarter of a pixel to the left and up.) Sky has none. People move. `test` has
    neither depth nor poses and is no split.
    """

    name, title = "spring", "Spring"
    splits, held_out = ("train", "val"), "val"
    layout = "train/<0001>/{frame_left, disp1_left, ..._right, cam_data/{in,ex}trinsics.txt, maps/skymap_left}"
    labels = "z-depth in metres, poses; pairs of both cameras within 4 frames"
    licence = "CC BY 4.0; spring-benchmark.org"
    doubts = ("half a pixel of the principal point", "that frame 0001 is the first line of the cameras")
    test = "tests/builders/test_spring.py"
    needs = ("h5py",)
    window = 8

    def scenes(self, raw, split):
        """Scenes of train/, left and right by turns."""
        for folder in subfolders(raw / "train", "folders such as 0001"):
            if (folder.name in VAL) == (split == "val"):
                found = []
                for side in ("left", "right"):
                    for path in (folder / f"frame_{side}").glob(f"frame_{side}_*.png"):
                        if number := re.fullmatch(rf"frame_{side}_(\d+)\.png", path.name):
                            found.append({"key": f"{number[1]}_{side}", "number": number[1], "side": side})
                yield folder.name, sorted(found, key=lambda frame: frame["key"])

    def frame(self, raw, scene, data):
        """Image, disparity, sky and the frame's lines of the cameras."""
        folder, number, side, name = raw / "train" / scene, data["number"], data["side"], f"{scene}/{data['key']}"
        cameras = [
            read_rows(posed.contents(folder / "cam_data" / f"{part}.txt"), f"{scene}/{part}.txt", columns)
            for part, columns in (("intrinsics", 4), ("extrinsics", 16))
        ]
        line = int(number) - 1
        if not 0 <= line < min(map(len, cameras)):
            raise Skip("a frame has no line in cam_data")
        photo = image(folder / f"frame_{side}" / f"frame_{side}_{number}.png", f"{name}.png")
        K, cam_T_world = cameras[0][line], cameras[1][line].reshape(4, 4).copy()
        if side == "right":
            cam_T_world[0, 3] -= BASELINE_M
        try:
            disparity = read_array(folder / f"disp1_{side}" / f"disp1_{side}_{number}.dsp5", "disparity")
        except FileNotFoundError:
            raise Skip(f"a frame has no file in disp1_{side}") from None
        sky = folder / "maps" / f"skymap_{side}" / f"skymap_{side}_{number}.png"
        if sky.exists():
            is_sky = fitted(raster.grey(sky.read_bytes(), sky.name), disparity.shape) > 0
            disparity = np.where(is_sky, np.nan, disparity)
        with np.errstate(divide="ignore", invalid="ignore"):
            depth = K[0] * BASELINE_M / middles(disparity, name)
        camera = posed.camera(*K, photo, first=0.5)
        return posed.PosedFrame(photo, camera, posed.inverse(cam_T_world, name), depth)


def middles(values: np.ndarray, name: str) -> np.ndarray:
    """The mean of each 2 x 2 block [H / 2, W / 2]; NaN where one of the four is none or they are not `EVEN`."""
    if values.ndim != 2 or values.shape[0] % 2 or values.shape[1] % 2:
        raise BadRecord(f"{name}: disparity of shape {list(values.shape)}, expected twice the frame's height and width")
    four = values.astype(np.float64).reshape(values.shape[0] // 2, 2, -1, 2).transpose(0, 2, 1, 3)
    four = four.reshape(*four.shape[:2], 4)
    low, high = four.min(-1), four.max(-1)
    return np.where((low > 0) & (high <= low * (1 + EVEN)) & (high < np.inf), four.mean(-1), np.nan)


def fitted(mask: np.ndarray, shape) -> np.ndarray:
    """A mask of another size, brought to this shape by repeating or leaving out pixels."""
    rows, columns = (np.arange(n) * m // n for n, m in zip(shape, mask.shape, strict=True))
    return mask[rows[:, None], columns]
