"""Poses as answers: of pairs, or of single images in one world, from which those of pairs follow."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping

import numpy as np

from vlm3_jax import pose
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.evaluate.foreign import files
from vlm3_jax.formats import colmap, numbers
from vlm3_jax.records.map_files import read, read_npy

PAIR, IMAGE = ("cam1_T_cam2", "cam2_T_cam1"), ("world_T_cam", "cam_T_world")
IMAGES = (".png", ".jpg", ".jpeg")
# Published poses have six digits or so.
ROTATION = 1e-2


@dataclasses.dataclass(frozen=True, eq=False)
class Poses:
    """cam1_T_cam2 by the pair's id in `pairs`, or camera-to-world by scene ("" if none is told) and name in `images`.

    `metric`: whether lengths are metres, so that the distance counts as answered too.
    """

    source: pathlib.Path
    pairs: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    images: Mapping[str, Mapping[str, np.ndarray]] = dataclasses.field(default_factory=dict)
    metric: bool = False

    def answers(self, row, examples) -> list | None:
        """What the pose of the pair answers to each question; None if there is none. Distances only where metric."""
        relative = self.pairs.get(row.id)
        if relative is None and self.images:
            scene = self.images.get(row.fields.text("scene", ""), self.images.get(""))
            found = [scene and scene.get(_stem(name)) for name in row.images[:2]]
            relative = None if any(one is None for one in found) else pose.relative_pose(*found)
        if relative is None:
            return None
        return [self._answer(example.target["kind"], relative) for example in examples]

    def _answer(self, kind: str, relative: np.ndarray):
        R, t = relative[:3, :3], relative[:3, 3]
        if kind == "euler_natural":
            return pose.euler_from_matrix(R)
        if kind == "rotation_angle":
            return pose.rotation_angle(R)
        if kind == "translation_distance":
            return float(np.linalg.norm(t)) if self.metric else NOT_ASKED
        return tuple(pose.unit_vector(t).tolist()) if t.any() else None


NOT_ASKED = object()
"""Stands for the answer to a question that these answers are not about, and that is then left out."""


def read_poses(path: pathlib.Path, rows, convention: str = "", metric: bool = False) -> Poses:
    """The poses at `path` for the pairs of `rows`, in one of these forms:

    a jsonl (cam1_T_cam2 or cam2_T_cam1 by pair id; world_T_cam or cam_T_world by image and scene); a folder with a file
    a pair (4 x 4 numbers, .txt or .npy; `convention` says which of the first two); a COLMAP model, or a folder with one
    a scene; a TUM trajectory (camera-to-world by name), or a folder with SCENE.txt of each. UserError if it is none, or
    if a `convention` is given for what tells its own.
    """
    found = _named_poses(path, rows, metric)
    if found is not None:
        if convention:
            raise UserError(f"--pose={convention}: only of a folder of matrices; in {path} it is clear what they are")
        return found
    if convention not in PAIR:
        raise UserError(f"--pose: say what the matrices in {path} are: {' or '.join(PAIR)}")
    files_of = {row.id: files.find(path, row.id, (".txt", ".npy")) for row in rows}
    read = {id: _matrix_file(file) for id, file in files_of.items() if file}
    pairs = {id: _as(convention, matrix) for id, matrix in read.items() if matrix is not None}
    return Poses(path, pairs, metric=metric)


def _named_poses(path: pathlib.Path, rows, metric: bool) -> Poses | None:
    """Those of all forms that tell by themselves which way they go."""
    if path.is_file() and path.suffix == ".jsonl":
        return dataclasses.replace(_jsonl(path, {row.id for row in rows}), metric=metric)
    if path.is_file():
        return Poses(path, images={"": _tum(path)}, metric=metric)
    scenes = {row.fields.text("scene", "") for row in rows}
    if model := colmap.find_model(path):
        return Poses(path, images={"": _colmap(model)}, metric=metric)
    models = {scene: colmap.find_model(path / scene) for scene in scenes if scene and _inside(scene)}
    if any(models.values()):
        images = {scene: _colmap(model) for scene, model in models.items() if model}
        return Poses(path, images=images, metric=metric)
    tracks = {scene: files.find(path, scene, (".txt", ".tum")) for scene in scenes if scene}
    if any(tracks.values()):
        return Poses(path, images={scene: _tum(track) for scene, track in tracks.items() if track}, metric=metric)
    return None


def _inside(name: str) -> bool:
    return ".." not in pathlib.PurePosixPath(name).parts and not name.startswith("/")


def _stem(name: str) -> str:
    return pathlib.PurePosixPath(name).stem


def _by_stem(named, where) -> dict[str, np.ndarray]:
    """Poses by the last part of their images' names, endings left out. UserError if two have the same."""
    found: dict[str, np.ndarray] = {}
    for name, matrix in named:
        if _stem(name) in found:
            raise UserError(f"{where}: two images are called {_stem(name)!r}; give a file for each scene")
        found[_stem(name)] = matrix
    return {name: matrix for name, matrix in found.items() if matrix is not None}


def _colmap(folder: pathlib.Path) -> dict[str, np.ndarray]:
    images = colmap.read_model(folder).images.values()
    return _by_stem(((image.name, image.world_T_cam) for image in images), folder)


def _tum(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Lines: name (or time stamp), tx ty tz, qx qy qz qw; camera-to-world."""
    named = []
    for number, words in enumerate(numbers.rows(path), 1):
        try:
            x, y, z, qx, qy, qz, qw = values = [float(word) for word in words[1:]]
            if any(map(math.isnan, values)):
                continue
            matrix = pose.from_quaternion((qw, qx, qy, qz), (x, y, z))
        except (ValueError, BadRecord):
            raise UserError(
                f"{path}, line {number}: expected a name and tx ty tz qx qy qz qw, as TUM writes trajectories"
            ) from None
        # A time stamp has a point in it.
        named.append((words[0] if words[0].lower().endswith(IMAGES) else f"{words[0]}.png", matrix))
    return _by_stem(named, path)


def _jsonl(path: pathlib.Path, ids: set[str]) -> Poses:
    pairs: dict[str, np.ndarray] = {}
    images: dict[str, list] = {}
    for number, line in enumerate(numbers.text(path).splitlines(), 1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name = next(name for name in (*PAIR, *IMAGE) if name in row)
            matrix = np.array(row[name], np.float64)
            key = str(row["id" if name in PAIR else "image"])
        except (ValueError, TypeError, KeyError, StopIteration, RecursionError):
            raise UserError(
                f"{where}: expected an object with id and {' or '.join(PAIR)}, or image and {' or '.join(IMAGE)}"
            ) from None
        matrix = _checked(matrix, where)
        matrix = matrix if matrix is None else _as(name, matrix)
        if name in IMAGE:
            images.setdefault(str(row.get("scene", "")), []).append((key, matrix))
        elif key not in ids:
            raise UserError(f"{where}: id {key!r} is no pair that is asked about")
        elif key in pairs:
            raise UserError(f"{where}: the pair {key!r} was there before")
        else:
            pairs[key] = matrix
    pairs = {key: matrix for key, matrix in pairs.items() if matrix is not None}
    return Poses(path, pairs, {scene: _by_stem(named, path) for scene, named in images.items()})


def _matrix_file(path: pathlib.Path) -> np.ndarray | None:
    is_npy = path.suffix == ".npy"
    values = read_npy(read(path, str(path)), str(path)) if is_npy else numbers.numbers(path, finite=False)
    return _checked(values, str(path))


def _checked(values, where: str) -> np.ndarray | None:
    """12 or 16 numbers as a rigid motion, its rotation made exact; None if NaN is among them. UserError if it is none.

    NaN is how reconstructions that failed are written.
    """
    values = np.asarray(values, np.float64)
    if values.size in (12, 16) and np.isnan(values).any():
        return None
    if values.size not in (12, 16) or not np.isfinite(values).all():
        raise UserError(f"{where}: expected a matrix of 4 x 4 (or 3 x 4) finite numbers, got shape {[*values.shape]}")
    matrix = np.eye(4)
    matrix[: values.size // 4] = values.reshape(-1, 4)
    U, sizes, V = np.linalg.svd(matrix[:3, :3])
    if np.abs(sizes - 1).max() > ROTATION or np.linalg.det(matrix[:3, :3]) < 0 or (matrix[3] != (0, 0, 0, 1)).any():
        raise UserError(f"{where}: not a rotation and a translation (is it scaled, mirrored or transposed?)")
    matrix[:3, :3] = U @ V
    return matrix


def _as(name: str, matrix: np.ndarray) -> np.ndarray:
    """cam1_T_cam2 or world_T_cam of either convention."""
    return matrix if name in ("cam1_T_cam2", "world_T_cam") else np.linalg.inv(matrix)
