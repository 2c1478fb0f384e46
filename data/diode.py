"""DIODE: photos with dense depth of a laser scanner, indoors and outdoors."""

import pathlib

import numpy as np

from vlm3_jax.builders import common
from vlm3_jax.builders.readers.raster import same_size
from vlm3_jax.camera import Camera
from vlm3_jax.errors import BadRecord
from vlm3_jax.records import Record, View, encode_depth
from vlm3_jax.records.map_files import read_npy

# Of all images (1024 x 768 px), from the set's devkit.
INTRINSICS = (886.81, 927.06, 512.0, 384.0)


class Diode(common.Builder):
    """Each photo with its depth (NAME_depth.npy, z in metres) where NAME_depth_mask.npy says that it is valid."""

    name = "diode"
    title = "DIODE"
    folder = "bench"
    splits = ("train", "val")
    held_out = "val"
    layout = "SPLIT/{indoors,outdoor}/scene_*/scan_*/NAME{.png,_depth.npy,_depth_mask.npy}"
    labels = "dense z in metres, in steps of 1 mm or of the farthest depth / 65535"
    licence = "MIT, diode-dataset.org"
    checked = "fixture"
    doubts = ("z or distance: the layout's notes say z",)
    test = "tests/builders/test_diode.py"

    def frames(self, raw: pathlib.Path, split: str) -> list[common.Item]:
        """All photos of a split."""
        root = raw / split
        common.subfolders(root, "the folders indoors and outdoor")
        found = (path.relative_to(root).with_suffix("") for path in root.glob("*/scene_*/scan_*/*.png"))
        return common.by_key(common.Item(path.as_posix(), path.parts[1], {"split": split}) for path in found)

    def record(self, raw: pathlib.Path, item: common.Item) -> Record:
        """A photo with its depth map."""
        stem = raw / item.data["split"] / item.key
        stored = common.image(stem.with_name(f"{stem.name}.png"), item.key)
        depth, mask = (_array(stem.with_name(f"{stem.name}_{part}.npy"), item.key) for part in ("depth", "depth_mask"))
        for values in (depth, mask):
            same_size(values, stored.width, stored.height, item.key)
        camera = Camera(*INTRINSICS, stored.width, stored.height)
        depth_map = encode_depth(np.where(mask > 0, depth, 0), "z", name=f"{item.key}_depth")
        return Record(item.key, (View(stored, camera),), depth_maps=(depth_map,), scene=item.scene)


def _array(path: pathlib.Path, name: str) -> np.ndarray:
    """[H, W]; depth is stored as [H, W, 1]."""
    try:
        values = read_npy(path.read_bytes(), f"{name}: {path.name}")
        return values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values
    except FileNotFoundError:
        raise BadRecord(f"{name}: no {path.name}") from None
