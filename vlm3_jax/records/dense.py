"""Dense depth as it is stored: a 16-bit PNG in the record, or a PNG, npy or EXR file in place.

A map covers the whole image of its view and may be coarser or finer than it. Pixels are counted from their centres: the
centre of pixel i of a map of n pixels lies at (i + 0.5) N / n - 0.5 of an image of N pixels.
"""

import dataclasses
import io
import pathlib

import numpy as np
from PIL import Image

from vlm3_jax.errors import BadRecord
from vlm3_jax.records import checks
from vlm3_jax.storage import patiently

KINDS = ("z", "distance")
# Metres of one step of a 16-bit map, if the depths allow it.
STEP_M = 1e-3
LARGEST = 2**16 - 1
MAX_MAP_BYTES = 512 * 2**20
MAX_MAP_PIXELS = 200_000_000
SUFFIXES = (".png", ".npy", ".exr")


@dataclasses.dataclass(frozen=True, eq=False)
class DepthMap:
    """The depth of a view, [height, width]: metres = value * `scale`; `kind` "z" or "distance" (to the camera centre).

    Exactly one of `data` (bytes of a 16-bit PNG, 0 where there is no depth) and `path` (a file in place) is given;
    `name` is what errors call it.
    """

    width: int
    height: int
    scale: float
    kind: str
    view: int = 0
    name: str = ""
    data: bytes | None = None
    path: pathlib.Path | None = None

    def load(self) -> np.ndarray:
        """float32 [height, width], metres, NaN where there is none.

        BadRecord if the file is missing, damaged, of another size or of no known kind; Unreadable if the storage fails.
        """
        name = self.name or str(self.path or "depth map")
        data = self.data if self.data is not None else _read(self.path, name)
        suffix = ".png" if self.path is None else self.path.suffix.lower()
        values = _DECODERS[suffix](data, name) if suffix in _DECODERS else None
        if values is None:
            raise BadRecord(f"{name}: a depth map is a file that ends in {', '.join(SUFFIXES)}")
        if values.shape != (self.height, self.width):
            found = " x ".join(map(str, values.shape[::-1]))
            raise BadRecord(f"{name}: the depth map is {found}, expected {self.width} x {self.height}")
        metres = values.astype(np.float32) * np.float32(self.scale)
        metres[~((metres > 0) & (metres < np.inf))] = np.nan
        return metres

    @classmethod
    def read(cls, tree, field: str, views: int) -> "DepthMap":
        """From its stored form (`codec`); a record has no say in which files are read, so it holds the bytes."""
        width, height, scale, kind = tree["width"], tree["height"], tree["scale"], tree["kind"]
        whole = all(type(n) is int and n >= 1 for n in (width, height))
        checks.need(whole, field, f"expected whole numbers as its size, got {width!r} x {height!r}")
        checks.need(width * height <= MAX_MAP_PIXELS, field, f"{width} x {height} is above {MAX_MAP_PIXELS} pixels")
        positive = type(scale) in (int, float) and 0 < scale < np.inf
        checks.need(positive, f"{field}.scale", f"expected a number above 0, got {scale!r}")
        checks.need(kind in KINDS, f"{field}.kind", f'expected "distance" or "z", got {kind!r}')
        checks.need(isinstance(tree["name"], str), f"{field}.name", "expected text")
        checks.need(isinstance(tree["data"], bytes), f"{field}.data", "expected the bytes of a 16-bit PNG")
        view = checks.view_number(tree, field, views)
        return cls(width, height, float(scale), kind, view, tree["name"], data=tree["data"])

    def image_points(self, cells: np.ndarray, camera) -> np.ndarray:
        """Map pixels int [N, 2] (x, y) -> the nearest pixels of the camera's image, int64 [N, 2]."""
        size = np.array([camera.width, camera.height])
        centres = (np.asarray(cells) + 0.5) * size / (self.width, self.height) - 0.5
        # Of two that are as near the right one, as floor(x + 0.5) takes it.
        return np.clip(np.floor(centres + 0.5), 0, size - 1).astype(np.int64)

    def cells(self, points_px: np.ndarray, camera) -> np.ndarray:
        """Pixels [N, 2] of the camera's image -> the map pixels [N, 2] that they lie in, int64."""
        size = np.array([self.width, self.height])
        cells = np.floor((np.asarray(points_px, np.float64) + 0.5) * size / (camera.width, camera.height))
        return np.clip(cells, 0, size - 1).astype(np.int64)


def encode_depth(depth_m: np.ndarray, kind: str, scale: float | None = None, view: int = 0, name: str = "") -> DepthMap:
    """Metres [H, W] (NaN, 0, inf or below: none) as a 16-bit PNG; `scale`: metres a step.

    Without a scale it is 1e-3 where the largest depth fits, else the least that holds it. ValueError for a kind that
    there is not, or a depth that the given scale cannot hold.
    """
    depth_m = np.asarray(depth_m)
    if kind not in KINDS or depth_m.ndim != 2 or not depth_m.size:
        raise ValueError(f"expected depths [H, W] of kind {KINDS}, got shape {depth_m.shape} of kind {kind!r}")
    there = (depth_m > 0) & (depth_m < np.inf)
    depth = np.where(there, depth_m, 0).astype(np.float64)
    largest = float(depth.max())
    scale = float(scale) if scale else max(STEP_M, largest / LARGEST)
    steps = np.rint(depth / scale)
    if steps.max() > LARGEST:
        raise ValueError(f"{name}: {largest:g} m is above what 16 bits hold in steps of {scale:g} m")
    # What is nearer than half a step would read as none.
    steps = np.where(there, np.maximum(steps, 1), 0).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(steps).save(buffer, "PNG", compress_level=3)
    return DepthMap(depth.shape[1], depth.shape[0], scale, kind, view, name, data=buffer.getvalue())


def _read(path: pathlib.Path, name: str) -> bytes:
    def read() -> bytes:
        size = path.stat().st_size
        if size > MAX_MAP_BYTES:
            raise BadRecord(f"{name}: {size} bytes is above the limit of {MAX_MAP_BYTES}")
        return path.read_bytes()

    try:
        return patiently(read, name)
    except FileNotFoundError:
        raise BadRecord(f"{name}: no such depth map") from None
    except OSError as error:
        raise BadRecord(f"{name}: cannot read the depth map ({error.strerror})") from None


def _png(data: bytes, name: str) -> np.ndarray:
    try:
        image = Image.open(io.BytesIO(data), formats=["PNG"])
        if image.width * image.height > MAX_MAP_PIXELS:
            raise BadRecord(f"{name}: {image.width} x {image.height} pixels is above {MAX_MAP_PIXELS}")
        if image.mode[0] != "I":
            raise BadRecord(f"{name}: a depth map is a PNG of one channel of 16 bits, this one is {image.mode}")
        return np.asarray(image)
    except (BadRecord, MemoryError):
        raise
    # Damaged bytes make Pillow raise all kinds of errors.
    except Exception as error:
        raise BadRecord(f"{name}: cannot decode the depth map ({error})") from None


def _npy(data: bytes, name: str) -> np.ndarray:
    return read_npy(data, name)


def read_npy(data: bytes, name: str) -> np.ndarray:
    """The numbers of an npy file; BadRecord if it holds anything else (nothing is unpickled)."""
    try:
        values = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, MemoryError, OverflowError) as error:
        raise BadRecord(f"{name}: not a readable npy file of numbers ({error})") from None
    if values.dtype.kind not in "iuf":
        raise BadRecord(f"{name}: expected numbers, got {values.dtype}")
    return values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values


def _exr(data: bytes, name: str) -> np.ndarray:
    """The one channel of an EXR file, or that which is called Z, Y or R (then all channels hold the depth)."""
    try:
        import OpenEXR
    except ImportError:
        raise BadRecord(f"{name}: reading EXR needs OpenEXR; pip install 'vlm3-jax[builders]'") from None
    import tempfile

    try:
        # It reads files only.
        with tempfile.NamedTemporaryFile(suffix=".exr") as file:
            file.write(data)
            file.flush()
            with OpenEXR.File(file.name, separate_channels=True) as opened:
                channels = {key: np.array(value.pixels) for key, value in opened.channels().items()}
    # Damaged bytes make it raise all kinds of errors.
    except Exception as error:
        raise BadRecord(f"{name}: cannot decode the depth map ({error})") from None
    key = next((key for key in ("Z", "Y", "R", "V") if key in channels), None)
    if key is None and len(channels) != 1:
        raise BadRecord(f"{name}: of its channels {sorted(channels)} none is called Z, Y or R")
    return channels[key] if key else next(iter(channels.values()))


_DECODERS = {".png": _png, ".npy": _npy, ".exr": _exr}
