"""The generic street layout of a few frames, for tests of the layout itself and of everything that runs builders."""

import pathlib

import numpy as np

from tests.builders import files, truth, world

SIZE = 64, 48
ABOUT = {"depth_kind": "z", "depth_scale": 1 / 256}


def frame(number: int) -> truth.Frame:
    """Frames differ in camera and pose."""
    pose = world.pose(0.1 * number, -0.02 * number, -0.3, yaw=5.0 * number)
    return truth.Frame(50.0 + number, 52.0, 31.0, 24.5, *SIZE, pose)


def write(root: pathlib.Path, count: int, split: str = "train", kind: str = "z") -> pathlib.Path:
    """`count` frames of two scenes, written in no order."""
    files.dump(root / "about.json", ABOUT | {"depth_kind": kind})
    for number in np.random.default_rng(3).permutation(count):
        write_frame(root, split, f"scene{number % 2}", f"{number:03d}", frame(number), kind)
    return root


def write_frame(root, split: str, scene: str, name: str, shot: truth.Frame, kind: str = "z") -> None:
    """One frame."""
    seen = shot.seen()
    files.jpeg(root / split / "rgb" / scene / f"{name}.jpg", seen.rgb)
    files.png(root / split / "depth" / scene / f"{name}.png", files.steps(getattr(seen, kind), 256))
    intrinsics = [shot.fx, shot.fy, shot.cx, shot.cy, shot.width, shot.height]
    files.dump(root / split / "intrinsics" / scene / f"{name}.json", intrinsics)


def number(key: str) -> int:
    """Of the frame that an item's key names."""
    return int(key.split("/")[1])
