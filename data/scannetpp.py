"""ScanNet++: rooms filmed with an iPhone (lidar depth) and photographed with a fisheye DSLR (rendered depth)."""

import functools
import json
import pathlib

import numpy as np

from vlm3_jax.builders import common
from vlm3_jax.builders.readers import iphone_depth, rigid
from vlm3_jax.builders.readers.raster import read_mask, read_steps, same_size
from vlm3_jax.camera import Camera
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.formats.numbers import pose_of
from vlm3_jax.processor.undistort import Distortion
from vlm3_jax.records import Record, View, encode_depth

LISTS = {"train": "nvs_sem_train.txt", "val": "nvs_sem_val.txt"}
MILLIMETRES = 1e-3
# DepthLM's curator takes this camera for every iPhone, and every tenth frame.
DEPTHLM_K = (1427.4375, 1427.4375, 959.5, 719.5)
EVERY = 10


def _scenes(raw: pathlib.Path, split: str) -> list[str]:
    path = raw / "splits" / LISTS[split]
    common.need_files([path, raw / "data"])
    return sorted(path.read_text().split())


def _json(path: pathlib.Path) -> dict:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: not there; see docs/datasets.md for the layout of this data set") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({str(error).splitlines()[0]})") from None


@functools.lru_cache(maxsize=4)
def _kept_json(path: pathlib.Path) -> dict:
    return _json(path)


class ScanNetppIphone(common.Builder):
    """Every tenth video frame (1920x1440) with the phone's depth (256x192), z.

    Frames, masks and, if it was extracted, depth are as the official extraction writes them; depth.bin is read too, in
    both of its forms (`readers.iphone_depth`). A frame's files are found by its number, never by order. Intrinsics are
    the frame's own (pose_intrinsic_imu.json); its pose there is the phone's (camera-to-world, aligned with the scan
    where aligned_pose is given) and is not stored: its axes are not documented. Where rgb_masks is 0 (people) there is
    no depth. With `depthlm` the camera is DepthLM's fixed one and labels are sqrt(xn^2 + yn^2 + z^2) of normalised xn,
    yn, which is neither z nor distance; exact at the centre of each depth pixel, told as distance.
    """

    name = "scannetpp"
    title = "ScanNet++ (iPhone)"
    folder = "depth"
    splits = ("train", "val")
    held_out = "val"
    layout = (
        "splits/*.txt, data/SCENE/iphone/{rgb/*.jpg, rgb_masks/*.png, depth/*.png | depth.bin, pose_intrinsic_imu.json}"
    )
    labels = "z in metres at 256x192, in millimetre steps"
    licence = "ScanNet++ terms of use, kaldir.vc.in.tum.de/scannetpp"
    checked = "fixture"
    doubts = ("whether the phone's images and its depth share one optical centre and field of view to the pixel",)
    test = "tests/builders/test_scannetpp.py"
    needs = ("lz4",)
    honours_depthlm = True

    def frames(self, raw: pathlib.Path, split: str) -> list[common.Item]:
        """Every tenth frame of the photos that were extracted."""
        items = []
        for scene in _scenes(raw, split):
            folder = raw / "data" / scene / "iphone"
            if not (folder / "rgb").is_dir():
                raise UserError(f"{folder / 'rgb'}: not there; extract rgb.mkv with the ScanNet++ toolkit first")
            for path in (folder / "rgb").glob("frame_*.jpg"):
                number = int(path.stem.removeprefix("frame_"))
                if number % EVERY == 0:
                    items.append(common.Item(f"{scene}/{path.stem}", scene, {"number": number}))
        return common.by_key(items)

    def record(self, raw: pathlib.Path, item: common.Item) -> Record:
        """A frame with its depth map."""
        folder, name = raw / "data" / item.scene / "iphone", item.key.split("/")[1]
        stored = common.image(folder / "rgb" / f"{name}.jpg", f"{item.key}.jpg")
        depth = self._depth(folder, name, item)
        mask = folder / "rgb_masks" / f"{name}.png"
        if mask.exists():
            seen = same_size(read_mask(mask, f"{item.key} mask"), stored.width, stored.height, mask.name)
            depth = np.where(_at_centres(seen, depth.shape), depth, 0)
        camera = self._camera(folder, name, stored)
        kind = "z"
        if self.options.depthlm:
            x, y = _centres(depth.shape, stored)
            flat = ((x - camera.cx) / camera.fx) ** 2 + ((y - camera.cy) / camera.fy)[:, None] ** 2
            depth, kind = np.where(depth > 0, np.sqrt(flat + depth**2), 0), "distance"
        depth_map = encode_depth(depth, kind, MILLIMETRES, name=f"{item.key} depth")
        return Record(item.key, (View(stored, camera),), depth_maps=(depth_map,), scene=item.scene)

    def _depth(self, folder: pathlib.Path, name: str, item: common.Item) -> np.ndarray:
        """float [H, W] metres, 0 where there is none."""
        extracted, packed = folder / "depth" / f"{name}.png", folder / "depth.bin"
        if extracted.exists():
            return read_steps(extracted, f"{item.key} depth") * MILLIMETRES
        if packed.exists():
            return iphone_depth.read_frame(packed, item.data["number"]).astype(np.float64)
        raise common.Skip("a frame has no depth: neither depth/ nor depth.bin")

    def _camera(self, folder: pathlib.Path, name: str, stored) -> Camera:
        if self.options.depthlm:
            # Of 1920x1440, which the curator resizes to 1280x960.
            scale = stored.width / 1920
            return Camera(*(value * scale for value in DEPTHLM_K), stored.width, stored.height)
        try:
            K = np.array(_kept_json(folder / "pose_intrinsic_imu.json")[name]["intrinsic"], np.float64)
        except (KeyError, TypeError, ValueError):
            raise BadRecord(f"{folder.parent.name}/pose_intrinsic_imu.json: no intrinsic of {name}") from None
        return Camera(K[0, 0], K[1, 1], K[0, 2], K[1, 2], stored.width, stored.height).plausible(name)


class ScanNetppDslr(common.Builder):
    """Each photo (resized_images, a fisheye) as a pinhole sees it, with depth that the toolkit rendered from the scan.

    Fisheye intrinsics and poses are those of nerfstudio/transforms.json: fl_x fl_y cx cy k1..k4 (COLMAP's pixels, whose
    first centre is 0.5), camera-to-world of cameras that look along -z. Photos of frames and test_frames; is_bad ones
    are skipped. Depth is z in millimetres on the fisheye's pixels, render_depth/DSCxxxxx.png, and is undistorted by the
    nearest pixel. Where resized_anon_masks is 0 there is none.
    """

    name = "scannetpp_dslr"
    title = "ScanNet++ (DSLR)"
    folder = "depth"
    splits = ("train", "val")
    held_out = "val"
    layout = "splits/*.txt, data/SCENE/dslr/{resized_images,resized_anon_masks,render_depth,nerfstudio/transforms.json}"
    labels = "dense z in metres, in millimetre steps; camera poses in the scene"
    licence = "ScanNet++ terms of use, kaldir.vc.in.tum.de/scannetpp"
    checked = "fixture"
    doubts = ("that rendered depth is z, not distance", "where users keep the toolkit's render_depth")
    test = "tests/builders/test_scannetpp.py"

    def frames(self, raw: pathlib.Path, split: str) -> list[common.Item]:
        """The photos of transforms.json."""
        items = []
        for scene in _scenes(raw, split):
            tree = _json(raw / "data" / scene / "dslr" / "nerfstudio" / "transforms.json")
            for part in ("frames", "test_frames"):
                for number, frame in enumerate(tree.get(part) or ()):
                    name = pathlib.PurePosixPath(frame["file_path"]).stem
                    items.append(common.Item(f"{scene}/{name}", scene, {"part": part, "number": number}))
        return common.by_key(items)

    def record(self, raw: pathlib.Path, item: common.Item) -> Record:
        """An undistorted photo with its depth map and pose."""
        folder, name = raw / "data" / item.scene / "dslr", item.key.split("/")[1]
        tree = _kept_json(folder / "nerfstudio" / "transforms.json")
        frame = tree[item.data["part"]][item.data["number"]]
        if frame.get("is_bad"):
            raise common.Skip("the set marks the photo as bad (is_bad)")
        rendered = folder / "render_depth" / f"{name}.png"
        if not rendered.exists():
            raise common.Skip("no rendered depth of the photo: render it with the ScanNet++ toolkit first")
        stored = common.image(folder / "resized_images" / pathlib.PurePosixPath(frame["file_path"]).name, item.key)
        fisheye, lens = _fisheye(tree, stored, item.key)
        values = same_size(read_steps(rendered, f"{item.key} depth"), stored.width, stored.height, rendered.name)
        mask = folder / "resized_anon_masks" / f"{name}.png"
        if mask.exists():
            values = np.where(same_size(read_mask(mask, mask.name), stored.width, stored.height, mask.name), values, 0)
        pixels, camera = lens.remove(stored.load(), fisheye)
        depth, _ = lens.remove(values, fisheye, camera, sampling="nearest")
        pose = pose_of(frame["transform_matrix"], f"{item.key}: transform_matrix") @ rigid.CV_T_GL
        depth_map = encode_depth(depth * MILLIMETRES, "z", MILLIMETRES, name=f"{item.key} depth")
        view = View(common.encode(pixels, f"{item.key}.jpg"), camera, pose)
        return Record(item.key, (view,), depth_maps=(depth_map,), scene=item.scene)


def _fisheye(tree: dict, stored, name: str) -> tuple[Camera, Distortion]:
    if tree.get("camera_model") != "OPENCV_FISHEYE":
        raise BadRecord(f"{name}: transforms.json: camera_model is {tree.get('camera_model')!r}, not OPENCV_FISHEYE")
    try:
        params = [float(tree[key]) for key in ("fl_x", "fl_y", "cx", "cy", "k1", "k2", "k3", "k4")]
    except (KeyError, TypeError, ValueError) as error:
        raise BadRecord(f"{name}: transforms.json: no number {error}") from None
    return Distortion.from_colmap("OPENCV_FISHEYE", params, stored.width, stored.height)


def _centres(shape, stored) -> tuple[np.ndarray, np.ndarray]:
    """Where the columns and rows of a coarser map have their centres in the image."""
    height, width = shape
    x = (np.arange(width) + 0.5) * stored.width / width - 0.5
    return x, (np.arange(height) + 0.5) * stored.height / height - 0.5


def _at_centres(mask: np.ndarray, shape) -> np.ndarray:
    """A mask at the centres of a coarser map's pixels."""
    rows, columns = (np.arange(n) * size // n + size // n // 2 for n, size in zip(shape, mask.shape, strict=True))
    return mask[rows][:, columns]
