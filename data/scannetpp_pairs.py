"""ScanNet++, pairs of DSLR photos."""

from vlm3_jax.builders import posed
from vlm3_jax.builders.common import Item
from vlm3_jax.builders.scannetpp import ScanNetppDslr

VAL = (
    *("1c7a683c92", "2a1b555966", "3a43c7b8d2", "4aef651da7", "06bc6d1b24", "7f22d5ef1b", "7f77abce34", "8ea517a2fc"),
    *("29c7afafed", "41eb967018", "77b40ce601", "086f09d6e3", "307e3262f1", "639f2c4d5a", "894dbd41f1", "898a7dfd0c"),
    *("2779f8f9e2", "151178afd7", "182932a4f3", "635852d56e", "9906136b57", "af112b8903", "b0f057c684", "b37177e6c8"),
    *("b119249da7", "be8367fcbe", "c8fc01c453", "e1fb8626c8", "e2caaaf5b5", "fe3fc057a1"),
)
TEST = (
    *("0e900bcc5c", "0eba3981c9", "1cbb105c6a", "3c8d535d49", "5d902f1593", "6bd39ac392", "6c14d5fd01", "7c31a42404"),
    *("9bfbc75700", "13b4efaf62", "062e5a23a6", "95b9971d01", "246fe09e98", "637a27d04b", "725b8f0cba", "413085a827"),
    *("696317583f", "a4c043ac48", "a9e4791c7e", "b0b004c40f", "c3bc5e82c5", "c31ebd4b22", "cba701332a", "cc5ea8026c"),
    *("cec8312f4e", "e3b3b0d0c7", "e667e09fe6", "eaa6c90310", "f9397af4cb", "fb893ffaf3"),
)
"""MapAnything's scenes, all of version 2, so that none is in DUSt3R's training; its benchmark asks about TEST."""


class ScanNetppPairs(posed.PairBuilder):
    """Photos in the order of their names, which is that of taking them; each is read as `ScanNetppDslr` reads it.

    Undistorted, with rendered depth and pose; bad ones and those without rendered depth are skipped. The scenes of the
    set's own lists are split as MapAnything splits them, which says which 30 are held out for the evaluation of poses.
    """

    name, title = "scannetpp_pairs", "ScanNet++ (pairs, DSLR)"
    splits, held_out = ("train", "val", "test"), "test"
    layout = ScanNetppDslr.layout
    labels = "z-depth in metres, poses; pairs within 16 photos"
    licence = ScanNetppDslr.licence
    doubts = (*ScanNetppDslr.doubts, "that the 30 held-out scenes of the paper are MapAnything's")
    test = "tests/builders/test_scannetpp_pairs.py"

    def scenes(self, raw, split):
        """The scenes of both lists of the set, by MapAnything's split."""
        reader, found = ScanNetppDslr(self.options), {}
        for part in reader.splits:
            for item in reader.frames(raw, part):
                place = "val" if item.scene in VAL else "test" if item.scene in TEST else "train"
                if place == split:
                    data = {"key": item.key.split("/")[1], "item": item.data}
                    found.setdefault(item.scene, {})[data["key"]] = data
        return [(scene, [frames[key] for key in sorted(frames)]) for scene, frames in sorted(found.items())]

    def frame(self, raw, scene, data):
        """The record of a photo, its map as depth."""
        record = ScanNetppDslr(self.options).record(raw, Item(f"{scene}/{data['key']}", scene, data["item"]))
        (view,), (depth,) = record.views, record.depth_maps
        return posed.PosedFrame(view.image, view.camera, view.world_T_cam, depth.load(), depth.kind)
