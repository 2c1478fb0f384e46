"""GTA-SfM's HDF5 files, one a walk through the game: image_<i>, K_<i>, pose_<i> and depth_<i> of every frame i."""

import pathlib
import typing

import numpy as np

from vlm3_jax.camera import Camera
from vlm3_jax.errors import BadRecord
from vlm3_jax.formats.hdf5 import dataset, opened
from vlm3_jax.records import ImageRef

PARTS = ("image", "K", "pose", "depth")


class Frame(typing.NamedTuple):
    """Image and camera; camera-to-world [4, 4] as it is stored (OpenCV); z float64 [H, W] in metres."""

    image: ImageRef
    camera: Camera
    world_T_cam: np.ndarray
    depth: np.ndarray


def frame_numbers(path: pathlib.Path) -> dict[int, bool]:
    """The numbers of the frames of a file, in order, and whether each has all its parts. BadRecord if it is none."""
    with opened(path) as file:
        keys = set(file)
    found = sorted(int(key[6:]) for key in keys if key.startswith("image_") and key[6:].isdigit())
    return {number: all(f"{part}_{number}" in keys for part in PARTS) for number in found}


def read_frame(file, number: int, name: str) -> Frame:
    """A frame of an opened file. BadRecord, calling it `name`, if a part is missing or damaged.

    One of its loaders (multi_view_stereonet) takes half a pixel off the principal point, the middle of W pixels then
    being (W - 1) / 2, as it is for a renderer: so do we.
    """
    data, *parts = (dataset(file, f"{part}_{number}", name) for part in PARTS)
    image = ImageRef.of_bytes(np.asarray(data, np.uint8).tobytes(), name)
    K, pose, depth = (np.asarray(part, np.float64) for part in parts)
    if K.shape != (3, 3) or depth.ndim != 2:
        raise BadRecord(f"{name}: K has shape {list(K.shape)}, depth {list(depth.shape)}")
    fx, fy, cx, cy = (float(v) for v in (K[0, 0], K[1, 1], K[0, 2], K[1, 2]))
    camera = Camera(fx, fy, cx - 0.5, cy - 0.5, image.width, image.height).plausible(name)
    return Frame(image, camera, pose, depth)
