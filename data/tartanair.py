"""TartanAir V2: flights through 65 rendered environments, and pairs of wide baseline drawn from them (TA-WB)."""

import numpy as np

from vlm3_jax.builders import posed
from vlm3_jax.builders.common import Skip, encode, image, need_files, subfolders
from vlm3_jax.builders.readers import raster
from vlm3_jax.builders.readers.numbers import read_json, read_rows
from vlm3_jax.builders.readers.tartanair import NED, place, split_of, without_sky
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.formats.hdf5 import dataset, opened
from vlm3_jax.formats.npz import read_npz
from vlm3_jax.pose import from_quaternion


class TartanAir(posed.PairBuilder):
    """The front camera on the left, 640x640, 90 degrees: f = c = 320, pixels counted from the corner (tartanairpy).

    A line of pose_lcam_front.txt is a frame: tx ty tz qx qy qz qw, world_T_camera in north-east-down axes. A depth PNG
    holds float32 metres (z) in four bytes, in the order of OpenCV's channels; where the sky is painted there is none.
    Held-out environments are those of UFM and MapAnything.
    """

    name, title = "tartanair", "TartanAir V2"
    splits, held_out = ("train", "val", "test"), "val"
    layout = "<Env>/Data_{easy,hard}/P%03d/{image_lcam_front, depth_lcam_front, pose_lcam_front.txt}"
    labels = "z-depth in metres, poses; pairs within 16 frames"
    licence = "CC BY 4.0; tartanair.org"
    doubts = ("where the sky begins: measured by MapAnything on TA-WB's maps",)
    test = "tests/builders/test_tartanair.py"

    def scenes(self, raw, split):
        """Trajectories of the split's environments; a frame is an image, its number the line of its pose."""
        found = False
        for environment in subfolders(raw, "a folder for each environment"):
            for folder in sorted(environment.glob("Data_*/P*"), key=str):
                found = True
                if split_of(environment.name) == split:
                    name = f"{environment.name}/{folder.parent.name}/{folder.name}"
                    images = sorted(path.name for path in (folder / "image_lcam_front").glob("*_lcam_front.png"))
                    yield name, [{"key": file[:6], "line": int(file[:6])} for file in images if file[:6].isdigit()]
        if not found:
            raise UserError(f"{raw}: expected <Env>/Data_easy/P000 and so on in it")

    def frame(self, raw, scene, data):
        """Image, depth and the frame's line of the poses."""
        folder, key, name = posed.below(raw, scene), data["key"], f"{scene}/{data['key']}"
        poses = read_rows(posed.contents(folder / "pose_lcam_front.txt"), f"{scene}/pose_lcam_front.txt", 7)
        if data["line"] >= len(poses):
            raise Skip("a frame has no pose")
        x, y, z, qx, qy, qz, qw = poses[data["line"]]
        pose = from_quaternion((qw, qx, qy, qz), (x, y, z))
        photo = image(folder / "image_lcam_front" / f"{key}_lcam_front.png", f"{name}.png")
        depth = raster.float_bgra(
            posed.contents(folder / "depth_lcam_front" / f"{key}_lcam_front_depth.png"), f"{name}_depth.png"
        )
        focal, middle = photo.width / 2, photo.width / 2
        camera = posed.camera(focal, focal, middle, middle, photo, first=0.5)
        environment = scene.split("/")[0]
        return posed.PosedFrame(photo, camera, NED @ pose @ NED.T, without_sky(depth, environment))


class TartanAirWideBaseline(posed.PairBuilder):
    """Pairs as UFM drew them, with the cameras that MapAnything's release adds (TA-WB-MapAnything).

    <split>/*.json say in which HDF5 file and where in it a pair lies; <split>_camera_data holds camera-to-world
    (OpenCV) and K of both views, and the environment of each. Depth is z in metres. The published splits are kept.
    """

    name, title = "tartanair_wb", "TartanAir V2 wide baseline (TA-WB)"
    splits, held_out = ("train", "val", "test"), "test"
    layout = "{train,val,test}/*.{h5,json}, {split}_camera_data/{cam1,cam2}_{extrinsics,intrinsics}.npz, metadata.json"
    labels = "z-depth in metres, poses; the published pairs"
    licence = "CC BY 4.0 (TartanAir); huggingface.co/datasets/infinity1096/TA-WB-MapAnything"
    doubts = ("half a pixel: as in TartanAir V2",)
    test = "tests/builders/test_tartanair.py"
    needs = ("h5py",)
    covisible = -1.0
    """The pairs are published: all are kept, whatever they share."""

    def scenes(self, raw, split):
        """One list of pairs a place: frames of both views by turns."""
        cameras = self._cameras(raw, split)
        rows = self._metadata(raw / f"{split}_camera_data" / "metadata.json")
        found: dict[str, list] = {}
        for pair, (file, index) in sorted(self._index(raw / split).items()):
            if pair >= min(len(rows), *(len(values) for values in cameras.values())):
                raise UserError(f"{raw}: pair {pair} of {split} has no camera or no metadata")
            frames = found.setdefault(place(rows[pair][0]), [])
            for view in (0, 1):
                data = {"key": f"{pair:08d}_{view}", "file": f"{split}/{file}", "index": index, "view": view}
                data |= {name: cameras[f"cam{view + 1}_{name}"][pair].tolist() for name in ("extrinsics", "intrinsics")}
                frames.append(data | {"environment": rows[pair][view]})
        return sorted(found.items())

    def pairs(self, raw, scene, frames):
        """Each with the next."""
        return ((n, n + 1) for n in range(0, len(frames), 2))

    def _cameras(self, raw, split) -> dict[str, np.ndarray]:
        folder = raw / f"{split}_camera_data"
        names = [f"cam{view}_{part}" for view in (1, 2) for part in ("extrinsics", "intrinsics")]
        need_files([raw / split, *(folder / f"{name}.npz" for name in names), folder / "metadata.json"])
        try:
            return {name: read_npz((folder / f"{name}.npz").read_bytes(), f"{name}.npz", "arr_0") for name in names}
        except BadRecord as error:
            raise UserError(f"{folder}: {error}") from None

    def _metadata(self, path) -> list[tuple[str, str]]:
        """A table as pandas splits it: the environments of both views, by pair."""
        try:
            tree = read_json(path.read_bytes(), path.name)
            columns = [tree["columns"].index(name) for name in ("img1_env", "img2_env")]
            return [tuple(str(row[column]) for column in columns) for row in tree["data"]]
        except (BadRecord, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise UserError(f"{path}: expected a table with img1_env and img2_env ({error})") from None

    def _index(self, folder) -> dict[int, tuple[str, int]]:
        """Pair -> file and index in it, of all JSON files that map numbers."""
        found = {}
        for path in sorted(folder.glob("*.json"), key=str):
            tree = read_json(path.read_bytes(), path.name)
            if not isinstance(tree, dict) or not all(key.isdigit() for key in tree):
                continue
            for key, value in tree.items():
                file, index = (value["file_name"], value["file_index"]) if isinstance(value, dict) else value
                found[int(key)] = str(file), int(index)
        if not found:
            raise UserError(f"{folder}: no JSON file in it maps pairs to HDF5 files")
        return found

    def frame(self, raw, scene, data):
        """One view of a pair."""
        name, view = data["key"], data["view"]
        with opened(posed.below(raw, data["file"])) as file:
            pixels, depth = (dataset(file, f"{part}{view}", name, data["index"]) for part in ("img", "depth"))
        if pixels.ndim != 3 or pixels.shape[2] != 3:
            raise BadRecord(f"{name}: img{view} has shape {list(pixels.shape)}, expected height, width, 3")
        photo = encode(pixels.astype(np.uint8), f"{name}.jpg")
        K = np.array(data["intrinsics"])
        camera = posed.camera(K[0, 0], K[1, 1], K[0, 2], K[1, 2], photo, first=0.5)
        return posed.PosedFrame(photo, camera, np.array(data["extrinsics"]), without_sky(depth, data["environment"]))
