"""Aria Synthetic Environments (ASE): walks through 100,000 rendered flats, seen by the fisheye camera of glasses."""

import re

import numpy as np

from vlm3_jax.builders import posed
from vlm3_jax.builders.common import Skip, encode, image, subfolders
from vlm3_jax.builders.readers import raster
from vlm3_jax.camera import Camera
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.pose import from_quaternion
from vlm3_jax.processor.undistort import Distortion

CALIBRATED = 704
FOCAL, CENTRE = 297.6375381033778, (357.6599197217746, 349.1922497127481)
LENS = Distortion(
    "fisheye624",
    (
        *(0.3650890375644368, -0.1738082418112771, -0.7534945484033189),
        *(2.434788882752295, -2.57786220300886, 0.8788483538598834),
        *(0.0008005198595407136, -0.000294237814554143, 0.0, 0.0, 0.0, 0.0),
    ),
)
DEVICE_T_CAMERA = from_quaternion(
    (0.9441858687689326, 0.32640934382849085, 0.029274992008313648, 0.033361059956531547),
    (-0.007530096566173914, -0.01090854984158026, -0.003598063315542823),
)
"""projectaria_tools' AseCalibrationProvider.cpp, for images of 704 x 704; pixel (0, 0) is the first one's centre."""
UPRIGHT = np.array([[0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
"""cam_T_upright: the camera lies on its side; its image turned clockwise by 90 degrees is upright."""
NOTHING = 65535
EVEN = 0.05
"""Distances this near to one another are of one surface, between whose pixels there is something to interpolate."""


class Ase(posed.PairBuilder):
    """The public release: vignette*.jpg, depth*.png along the ray in millimetres, trajectory.csv of the device.

    Images become those of a pinhole of the same focal length in the middle of as many pixels, upright, as MapAnything
    makes them; distances are interpolated there, where they are of one surface. A line of the trajectory is a frame:
    time in column 1, then from 3 on world_T_device as x y z and a quaternion x y z w. One flat in 20 is held out.
    """

    name, title = "ase", "Aria Synthetic Environments"
    splits, held_out = ("train", "val"), "val"
    layout = "<scene>/{rgb/vignette%07d.jpg, depth/depth%07d.png, trajectory.csv}"
    labels = "distance in metres, poses; pairs within 16 frames"
    licence = "ASE research licence; projectaria.com/datasets/ase"
    doubts = (
        "the lens and device_T_camera, as the tools' source has them",
        "MapAnything uses another, internal release",
    )
    test = "tests/builders/test_ase.py"

    def scenes(self, raw, split):
        """Folders with rgb/; a frame's number is its line of the trajectory."""
        for folder in subfolders(raw, "a folder for each scene"):
            if posed.one_in(folder.name, 20) == (split == "val"):
                names = sorted(path.name for path in (folder / "rgb").glob("vignette*.jpg"))
                found = [match for name in names if (match := re.fullmatch(r"vignette(\d{7})\.jpg", name))]
                yield folder.name, [{"key": match[1], "line": int(match[1])} for match in found]

    def frame(self, raw, scene, data):
        """Image and distances of a pinhole, upright."""
        folder, key, name = raw / scene, data["key"], f"{scene}/{data['key']}"
        world_T_device = read_trajectory(posed.contents(folder / "trajectory.csv"), scene)
        if data["line"] >= len(world_T_device):
            raise Skip("a frame has no line in trajectory.csv")
        photo = image(folder / "rgb" / f"vignette{key}.jpg", f"{name}.jpg")
        steps = raster.uint16(posed.contents(folder / "depth" / f"depth{key}.png"), f"{name}.png")
        if photo.width != photo.height or steps.shape != (photo.height, photo.width):
            raise BadRecord(f"{name}: expected image and depth of one square size, got {photo.width} x {photo.height}")
        stored, new = cameras(photo.width)
        pixels, _ = LENS.remove(photo.load(), stored, new)
        distance = interpolated(np.where((steps == 0) | (steps == NOTHING), np.nan, steps / 1000.0), stored, new)
        turned = encode(np.rot90(pixels, -1), f"{name}.jpg")
        pose = world_T_device[data["line"]] @ DEVICE_T_CAMERA @ UPRIGHT
        return posed.PosedFrame(turned, new, pose, np.rot90(distance, -1), "distance")


def cameras(size: int) -> tuple[Camera, Camera]:
    """The fisheye of images of `size` x `size` (focal length and centre), and the pinhole, which turns into itself."""
    scale = size / CALIBRATED
    cx, cy = (scale * (c + 0.5) - 0.5 for c in CENTRE)
    middle = (size - 1) / 2
    focal = FOCAL * scale
    return Camera(focal, focal, cx, cy, size, size), Camera(focal, focal, middle, middle, size, size)


def read_trajectory(data: bytes, name: str) -> list[np.ndarray]:
    """world_T_device [4, 4] of each line after the first."""
    try:
        rows = [line.split(",") for line in data.decode("utf-8", "replace").splitlines()[1:] if line.strip()]
        numbers = [[float(word) for word in row[3:10]] for row in rows]
        return [from_quaternion((n[6], *n[3:6]), n[:3]) for n in numbers]
    except (BadRecord, ValueError, IndexError) as error:
        raise UserError(
            f"{name}/trajectory.csv: expected time, x y z, qx qy qz qw from column 3 on ({error})"
        ) from None


def interpolated(distance: np.ndarray, stored: Camera, new: Camera) -> np.ndarray:
    """Distances of the stored image [H, W] at the pixels of the pinhole, NaN where they are not of one surface.

    The inverse distance is interpolated: along a plane it is almost linear.
    """
    grid = np.stack(np.meshgrid(np.arange(new.width), np.arange(new.height)), -1).reshape(-1, 2)
    points = LENS.distort_points(grid, stored, new)
    with np.errstate(invalid="ignore"):
        inside = ((points >= 0) & (points < np.array([stored.width, stored.height]) - 1)).all(-1)
    points = np.where(inside[:, None], points, 0)
    low = points.astype(np.int64)
    a, b = (points - low).T
    four = np.stack([distance[low[:, 1] + j, low[:, 0] + i] for j in (0, 1) for i in (0, 1)], -1)
    weights = np.stack([(1 - a) * (1 - b), a * (1 - b), (1 - a) * b, a * b], -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        even = four.max(-1) <= four.min(-1) * (1 + EVEN)
        value = 1 / (weights / four).sum(-1)
    return np.where(inside & even, value, np.nan).reshape(new.height, new.width)
