"""Small text files of numbers: intrinsics, poses, trajectories."""

import json

import numpy as np

from vlm3_jax.camera import Camera
from vlm3_jax.errors import BadRecord
from vlm3_jax.pose import check_pose
from vlm3_jax.storage import AnyPath, patiently

MAX_TEXT_BYTES = 64 * 2**20


def text(path: AnyPath, name: str = "") -> str:
    """The text of a small file. BadRecord, calling it `name`, if it cannot be read as text."""
    name = name or str(path)

    def read() -> str:
        if (size := path.stat().st_size) > MAX_TEXT_BYTES:
            raise BadRecord(f"{name}: {size} bytes, at most {MAX_TEXT_BYTES} are read")
        # Some editors begin a file with a byte order mark.
        return path.read_text(encoding="utf-8-sig")

    try:
        return patiently(read, name)
    except FileNotFoundError:
        raise BadRecord(f"{name}: no such file") from None
    except (OSError, ValueError) as error:
        raise BadRecord(f"{name}: cannot be read as text ({error})") from None


def rows(path: AnyPath, name: str = "") -> list[list[str]]:
    """The words of each line, by spaces or commas; empty lines and what follows a "#" are left out."""
    lines = (line.partition("#")[0].replace(",", " ").split() for line in text(path, name).splitlines())
    return [words for words in lines if words]


def numbers(path: AnyPath, name: str = "", finite: bool = True) -> np.ndarray:
    """All numbers of a text file, float64 [N]; brackets are passed over. BadRecord if there is anything else.

    `finite`: whether NaN and infinity are refused too.
    """
    name = name or str(path)
    words = text(path, name)
    for mark in "[](),;":
        words = words.replace(mark, " ")
    lines = (line.partition("#")[0].split() for line in words.splitlines())
    try:
        found = np.array([float(word) for line in lines for word in line], np.float64)
    except ValueError as error:
        raise BadRecord(f"{name}: expected numbers ({error})") from None
    if finite and not np.isfinite(found).all():
        raise BadRecord(f"{name}: its numbers are not finite")
    return found


def read_camera(path: AnyPath, width: int, height: int, name: str = "") -> Camera:
    """The camera in a text or JSON file; `width`, `height`: of its image where the file does not say.

    Text: a 3 x 3 or 4 x 4 matrix row by row, or fx fy cx cy, perhaps with width and height. JSON: {"K": matrix}, or the
    numbers under fx, fy, cx, cy (fl_x, fl_y), width, height (w, h). Pixels are counted from the centre of the first.
    """
    name = name or str(path)
    if path.suffix.lower() == ".json":
        return _camera_of_json(path, width, height, name)
    return camera_of(numbers(path, name), width, height, name)


def camera_of(values: np.ndarray, width: int, height: int, name: str) -> Camera:
    """The camera of 4, 6, 9 or 16 numbers (`read_camera`)."""
    values = np.asarray(values, np.float64).ravel()
    if len(values) in (9, 16):
        K = values.reshape(int(len(values) ** 0.5), -1)[:3, :3]
        wrong = K[2].tolist() != [0, 0, 1] or K[1, 0] or abs(K[0, 1]) > 1e-3 * abs(K[0, 0])
        if wrong:
            raise BadRecord(f"{name}: K must be [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], got {K.tolist()}")
        values = np.array([K[0, 0], K[1, 1], K[0, 2], K[1, 2]])
    if len(values) not in (4, 6):
        raise BadRecord(f"{name}: expected a 3 x 3 matrix or fx fy cx cy, got {len(values)} numbers")
    size = values[4:].tolist() if len(values) == 6 else [width, height]
    try:
        return Camera.from_intrinsics([*values[:4].tolist(), *size])
    except BadRecord as error:
        raise BadRecord(f"{name}: {error}") from None


def _camera_of_json(path: AnyPath, width: int, height: int, name: str) -> Camera:
    try:
        tree = json.loads(text(path, name))
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"{name}: not JSON ({error})") from None
    if not isinstance(tree, dict):
        return camera_of(_floats(tree, name), width, height, name)
    size = [tree.get("width", tree.get("w", width)), tree.get("height", tree.get("h", height))]
    for key in ("K", "intrinsics", "intrinsic_matrix", "camera_matrix"):
        if isinstance(tree.get(key), list):
            return camera_of(_floats(tree[key], name), *_floats(size, name), name)
    named = [tree.get(key, tree.get(other)) for key, other in (("fx", "fl_x"), ("fy", "fl_y"))]
    return camera_of(_floats([*named, tree.get("cx"), tree.get("cy"), *size], name), width, height, name)


def _floats(values, name: str) -> np.ndarray:
    try:
        found = np.array(values, np.float64).ravel()
    except (TypeError, ValueError):
        found = np.array([np.nan])
    if not np.isfinite(found).all():
        raise BadRecord(f"{name}: expected the matrix K, or the numbers fx, fy, cx, cy, got {str(values)[:100]}")
    return found


def pose_of(values, name: str) -> np.ndarray:
    """16 or 12 numbers row by row -> float64 [4, 4]. BadRecord, calling it `name`, unless they rotate and shift."""
    values = np.asarray(values, np.float64).ravel()
    if len(values) not in (12, 16):
        raise BadRecord(f"{name}: expected a 4 x 4 matrix, got {len(values)} numbers")
    pose = np.eye(4)
    pose[: len(values) // 4] = values.reshape(-1, 4)
    return check_pose(pose, name)


def read_pose(path: AnyPath, name: str = "") -> np.ndarray:
    """A 4 x 4 (or 3 x 4) camera-to-world matrix, float64 [4, 4]. BadRecord if it is no rigid motion."""
    name = name or str(path)
    return pose_of(numbers(path, name), name)
