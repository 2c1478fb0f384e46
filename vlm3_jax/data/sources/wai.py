"""Scenes in MapAnything's WAI layout, in place: scene_meta.json, images, z-depth as EXR, masks, covisibility."""

import logging
import typing
from collections.abc import Sequence
from typing import Any

import numpy as np

from vlm3_jax import storage
from vlm3_jax.camera import Camera
from vlm3_jax.data.sources.items import ItemSource, image_ref, inside, part_of
from vlm3_jax.data.sources.name_lists import read_names
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.files import Fields
from vlm3_jax.pose import check_pose
from vlm3_jax.records import Record, View, place_depth, place_mask
from vlm3_jax.storage import AnyPath
from vlm3_jax.storage.folders import fetched_file

META = "scene_meta.json"
# Lengths are metres in scenes of this scale_type only; "colmap" is that of a reconstruction.
METRIC = "metric"
# Covisibility matrices hold a row and a column for each frame; of 20,000 frames they have 1.6 GB.
MAX_FRAMES = 20_000

_log = logging.getLogger(__name__)


class Scene(typing.NamedTuple):
    """A scene as its meta file tells it; `depth`: the key of a frame's depth map, `covisibility`: its matrix's file."""

    name: str
    folder: AnyPath
    metric: bool
    frames: list[dict]
    shared: dict
    depth: str
    covisibility: AnyPath | None


class WAISource(ItemSource):
    """Records of WAI scenes: single frames, or pairs whose stored covisibility is above `least`.

    `scenes`: a list of their names (.txt, .json, .npy); "" takes all. `depth`, `mask`: names of modalities; of the mask
    the pixels above 0 have labels, or with "-" before its name the others. Pairs of scenes without a matrix are those
    of frames `gaps` apart.
    """

    def __init__(
        self,
        name: str,
        path: AnyPath,
        pairs: bool,
        least: float = 0.0,
        scenes: str = "",
        depth: str = "depth",
        mask: str = "",
        gaps: Sequence[int] = (),
        part: str = "",
        share: float = 0.1,
        first: int = 0,
        limit: int | None = None,
    ):
        found = find_scenes(name, path, scenes, depth)
        self._mask = mask
        self._scenes = [found[i] for i in part_of([scene.name for scene in found], part, share, name)]
        items: list[Any] = []
        for number, scene in enumerate(self._scenes):
            if pairs:
                items += [(number, i, j, c) for i, j, c in scene_pairs(scene, least, gaps)]
            else:
                items += [
                    (number, i) for i, frame in enumerate(scene.frames) if scene.metric and frame.get(scene.depth)
                ]
        if not items:
            what = f"pair with a covisibility above {least:g}" if pairs else "frame with metric depth"
            raise UserError(f"{name}: the {len(self._scenes)} scenes in {path} have no {what}")
        super().__init__(name, path, items, first, limit)

    def _record(self, item) -> Record:
        scene = self._scenes[item[0]]
        numbers = item[1:3]
        covisibility = item[3] if len(item) > 3 else None
        views, maps, masks = [], [], []
        for view, number in enumerate(numbers):
            frame = scene.frames[number]
            name = f"{scene.name}/{frame.get('frame_name', number)}"
            views.append(_view(scene, frame, name))
            if isinstance(file := frame.get(scene.depth), str):
                maps.append(place_depth(inside(scene.folder, file, name), 1.0, "z", view, f"{scene.name}/{file}"))
            key = self._mask.removeprefix("-")
            if key and isinstance(file := frame.get(key, frame.get(f"{key}_path")), str):
                use = "drop" if self._mask.startswith("-") else "keep"
                masks.append(place_mask(inside(scene.folder, file, name), use, view, f"{scene.name}/{file}"))
        id = f"{scene.name}/{'+'.join(str(scene.frames[n].get('frame_name', n)) for n in numbers)}"
        return Record(
            id,
            tuple(views),
            covisibility=covisibility,
            metric=scene.metric,
            scene=scene.name,
            depth_maps=tuple(maps),
            masks=tuple(masks),
        )


def find_scenes(name: str, path: AnyPath, listed: str = "", depth: str = "depth") -> list[Scene]:
    """The scenes of a folder (or the one that it is), sorted by name, or those of a list.

    UserError if there are none, or a meta file is not as it should be.
    """
    if not path.is_dir():
        raise UserError(f"{name}: no such folder {path}")
    root = path.resolve()
    if (root / META).is_file():
        folders = [root]
    elif listed:
        folders = [inside(root, one, listed) for one in read_names(storage.path(listed))]
        missing = [folder for folder in folders if not (folder / META).is_file()]
        if missing:
            # Split lists name all scenes of a set; a copy of some of them is enough to train on.
            _log.warning("data: %s: %d of the %d scenes listed are not there", name, len(missing), len(folders))
        folders = [folder for folder in folders if folder not in set(missing)]
    else:
        folders = sorted(p.parent for p in root.glob(f"*/{META}"))
    if not folders:
        raise UserError(f"{name}: no scene in {path} (a folder with {META})")
    return [_scene(folder, depth) for folder in folders]


def _scene(folder: AnyPath, depth: str) -> Scene:
    meta = Fields.read(folder / META)
    meta.require("camera_convention", "opencv", "opencv")
    model = meta.text("camera_model", "PINHOLE")
    if model != "PINHOLE":
        raise UserError(f"{meta.name}: camera_model {model} has distortion; use the undistorted scene (PINHOLE)")
    frames = meta.tree.get("frames")
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise UserError(f"{meta.name}: frames must be a list of objects")
    if len(frames) > MAX_FRAMES:
        raise UserError(f"{meta.name}: {len(frames)} frames, at most {MAX_FRAMES}")
    modality = meta.child("frame_modalities", {}).tree.get(depth)
    key = modality.get("frame_key", depth) if isinstance(modality, dict) else depth
    metric = meta.text("scale_type", "") == METRIC
    scene = meta.text("scene_name", folder.name)
    return Scene(scene, folder, metric, frames, meta.tree, str(key), _matrix_file(folder))


def _matrix_file(folder: AnyPath) -> AnyPath | None:
    """The covisibility of a scene, of the newest version if there are several."""
    found = sorted((folder / "covisibility").rglob("pairwise_covisibility*.npy"))
    return found[-1] if found else None


def _view(scene: Scene, frame: dict, name: str) -> View:
    def number(key: str) -> float:
        value = frame.get(key, scene.shared.get(key))
        if type(value) not in (int, float):
            raise BadRecord(f"{name}: {key} is {value!r}, expected a number")
        return value

    width, height = int(number("w")), int(number("h"))
    camera = Camera.from_intrinsics([*(number(key) for key in ("fl_x", "fl_y", "cx", "cy")), width, height])
    file = frame.get("image", frame.get("file_path"))
    if not isinstance(file, str):
        raise BadRecord(f"{name}: image is {file!r}, expected a path")
    pose = frame.get("transform_matrix")
    try:
        matrix = None if pose is None else check_pose(np.array(pose, np.float64), f"{name}: transform_matrix")
    except (TypeError, ValueError):
        raise BadRecord(f"{name}: transform_matrix must be a 4 x 4 matrix of numbers") from None
    image = image_ref(inside(scene.folder, file, name), (width, height), f"{scene.name}/{file}")
    return View(image, camera, matrix)


def scene_pairs(scene: Scene, least: float, gaps: Sequence[int] = ()) -> list[tuple[int, int, float | None]]:
    """(i, j, covisibility) of the scene's pairs of posed frames, i < j; None where no matrix tells it.

    c = (C[i, j] + C[j, i]) / 2, each divided by the view's own value, which is the share of its pixels with depth.
    UserError if the matrix is not one of so many frames.
    """
    count = len(scene.frames)
    if scene.covisibility is None:
        if not gaps:
            raise UserError(
                f"{scene.folder}: no covisibility matrix; set gaps to the frames that a pair lies apart, such as (1, 5)"
            )
        return [(i, i + gap, None) for i in range(count) for gap in sorted(set(gaps)) if i + gap < count]
    shared = read_matrix(scene.covisibility, count)
    own = np.diag(shared).copy()
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(own[:, None] > 0, shared / own[:, None], 0)
    both = (share + share.T) / 2
    first, second = np.nonzero(np.triu(both > least, 1))
    values = both[first, second].clip(0, 1)
    return list(zip(first.tolist(), second.tolist(), values.tolist(), strict=True))


def read_matrix(path: AnyPath, count: int) -> np.ndarray:
    """A covisibility matrix, float32 [count, count], as a file of numbers is: nothing is unpickled."""
    try:
        matrix = np.load(fetched_file(path), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable matrix of numbers ({error})") from None
    if matrix.dtype.kind != "f" or matrix.shape != (count, count):
        raise UserError(f"{path}: expected {count} x {count} numbers, got {matrix.dtype} of shape {matrix.shape}")
    return np.nan_to_num(np.asarray(matrix, np.float32))
