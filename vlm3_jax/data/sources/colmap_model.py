"""COLMAP's sparse models, text and binary: cameras, images with their observations, 3-D points.

File formats as COLMAP documents them (colmap.github.io/format.html). COLMAP counts pixels from the corner of the first,
this project from its centre: principal points and observations are shifted by half a pixel when they are read.
"""

import pathlib
import struct
import typing

import numpy as np

from vlm3_jax.camera import Camera
from vlm3_jax.data.sources.numbers import rows
from vlm3_jax.errors import UserError
from vlm3_jax.pose import matrix_from_quaternion
from vlm3_jax.storage import patiently

# Name and number of parameters by COLMAP's number of the model.
MODELS = {
    0: ("SIMPLE_PINHOLE", 3),
    1: ("PINHOLE", 4),
    2: ("SIMPLE_RADIAL", 4),
    3: ("RADIAL", 5),
    4: ("OPENCV", 8),
    5: ("OPENCV_FISHEYE", 8),
    6: ("FULL_OPENCV", 12),
    7: ("FOV", 5),
    8: ("SIMPLE_RADIAL_FISHEYE", 4),
    9: ("RADIAL_FISHEYE", 5),
    10: ("THIN_PRISM_FISHEYE", 12),
    11: ("RAD_TAN_THIN_PRISM_FISHEYE", 16),
}
COUNTS = dict(MODELS.values())
# Models with one focal length: f cx cy ..., the others fx fy cx cy ...
ONE_FOCAL = {"SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE"}
MAX_MODEL_BYTES = 16 * 2**30


class ModelCamera(typing.NamedTuple):
    """A camera as COLMAP has it: `params` in its order, the principal point counted from the corner."""

    model: str
    width: int
    height: int
    params: tuple[float, ...]

    def pinhole(self) -> Camera:
        """The camera without its distortion, the principal point counted from the centre of the first pixel."""
        one = self.model in ONE_FOCAL
        fx, fy = self.params[0], self.params[0 if one else 1]
        cx, cy = self.params[1 if one else 2 :][:2]
        return Camera(fx, fy, cx - 0.5, cy - 0.5, self.width, self.height)

    @property
    def distortion(self) -> tuple[float, ...]:
        """The parameters after the principal point."""
        return self.params[3 if self.model in ONE_FOCAL else 4 :]


class ModelImage(typing.NamedTuple):
    """An image: its camera's id, camera-to-world pose, observations float64 [N, 2] (px) and their points' ids [N].

    An observation without a point has id -1.
    """

    name: str
    camera: int
    world_T_cam: np.ndarray
    points_px: np.ndarray
    point_ids: np.ndarray


class Model(typing.NamedTuple):
    """A sparse model: cameras and images by id; points: ids int64 [P] in rising order, and places float64 [P, 3]."""

    cameras: dict[int, ModelCamera]
    images: dict[int, ModelImage]
    point_ids: np.ndarray
    points: np.ndarray

    def places(self, ids: np.ndarray) -> np.ndarray:
        """Where the points with these ids are, float64 [N, 3]; UserError if one is not there."""
        at = np.searchsorted(self.point_ids, ids)
        if len(ids) and (at.max() >= len(self.point_ids) or (self.point_ids[at] != ids).any()):
            raise UserError("an image observes a point that the model's points3D does not have")
        return self.points[at]


def find_model(folder: pathlib.Path) -> pathlib.Path | None:
    """The folder of the model below a capture: itself, sparse/0, sparse or another in sparse; None if there is none."""
    places = [folder, folder / "sparse" / "0", folder / "sparse", folder / "colmap", folder / "dense" / "sparse"]
    if (folder / "sparse").is_dir():
        places += sorted(p for p in (folder / "sparse").iterdir() if p.is_dir())
    return next((place for place in places if model_suffix(place)), None)


def model_suffix(folder: pathlib.Path) -> str:
    """The suffix, .bin or .txt, of the model in a folder; "" if there is none."""
    names = ("cameras", "images", "points3D")
    return next((s for s in (".bin", ".txt") if all((folder / f"{name}{s}").is_file() for name in names)), "")


def read_model(folder: pathlib.Path) -> Model:
    """The model in a folder; UserError, which names the file, if it is damaged."""
    suffix = model_suffix(folder)
    if not suffix:
        raise UserError(f"{folder}: no COLMAP model (cameras, images and points3D, .bin or .txt)")
    cameras, images, points = (folder / f"{name}{suffix}" for name in ("cameras", "images", "points3D"))
    binary = suffix == ".bin"
    ids, places = _guarded(_points_bin if binary else _points_txt, points)
    order = np.argsort(ids, kind="stable")
    return Model(
        _guarded(_cameras_bin if binary else _cameras_txt, cameras),
        _guarded(_images_bin if binary else _images_txt, images),
        ids[order],
        places[order],
    )


def _guarded(read, path: pathlib.Path):
    try:
        return read(path)
    except (ValueError, IndexError, KeyError, struct.error, EOFError, UnicodeDecodeError, MemoryError) as error:
        raise UserError(f"{path}: not a readable COLMAP file ({error or type(error).__name__})") from None


def _pose(quaternion, translation) -> np.ndarray:
    """Camera-to-world of COLMAP's world-to-camera (qw, qx, qy, qz) and translation."""
    R = matrix_from_quaternion(*quaternion)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = R.T, -R.T @ np.asarray(translation, np.float64)
    return pose


def _camera(model: str, width, height, params) -> ModelCamera:
    if len(params) != COUNTS[model]:
        raise ValueError(f"{model} has {COUNTS[model]} parameters, got {len(params)}")
    return ModelCamera(model, int(width), int(height), tuple(map(float, params)))


def _cameras_txt(path) -> dict[int, ModelCamera]:
    return {int(w[0]): _camera(w[1], w[2], w[3], w[4:]) for w in rows(path)}


def _images_txt(path) -> dict[int, ModelImage]:
    # The second line of an image may be empty, so that `rows` cannot be used.
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    found = {}
    for head, tail in zip(lines[::2], [*lines[1::2], ""]):
        if not head.strip():
            continue
        words = head.split(maxsplit=9)
        observed = np.array(tail.split(), np.float64).reshape(-1, 3)
        pose = _pose(map(float, words[1:5]), [float(w) for w in words[5:8]])
        points, ids = observed[:, :2] - 0.5, observed[:, 2].astype(np.int64)
        found[int(words[0])] = ModelImage(words[9], int(words[8]), pose, points, ids)
    return found


def _points_txt(path) -> tuple[np.ndarray, np.ndarray]:
    table = [words[:4] for words in rows(path)]
    ids = np.array([int(words[0]) for words in table], np.int64)
    return ids, np.array([words[1:] for words in table], np.float64).reshape(-1, 3)


class _Reader:
    """Little-endian numbers of a file, one after the other."""

    def __init__(self, path: pathlib.Path):
        def read() -> bytes:
            if (size := path.stat().st_size) > MAX_MODEL_BYTES:
                raise UserError(f"{path}: {size} bytes, at most {MAX_MODEL_BYTES} are read")
            return path.read_bytes()

        self.data, self.place = patiently(read, str(path)), 0

    def take(self, form: str) -> tuple:
        values = struct.unpack_from(f"<{form}", self.data, self.place)
        self.place += struct.calcsize(f"<{form}")
        return values

    def array(self, dtype: np.dtype, count: int) -> np.ndarray:
        values = np.frombuffer(self.data, dtype, count, self.place)
        self.place += count * dtype.itemsize
        return values

    def name(self) -> str:
        end = self.data.index(b"\0", self.place)
        name, self.place = self.data[self.place : end].decode(), end + 1
        return name


def _cameras_bin(path) -> dict[int, ModelCamera]:
    reader, found = _Reader(path), {}
    for _ in range(reader.take("Q")[0]):
        id, number, width, height = reader.take("iiQQ")
        model, count = MODELS[number]
        found[id] = _camera(model, width, height, reader.take(f"{count}d"))
    return found


_OBSERVATION = np.dtype([("xy", "<f8", 2), ("id", "<i8")])


def _images_bin(path) -> dict[int, ModelImage]:
    reader, found = _Reader(path), {}
    for _ in range(reader.take("Q")[0]):
        id, *pose, camera = reader.take("I7dI")
        name = reader.name()
        observed = reader.array(_OBSERVATION, reader.take("Q")[0])
        points, ids = observed["xy"] - 0.5, observed["id"].copy()
        found[id] = ModelImage(name, camera, _pose(pose[:4], pose[4:]), points, ids)
    return found


def _points_bin(path) -> tuple[np.ndarray, np.ndarray]:
    reader = _Reader(path)
    (count,) = reader.take("Q")
    ids, places = np.zeros(count, np.int64), np.zeros((count, 3))
    for n in range(count):
        # id, place, colour, error, length of the track; a step of the track is an image's id and an index.
        ids[n], *xyz, _, _, _, _, length = reader.take("QdddBBBdQ")
        places[n] = xyz
        reader.place += 8 * length
    return ids, places
