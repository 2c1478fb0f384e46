"""COLMAP's sparse models, text and binary: cameras, images with the points that they see, and where these are.

File formats as COLMAP documents them (colmap.github.io/format.html). COLMAP counts pixels from the corner of the first,
this project from its centre: principal points and observations are shifted by half a pixel when they are read.
"""

import io
import struct
import typing
from collections.abc import Iterator, Sequence

import numpy as np

from vlm3_jax.camera import Camera
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.pose import from_quaternion, inverse
from vlm3_jax.storage import AnyPath, patiently
from vlm3_jax.storage.folders import fetched_file

# Name and number of parameters by COLMAP's number of the model.
MODELS = (
    ("SIMPLE_PINHOLE", 3),
    ("PINHOLE", 4),
    ("SIMPLE_RADIAL", 4),
    ("RADIAL", 5),
    ("OPENCV", 8),
    ("OPENCV_FISHEYE", 8),
    ("FULL_OPENCV", 12),
    ("FOV", 5),
    ("SIMPLE_RADIAL_FISHEYE", 4),
    ("RADIAL_FISHEYE", 5),
    ("THIN_PRISM_FISHEYE", 12),
    ("RAD_TAN_THIN_PRISM_FISHEYE", 16),
)
COUNTS = dict(MODELS)
# Models with one focal length: f cx cy ..., the others fx fy cx cy ...
ONE_FOCAL = {"SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE"}
MAX_MODEL_BYTES = 16 * 2**30
_OBSERVATION = np.dtype([("xy", "<f8", 2), ("id", "<i8")])


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
    """An image: its camera, camera-to-world [4, 4], and which 3-D points it sees where.

    `points`: their ids, int64 [M], rising; `points_px` float64 [M, 2]. Observations without a point are left out.
    """

    name: str
    camera: ModelCamera
    world_T_cam: np.ndarray
    points: np.ndarray
    points_px: np.ndarray


class Model(typing.NamedTuple):
    """A sparse model: images by name, in order; points: ids int64 [P], rising, and places float64 [P, 3]."""

    images: dict[str, ModelImage]
    point_ids: np.ndarray
    points: np.ndarray

    def places(self, ids: np.ndarray) -> np.ndarray:
        """Where the points with these ids are, float64 [N, 3]; UserError if one is not there."""
        at = np.searchsorted(self.point_ids, ids)
        if len(ids) and (at.max() >= len(self.point_ids) or (self.point_ids[at] != ids).any()):
            raise UserError("an image observes a point that the model's points3D does not have")
        return self.points[at]


def find_model(folder: AnyPath) -> AnyPath | None:
    """The folder of the model below a capture: itself, sparse/0, sparse or another in sparse; None if there is none."""
    places = [folder, folder / "sparse" / "0", folder / "sparse", folder / "colmap", folder / "dense" / "sparse"]
    if (folder / "sparse").is_dir():
        places += sorted(p for p in (folder / "sparse").iterdir() if p.is_dir())
    return next((place for place in places if _suffix(place, ("cameras", "images", "points3D"))), None)


def read_model(folder: AnyPath) -> Model:
    """The model in a folder. UserError if there is none; it names the file if that is damaged."""
    images, (points,) = _read(folder, "points3D")
    ids, places = _guarded(_points_bin if points.suffix == ".bin" else _points_txt, points)
    order = np.argsort(ids, kind="stable")
    return Model(images, ids[order], places[order])


def read_images(folder: AnyPath) -> dict[str, ModelImage]:
    """The images of a model by name, in order; its points3D need not be there. UserError as `read_model`."""
    return _read(folder)[0]


def share(first: ModelImage, second: ModelImage) -> float:
    """How many of the points that the first image sees the second one sees too, 0 to 1."""
    both = np.intersect1d(first.points, second.points, assume_unique=True)
    return len(both) / len(first.points) if len(first.points) else 0.0


def common_points(images: Sequence[ModelImage]) -> tuple[np.ndarray, np.ndarray]:
    """(pairs [K, 2] of images' numbers, the smaller first, in order; how many points the two have in common [K])."""
    points = np.concatenate([image.points for image in images] or [np.zeros(0, np.int64)])
    owners = np.repeat(np.arange(len(images)), [len(image.points) for image in images])
    order = np.lexsort((owners, points))
    owners, points = owners[order], points[order]
    pairs, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    # Of a point's images, sorted, every two are some places apart.
    for apart in range(1, len(images)):
        same = points[apart:] == points[:-apart]
        if not same.any():
            break
        new, more = np.unique(owners[:-apart][same] * len(images) + owners[apart:][same], return_counts=True)
        pairs, place = np.unique(np.concatenate([pairs, new]), return_inverse=True)
        counts = np.bincount(place, np.concatenate([counts, more])).astype(np.int64)
    return np.stack(np.divmod(pairs, max(len(images), 1)), -1), counts


def _suffix(folder: AnyPath, names: Sequence[str]) -> str:
    """The suffix, .bin or .txt, that all files of these names have in a folder; "" if there is none."""
    return next((s for s in (".bin", ".txt") if all((folder / f"{name}{s}").is_file() for name in names)), "")


def _read(folder: AnyPath, *more: str) -> tuple[dict[str, ModelImage], list[AnyPath]]:
    """The images of a model, and its files of `more` names."""
    names = "cameras", "images", *more
    suffix = _suffix(folder, names)
    if not suffix:
        raise UserError(f"{folder}: no COLMAP model ({', '.join(names[:-1])} and {names[-1]}, .bin or .txt)")
    cameras_file, images_file, *rest = (folder / f"{name}{suffix}" for name in names)
    binary = suffix == ".bin"
    cameras = _guarded(_cameras_bin if binary else _cameras_txt, cameras_file)
    images_of = _images_bin if binary else _images_txt
    images = _guarded(lambda data: list(images_of(data, cameras)), images_file)
    return {image.name: image for image in sorted(images, key=lambda image: image.name)}, rest


def _guarded(read, path: AnyPath):
    def contents() -> bytes:
        if (size := path.stat().st_size) > MAX_MODEL_BYTES:
            raise UserError(f"{path}: {size} bytes, at most {MAX_MODEL_BYTES} are read")
        return fetched_file(path).read_bytes()

    data = patiently(contents, str(path))
    try:
        return read(data)
    except (BadRecord, ValueError, IndexError, KeyError, struct.error, EOFError, MemoryError) as error:
        raise UserError(f"{path}: not a readable COLMAP file ({error or type(error).__name__})") from None


def _camera(model: str, width, height, params) -> ModelCamera:
    if len(params) != COUNTS[model]:
        raise ValueError(f"{model} has {COUNTS[model]} parameters, got {len(params)}")
    return ModelCamera(model, int(width), int(height), tuple(map(float, params)))


def _image(name: str, camera: ModelCamera, quaternion, translation, points_px, ids) -> ModelImage:
    ids, first = np.unique(np.asarray(ids).astype(np.int64), return_index=True)
    seen, pose = ids >= 0, inverse(from_quaternion(quaternion, translation))
    return ModelImage(name, camera, pose, ids[seen], points_px[first[seen]] - 0.5)


def _lines(data: bytes) -> Iterator[str]:
    with io.TextIOWrapper(io.BytesIO(data), "utf-8", "replace") as file:
        yield from (line for line in file if not line.startswith("#"))


def _cameras_txt(data: bytes) -> dict[int, ModelCamera]:
    rows = (line.split() for line in _lines(data) if line.strip())
    return {int(w[0]): _camera(w[1], float(w[2]), float(w[3]), w[4:]) for w in rows}


def _images_txt(data: bytes, cameras: dict[int, ModelCamera]) -> Iterator[ModelImage]:
    # Two lines an image; the second is empty for one that sees no point.
    lines = _lines(data)
    for head in lines:
        seen = np.array(next(lines, "").split(), np.float64).reshape(-1, 3)
        if head.strip():
            words = head.rstrip("\r\n").split(maxsplit=9)
            numbers = [float(word) for word in words[1:8]]
            yield _image(words[9], cameras[int(words[8])], numbers[:4], numbers[4:], seen[:, :2], seen[:, 2])


def _points_txt(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    # Behind place, colour and error stands the track, which is long.
    table = [line.split(maxsplit=4)[:4] for line in _lines(data) if line.strip()]
    ids = np.array([int(words[0]) for words in table], np.int64)
    return ids, np.array([words[1:] for words in table], np.float64).reshape(-1, 3)


class _Reader:
    """Little-endian numbers, one after the other."""

    def __init__(self, data: bytes):
        self.data, self.place = data, 0

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
        name, self.place = self.data[self.place : end].decode("utf-8", "replace"), end + 1
        return name


def _cameras_bin(data: bytes) -> dict[int, ModelCamera]:
    reader, found = _Reader(data), {}
    for _ in range(reader.take("Q")[0]):
        id, number, width, height = reader.take("iiQQ")
        if not 0 <= number < len(MODELS):
            raise ValueError(f"no camera model has the number {number}")
        model, count = MODELS[number]
        found[id] = _camera(model, width, height, reader.take(f"{count}d"))
    return found


def _images_bin(data: bytes, cameras: dict[int, ModelCamera]) -> Iterator[ModelImage]:
    reader = _Reader(data)
    for _ in range(reader.take("Q")[0]):
        _, *pose, camera = reader.take("I7di")
        name = reader.name()
        seen = reader.array(_OBSERVATION, reader.take("Q")[0])
        yield _image(name, cameras[camera], pose[:4], pose[4:], seen["xy"], seen["id"])


def _points_bin(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    reader = _Reader(data)
    (count,) = reader.take("Q")
    # Of a damaged count, what there is room for.
    ids, places = np.zeros(min(count, len(data)), np.int64), np.zeros((min(count, len(data)), 3))
    for n in range(count):
        # id, place, colour, error, length of the track; a step of the track is an image's id and an index.
        ids[n], *xyz, _, _, _, _, length = reader.take("QdddBBBdQ")
        places[n] = xyz
        reader.place += 8 * length
    if reader.place > len(data):
        raise EOFError("it is cut off")
    return ids, places
