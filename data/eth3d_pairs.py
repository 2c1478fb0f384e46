"""ETH3D, pairs of photos: the evaluation of matches and of poses."""

from vlm3_jax.builders import posed
from vlm3_jax.builders.common import Item
from vlm3_jax.builders.eth3d import Eth3d


class Eth3dPairs(posed.PairBuilder):
    """Photos in the order of their names, each with two of the sixteen that follow; read as `Eth3d` reads them.

    Undistorted, with depth and pose. Pairs share more than 2.5 % of what they see, as in MapAnything's benchmark.
    """

    name, title = "eth3d_pairs", "ETH3D (pairs)"
    folder = "bench"
    splits, held_out = ("test",), "test"
    layout = Eth3d.layout
    labels = "dense z in metres, poses; pairs within 16 photos"
    licence = Eth3d.licence
    doubts = (*Eth3d.doubts, "UFM's list of pairs, and that of the pose evaluation, are not public")
    test = "tests/builders/test_eth3d.py"
    covisible = 0.025
    partners = 2

    def scenes(self, raw, split):
        """The scenes that are there, each with its photos."""
        found: dict[str, list[dict]] = {}
        for item in Eth3d(self.options).frames(raw, "train"):
            found.setdefault(item.scene, []).append({"key": item.key.split("/")[1], "item": item.data})
        return sorted(found.items())

    def frame(self, raw, scene, data):
        """The record of a photo, its map as depth."""
        record = Eth3d(self.options).record(raw, Item(f"{scene}/{data['key']}", scene, data["item"]))
        (view,), (depth,) = record.views, record.depth_maps
        return posed.PosedFrame(view.image, view.camera, view.world_T_cam, depth.load(), depth.kind)
