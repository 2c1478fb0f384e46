"""GTA-SfM: walks through a video game (GTA V), one HDF5 file each."""

from vlm3_jax.builders import posed
from vlm3_jax.builders.common import Skip
from vlm3_jax.errors import UserError
from vlm3_jax.formats.gta_sfm import frame_numbers, read_frame
from vlm3_jax.formats.hdf5 import opened


class GtaSfm(posed.PairBuilder):
    """image_<i> (bytes of a JPEG or PNG), K_<i>, pose_<i> (camera-to-world, OpenCV) and depth_<i> (z, metres).

    Train and test are regions of the map that do not touch. One loader (multi_view_stereonet) takes half a pixel off
    the principal point, the middle of W pixels then being (W - 1) / 2, as it is for a renderer: so do we.
    """

    name, title = "gta_sfm", "GTA-SfM"
    splits, held_out = ("train", "test"), "test"
    layout = "{train,test}[_hdf5]/<YYYYMMDD_HHMMSS>.hdf5"
    labels = "z-depth in metres, poses; pairs within 16 frames"
    licence = "not stated; github.com/HKUST-Aerial-Robotics/Flow-Motion-Depth"
    doubts = (posed.HALF_A_PIXEL, "camera-to-world: pairs share nothing if it is the inverse", "that depth is metres")
    test = "tests/builders/test_gta_sfm.py"
    needs = ("h5py",)

    def scenes(self, raw, split):
        """The files of train/ or train_hdf5/; a file is a scene."""
        folder = next((raw / n for n in (split, f"{split}_hdf5") if (raw / n).is_dir()), None)
        files = sorted(folder.glob("*.hdf5"), key=lambda path: path.name) if folder else []
        if not files:
            raise UserError(f"{raw}: expected {split}/*.hdf5 or {split}_hdf5/*.hdf5")
        for path in files:
            place = f"{folder.name}/{path.name}"
            yield path.stem, [{"key": f"{n:06d}", "number": n, "file": place} for n in frame_numbers(path)]

    def frame(self, raw, scene, data):
        """The four datasets of a number."""
        n, name = data["number"], f"{scene}/{data['key']}"
        with opened(posed.below(raw, data["file"])) as file:
            if f"depth_{n}" not in file or f"pose_{n}" not in file:
                raise Skip("a frame has no depth or no pose")
            return posed.PosedFrame(*read_frame(file, n, name))
