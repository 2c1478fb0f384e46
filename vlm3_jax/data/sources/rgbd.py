"""Folders of images with depth maps and intrinsics, and poses where there are any (docs/own_data.md).

A scene is a folder with `rgb/` and `depth/` (or other names that are usual for them) whose files are called alike, and
intrinsics: one file for all, or one a frame. Several scenes lie side by side in one folder. TUM's layout (rgb.txt,
depth.txt, groundtruth.txt) is read too.
"""

import bisect
import logging
import typing
from collections.abc import Sequence

import numpy as np

from vlm3_jax.data.sources.items import (
    IMAGE_SUFFIXES,
    ItemSource,
    inside,
    pairs_apart,
    part_of,
    photo,
    rescaled,
)
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.formats import numbers
from vlm3_jax.pose import matrix_from_quaternion
from vlm3_jax.records import DepthMap, Record, View, place_depth
from vlm3_jax.storage import AnyPath

RGB = ("rgb", "color", "colour", "image", "images", "image_2")
DEPTH = ("depth", "depths", "depth_map", "depth_maps")
POSES = ("pose", "poses", "extrinsics")
CAMERAS = ("intrinsics", "intrinsic", "K", "calib", "camera", "cameras")
CAMERA_FILES = tuple(
    f"{name}{suffix}"
    for name in (*CAMERAS, "intrinsics_color", "intrinsic_color", "camera-intrinsics", "camera_intrinsics")
    for suffix in (".txt", ".json")
)
MAP_SUFFIXES = (".png", ".npy", ".exr")
# Metres a unit where nothing else is said: millimetres in PNG, metres in files of floats; TUM's own.
SCALES, TUM_SCALE = {".png": 1e-3, ".npy": 1.0, ".exr": 1.0}, 1 / 5000
# TUM's own tool takes times as close as this for the same.
TUM_SECONDS = 0.02

_log = logging.getLogger(__name__)


class Frame(typing.NamedTuple):
    """One image of a scene with what belongs to it; `pose`: a file, or the matrix itself."""

    scene: str
    rgb: AnyPath
    depth: AnyPath | None
    camera: AnyPath
    pose: AnyPath | np.ndarray | None
    scale: float


class RGBDSource(ItemSource):
    """Records of RGB-D folders: single frames, or with `gaps` pairs of frames that lie so many apart in their scene.

    `kind`: what the depths are, "z" or "distance"; `scale`: metres a unit (0: `SCALES`). `part`, `share`: `part_of`.
    """

    def __init__(
        self,
        name: str,
        path: AnyPath,
        kind: str,
        scale: float = 0.0,
        gaps: Sequence[int] = (),
        part: str = "",
        share: float = 0.1,
        first: int = 0,
        limit: int | None = None,
    ):
        frames = find_frames(name, path, scale)
        self._frames = [frames[i] for i in part_of([frame.scene for frame in frames], part, share, name)]
        self._kind, self._root = kind, path.resolve()
        items: list[tuple[int, ...]] = [(i,) for i in range(len(self._frames))]
        if gaps:
            items = self._pairs(name, gaps)
        super().__init__(name, path, items, first, limit)

    def _pairs(self, name: str, gaps: Sequence[int]) -> list[tuple[int, ...]]:
        by_scene: dict[str, list[int]] = {}
        for index, frame in enumerate(self._frames):
            if frame.pose is not None:
                by_scene.setdefault(frame.scene, []).append(index)
        pairs = [(own[i], own[j]) for own in by_scene.values() for i, j in pairs_apart(len(own), gaps)]
        if not pairs:
            raise UserError(f"{name}: no two frames with poses lie {', '.join(map(str, gaps))} apart in a scene")
        return pairs

    def _record(self, item: tuple[int, ...]) -> Record:
        frames = [self._frames[i] for i in item]
        views, maps = [], []
        for number, frame in enumerate(frames):
            name = self._short(frame.rgb)
            image, ref = photo(frame.rgb, name)
            size = image.size
            camera = numbers.read_camera(frame.camera, *size, self._short(frame.camera))
            pose = frame.pose
            if pose is not None and not isinstance(pose, np.ndarray):
                pose = numbers.read_pose(pose, self._short(pose))
            views.append(View(ref, rescaled(camera, *size, name), pose))
            if frame.depth is not None:
                maps.append(self._map(frame, number))
        names = "+".join(self._short(frame.rgb) for frame in frames)
        return Record(names, tuple(views), scene=frames[0].scene, depth_maps=tuple(maps))

    def _map(self, frame: Frame, view: int) -> DepthMap:
        return place_depth(frame.depth, frame.scale, self._kind, view, self._short(frame.depth))

    def _short(self, path: AnyPath) -> str:
        return str(path.relative_to(self._root)) if path.is_relative_to(self._root) else str(path)


def find_frames(name: str, path: AnyPath, scale: float = 0.0) -> list[Frame]:
    """The frames of all scenes below a folder, sorted; those without depth and pose are left out and counted.

    UserError if there is no scene, or one without intrinsics.
    """
    if not path.is_dir():
        raise UserError(f"{name}: no such folder {path}")
    root = path.resolve()
    scenes = [root] if is_scene(root) else sorted(p for p in root.iterdir() if p.is_dir() and is_scene(p))
    if not scenes:
        raise UserError(
            f"{name}: {path} has no {'/, '.join(RGB[:2])}/ beside {DEPTH[0]}/, and no folder in it has "
            "(docs/own_data.md shows the layout)"
        )
    frames, bare = [], 0
    for scene in scenes:
        found = _tum_frames(scene, root, scale) if is_tum(scene) else _folder_frames(name, scene, root, scale)
        kept = [frame for frame in found if frame.depth is not None or frame.pose is not None]
        frames += kept
        bare += len(found) - len(kept)
    if bare:
        _log.warning("data: %s: %d images without depth map and pose are left out", name, bare)
    if not frames:
        raise UserError(f"{name}: no image below {path} has a depth map of the same name")
    return frames


def is_tum(scene: AnyPath) -> bool:
    """Whether a folder has TUM's lists."""
    return (scene / "rgb.txt").is_file() and (scene / "depth.txt").is_file()


def is_scene(folder: AnyPath) -> bool:
    """Whether a folder has images beside depth maps or poses."""
    beside = _child(folder, DEPTH) or _child(folder, POSES)
    return is_tum(folder) or bool(_child(folder, RGB) and beside)


def _child(folder: AnyPath, names: Sequence[str]) -> AnyPath | None:
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def _by_stem(folder: AnyPath | None, suffixes: Sequence[str]) -> dict[str, AnyPath]:
    if folder is None:
        return {}
    return {p.stem: p for p in sorted(folder.iterdir()) if p.suffix.lower() in suffixes}


def camera_file(scene: AnyPath, root: AnyPath) -> AnyPath | None:
    """The one file of intrinsics of a scene, which may stand in it, in a folder of it, or above it for all scenes."""
    places = [scene, *(scene / name for name in CAMERAS), *([root] if root != scene else [])]
    return next((place / file for place in places for file in CAMERA_FILES if (place / file).is_file()), None)


def _name(scene: AnyPath, root: AnyPath) -> str:
    return root.name if scene == root else str(scene.relative_to(root))


def _folder_frames(name: str, scene: AnyPath, root: AnyPath, scale: float) -> list[Frame]:
    images = _by_stem(_child(scene, RGB), IMAGE_SUFFIXES)
    depths, poses = _by_stem(_child(scene, DEPTH), MAP_SUFFIXES), _by_stem(_child(scene, POSES), (".txt",))
    own = next((found for c in CAMERAS if (found := _by_stem(_child(scene, (c,)), (".txt", ".json")))), {})
    shared = camera_file(scene, root)
    frames = []
    for stem in sorted(images):
        depth = depths.get(stem)
        camera = own.get(stem, shared)
        if camera is None:
            raise UserError(
                f"{name}: no intrinsics for {images[stem]}; write K (3 x 3) into {scene / 'intrinsics.txt'}, or one "
                f"file a frame into {scene / 'intrinsics'}/{stem}.txt"
            )
        unit = scale or (SCALES[depth.suffix.lower()] if depth else 1.0)
        frames.append(Frame(_name(scene, root), images[stem], depth, camera, poses.get(stem), unit))
    return frames


def _tum_frames(scene: AnyPath, root: AnyPath, scale: float) -> list[Frame]:
    """Images of rgb.txt with the depth map and the pose whose times are nearest, each at most 20 ms away."""
    camera = camera_file(scene, root)
    if camera is None:
        raise UserError(f"{scene}: TUM's folders name no intrinsics; write fx fy cx cy into {scene / 'intrinsics.txt'}")
    images, depths = _timed(scene / "rgb.txt", 1), _timed(scene / "depth.txt", 1)
    truth = scene / "groundtruth.txt"
    poses = _timed(truth, 7) if truth.is_file() else []
    frames = []
    for time, (file,) in images:
        depth, pose = _nearest(depths, time), _nearest(poses, time)
        frames.append(
            Frame(
                _name(scene, root),
                inside(scene, file, f"{scene / 'rgb.txt'}"),
                inside(scene, depth[0], f"{scene / 'depth.txt'}") if depth else None,
                camera,
                _tum_pose(pose, truth) if pose else None,
                scale or TUM_SCALE,
            )
        )
    return frames


def _timed(path: AnyPath, count: int) -> list[tuple[float, list[str]]]:
    """(time, words) of the lines of a list of TUM's, by time."""
    try:
        found = [(float(words[0]), words[1 : count + 1]) for words in numbers.rows(path) if len(words) > count]
    except ValueError:
        raise UserError(f"{path}: every line must begin with a time in seconds") from None
    return sorted(found, key=lambda row: row[0])


def _nearest(rows: list, time: float) -> list[str] | None:
    place = bisect.bisect_left(rows, time, key=lambda row: row[0])
    near = min(rows[max(0, place - 1) : place + 1], key=lambda row: abs(row[0] - time), default=None)
    return near[1] if near and abs(near[0] - time) <= TUM_SECONDS else None


def _tum_pose(words: list[str], path: AnyPath) -> np.ndarray:
    """Camera-to-world of "tx ty tz qx qy qz qw"."""
    try:
        x, y, z, qx, qy, qz, qw = map(float, words)
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = matrix_from_quaternion(qw, qx, qy, qz), (x, y, z)
    except (ValueError, BadRecord) as error:
        raise UserError(f"{path}: no pose in {' '.join(words)!r} ({error})") from None
    return pose
