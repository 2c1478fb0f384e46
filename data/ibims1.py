"""iBims-1: 100 indoor photos with depth from a laser scanner."""

import pathlib
import re

import numpy as np

from vlm3_jax.builders import common
from vlm3_jax.builders.readers.raster import read_mask, read_steps, same_size
from vlm3_jax.camera import Camera
from vlm3_jax.errors import BadRecord
from vlm3_jax.records import Record, View, encode_depth

# uint16 over its whole range stands for 50 m.
SCALE = 50 / 65535


class IBims1(common.Builder):
    """Each photo with its dense depth; z, as planes through the labels show.

    Pixels that mask_invalid or mask_transp (glass) have as 0 have no depth, as in the authors' evaluation; with
    `depthlm` those behind glass keep theirs, as in DepthLM's bundle (same unit, same kind).
    """

    name = "ibims1"
    title = "iBims-1"
    folder = "bench"
    splits = ("test",)
    held_out = "test"
    layout = (
        "ibims1_core_raw/{rgb,depth,mask_invalid,mask_transp}/NAME.png, ibims1_core_raw/calib/NAME.txt, imagelist.txt"
    )
    labels = "dense z in metres, in steps of 50 m / 65535"
    licence = "CC BY-NC-SA 4.0, lmf.bv.tum.de (iBims-1)"
    checked = "fixture; the unit on 70 real images' labels, whose steps it explains"
    doubts = ("whether mask_transp is 0 at glass (as in the authors' code), not seen on an original mask",)
    test = "tests/builders/test_ibims1.py"
    honours_depthlm = True

    def frames(self, raw: pathlib.Path, split: str) -> list[common.Item]:
        """The names of imagelist.txt, or of the photos where that list is missing."""
        folder = raw / "ibims1_core_raw"
        common.need_files([folder / part for part in ("rgb", "depth", "calib", "mask_invalid", "mask_transp")])
        lists = [path for path in (raw / "imagelist.txt", folder / "imagelist.txt") if path.exists()]
        names = lists[0].read_text().split() if lists else [path.stem for path in (folder / "rgb").glob("*.png")]
        return common.by_key(common.Item(name, name, {}) for name in names)

    def record(self, raw: pathlib.Path, item: common.Item) -> Record:
        """A photo with its depth map."""
        folder, name = raw / "ibims1_core_raw", item.key
        stored = common.image(folder / "rgb" / f"{name}.png", f"rgb/{name}.png")

        def same(part, read):
            return same_size(read(folder / part / f"{name}.png", f"{part}/{name}"), stored.width, stored.height, part)

        depth = same("depth", read_steps) * SCALE
        valid = same("mask_invalid", read_mask)
        if not self.options.depthlm:
            valid = valid & same("mask_transp", read_mask)
        calibration = folder / "calib" / f"{name}.txt"
        try:
            fx, fy, cx, cy = map(float, re.split(r"[,\s]+", calibration.read_text().strip()))
        except (FileNotFoundError, ValueError):
            raise BadRecord(f"calib/{name}.txt: expected the four numbers fx, fy, cx, cy") from None
        camera = Camera(fx, fy, cx, cy, stored.width, stored.height).plausible(f"calib/{name}.txt")
        depth_map = encode_depth(np.where(valid, depth, 0), "z", SCALE, name=f"depth/{name}")
        return Record(name, (View(stored, camera),), depth_maps=(depth_map,), scene=item.scene)
