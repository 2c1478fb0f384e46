"""DL3DV-10K: walks through places with a phone or a drone, with poses and no depth."""

import dataclasses
import functools
import pathlib

import numpy as np

from vlm3_jax.builders import posed
from vlm3_jax.builders.common import Skip, encode, image, subfolders
from vlm3_jax.builders.readers import rigid
from vlm3_jax.builders.readers.numbers import read_json
from vlm3_jax.camera import Camera
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.formats import colmap
from vlm3_jax.processor.undistort import Distortion
from vlm3_jax.records import Matches

FOLDERS = ("images", "images_2", "images_4", "images_8")
WIDEST_TURN_DEG = 60.0


class Dl3dv(posed.PairBuilder):
    """transforms.json is nerfstudio's: OPENCV intrinsics of the full size, camera-to-world of OpenGL's axes.

    Intrinsics are COLMAP's (first pixel's centre 0.5, 0.5) and are scaled to the images that are there (images, or the
    smaller releases' images_4, images_8); distortion is removed. There is no depth: records hold poses up to scale, of
    frames that look at most 60 degrees apart. Where the scene's COLMAP model is there (colmap/sparse/0), the points
    that two frames share are their matches, and covisibility is the share of them. Held out are the hashes of
    DL3DV-Benchmark: put its benchmark-meta.csv into the raw folder.
    """

    name, title = "dl3dv", "DL3DV-10K"
    splits, held_out = ("train", "val"), "val"
    metric = False
    layout = "<1K..11K>/<hash>/{transforms.json, images[_4]/frame_%05d.png}, benchmark-meta.csv"
    labels = "poses up to scale, matches of COLMAP's points if its model is there, no depth; pairs within 10 frames"
    licence = "DL3DV-10K terms of use (non-commercial); huggingface.co/DL3DV"
    doubts = (
        "the columns of benchmark-meta.csv: any word of 64 hexadecimal digits counts",
        "the names of images in its COLMAP models: frames are found by the name without folder and suffix",
    )
    test = "tests/builders/test_dl3dv.py"
    window = 10

    def scenes(self, raw, split):
        """Folders with transforms.json below 1K to 11K; a scene is called <K>_<hash>."""
        held_out = self._held_out(raw)
        groups = [group for group in subfolders(raw, "folders 1K to 11K") if group.name.endswith("K")]
        if not groups:
            raise UserError(f"{raw}: expected folders 1K to 11K in it")
        for group in groups:
            for folder in subfolders(group, "a folder for each scene"):
                if (folder.name in held_out) == (split == "val") and (folder / "transforms.json").exists():
                    yield f"{group.name}_{folder.name}", self._frames(raw, folder)

    def _held_out(self, raw) -> set[str]:
        path = raw / "benchmark-meta.csv"
        if not path.exists():
            raise UserError(
                f"{path}: not there; it says which scenes are held out (dataset DL3DV/DL3DV-Benchmark of Hugging Face)"
            )
        words = path.read_text("utf-8").replace(",", " ").replace('"', " ").split()
        return {word for word in words if len(word) == 64 and set(word) <= set("0123456789abcdef")}

    def _frames(self, raw, folder) -> list[dict]:
        names = sorted(_transforms(folder / "transforms.json")["frames"])
        return [{"key": name, "folder": str(folder.relative_to(raw))} for name in names]

    def frame(self, raw, scene, data):
        """An image free of distortion."""
        photo, stored, distortion = self._stored(raw, scene, data)
        pose = np.array(_transforms(raw / data["folder"] / "transforms.json")["frames"][data["key"]]) @ rigid.CV_T_GL
        return posed.PosedFrame(*undistorted(photo, stored, distortion), pose)

    def _stored(self, raw, scene, data):
        """Image, camera and lens as they are stored."""
        folder, key = posed.below(raw, data["folder"]), data["key"]
        tree, name = _transforms(folder / "transforms.json"), f"{scene}/{key}"
        found = next((path for part in FOLDERS if (path := folder / part / f"{key}.png").exists()), None)
        if found is None:
            raise Skip("a frame has no image")
        photo = image(found, f"{name}.png")
        scale = np.array([photo.width / tree["w"], photo.height / tree["h"]])
        fx, fy = np.array(tree["focal"]) * scale
        cx, cy = np.array(tree["centre"]) * scale
        stored = posed.camera(fx, fy, cx, cy, photo, first=0.5)
        return photo, stored, Distortion("opencv", tree["distortion"])

    def two_frames(self, raw, scene, frames):
        """Skip for frames that look too far apart to share much."""
        found = super().two_frames(raw, scene, frames)
        cosine = found[0].world_T_cam[:3, 2] @ found[1].world_T_cam[:3, 2]
        if cosine < np.cos(np.radians(WIDEST_TURN_DEG)):
            raise Skip(f"its views look more than {WIDEST_TURN_DEG:g} degrees apart")
        return found

    def record(self, raw, item):
        """With the matches of the scene's COLMAP model, if it is there."""
        record, frames = super().record(raw, item), item.data["frames"]
        folder = posed.below(raw, frames[0]["folder"]) / "colmap" / "sparse" / "0"
        if not (folder / "images.bin").exists() and not (folder / "images.txt").exists():
            return record
        model = _model(folder)
        if not all(frame["key"] in model for frame in frames):
            raise Skip("a frame is not in the scene's COLMAP model")
        share = np.mean([colmap.share(*(model[frames[n]["key"]] for n in order)) for order in ((0, 1), (1, 0))])
        if share <= self.covisible:
            raise Skip(f"its views share at most {self.covisible:.0%}")
        both = np.intersect1d(*(model[frame["key"]].points for frame in frames), assume_unique=True)
        ends = [
            observed(model[frame["key"]], both, view.camera, *self._stored(raw, item.scene, frame)[1:])
            for frame, view in zip(frames, record.views, strict=True)
        ]
        matches = whole_matches(*ends, [view.camera for view in record.views])
        if not len(matches.points0_px):
            raise Skip("its views share no point inside both images")
        return dataclasses.replace(record, matches=matches, covisibility=float(share))


def observed(seen: colmap.ModelImage, ids, camera: Camera, stored: Camera, lens: Distortion) -> np.ndarray:
    """Where an image saw these points, in pixels of its undistorted image [N, 2]; NaN where that does not show them.

    The model may be of images of another size.
    """
    points = seen.points_px[np.searchsorted(seen.points, ids)]
    points = (points + 0.5) * [stored.width / seen.camera.width, stored.height / seen.camera.height] - 0.5
    return points if lens.is_none else lens.undistort_points(points, stored, camera)


def whole_matches(first, second, cameras) -> Matches:
    """Matches inside both images, of whole pixels in the first; by what these were moved, so are the others."""
    whole = np.rint(first)
    other = second + (whole - first)
    kept = cameras[0].inside(whole) & cameras[1].inside(other)
    return Matches(whole[kept].astype(np.int32), other[kept].astype(np.float32))


@functools.lru_cache(maxsize=2)
def _model(folder: pathlib.Path) -> dict[str, colmap.ModelImage]:
    """The images of a model by their name without folder and suffix."""
    return {pathlib.PurePosixPath(name).stem: seen for name, seen in colmap.read_images(folder).items()}


def undistorted(photo, stored: Camera, distortion: Distortion):
    """The image and camera without distortion; as it is stored where there is none."""
    if distortion.is_none:
        return photo, stored
    pixels, new = distortion.remove(photo.load(), stored)
    return encode(pixels, f"{pathlib.PurePath(photo.name).with_suffix('.jpg')}"), new


@functools.lru_cache(maxsize=4)
def _transforms(path: pathlib.Path) -> dict:
    """Size, intrinsics, distortion, and the pose (OpenGL) of each frame by name."""
    try:
        tree = read_json(path.read_bytes(), path.name)
        if tree.get("camera_model", "OPENCV") != "OPENCV":
            raise UserError(f"{path}: camera_model {tree['camera_model']!r}, expected OPENCV")
        frames = {pathlib.PurePosixPath(row["file_path"]).stem: row["transform_matrix"] for row in tree["frames"]}
        return {
            "w": int(tree["w"]),
            "h": int(tree["h"]),
            "focal": (float(tree["fl_x"]), float(tree["fl_y"])),
            "centre": (float(tree["cx"]), float(tree["cy"])),
            "distortion": tuple(float(tree.get(name, 0.0)) for name in ("k1", "k2", "p1", "p2")),
            "frames": {name: np.array(matrix, np.float64).reshape(4, 4).tolist() for name, matrix in frames.items()},
        }
    except (BadRecord, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not as nerfstudio writes cameras ({error})") from None
