"""Dense depth and masks as they are stored: PNGs in the record, or PNG, npy or EXR files in place.

A map covers the whole image of its view and may be coarser or finer than it. Pixels are counted from their centres: the
centre of pixel i of a map of n pixels lies at (i + 0.5) N / n - 0.5 of an image of N pixels.
"""

import dataclasses
import io

import numpy as np
from PIL import Image

from vlm3_jax.errors import BadRecord
from vlm3_jax.records import checks, map_files
from vlm3_jax.records.map_files import MAX_MAP_PIXELS
from vlm3_jax.storage import AnyPath

KINDS = ("z", "distance")
# Metres of one step of a 16-bit map, if the depths allow it.
STEP_M = 1e-3
LARGEST = 2**16 - 1


class Grid:
    """Values of a view, [height, width]: which of them a pixel of the image lies in, and the other way."""

    width: int
    height: int

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


@dataclasses.dataclass(frozen=True, eq=False)
class DepthMap(Grid):
    """The depth of a view, [height, width]: metres = value * `scale`; `kind` "z" or "distance" (to the camera centre).

    One of `data` (bytes of a 16-bit PNG, 0 where there is no depth), `path` (a file in place) and `values` (a map that
    was read already, [height, width]) is given; `name` is what errors call it.
    """

    width: int
    height: int
    scale: float
    kind: str
    view: int = 0
    name: str = ""
    data: bytes | None = None
    path: AnyPath | None = None
    values: np.ndarray | None = None

    def load(self) -> np.ndarray:
        """float32 [height, width], metres, NaN where there is none.

        BadRecord if the file is missing, damaged, of another size or of no known kind; Unreadable if the storage fails.
        """
        values = self.values if self.values is not None else _decoded(self)
        metres = values.astype(np.float32) * np.float32(self.scale)
        metres[~((metres > 0) & (metres < np.inf))] = np.nan
        return metres

    @classmethod
    def read(cls, tree, field: str, views: int) -> "DepthMap":
        """From its stored form (`codec`); a record has no say in which files are read, so it holds the bytes."""
        _check_grid(tree, field)
        scale, kind = tree["scale"], tree["kind"]
        positive = type(scale) in (int, float) and 0 < scale < np.inf
        checks.need(positive, f"{field}.scale", f"expected a number above 0, got {scale!r}")
        checks.need(kind in KINDS, f"{field}.kind", f'expected "distance" or "z", got {kind!r}')
        view = checks.view_number(tree, field, views)
        return cls(tree["width"], tree["height"], float(scale), kind, view, tree["name"], data=tree["data"])


# What a mask is for: its pixels above 0 have labels, or have none, or are those of objects.
USES = ("keep", "drop", "objects")


@dataclasses.dataclass(frozen=True, eq=False)
class Mask(Grid):
    """A mask of a view: where labels may be drawn ("keep"), where not ("drop"), or which objects are seen ("objects").

    Of objects the value n > 0 is object n, called `names[n - 1]`; `down` is the direction of gravity in the camera's
    frame (x right, y down, z forward), to whose level objects are measured. `data`: bytes of a PNG of one channel of 8
    or 16 bits; or `path`: a file in place.
    """

    width: int
    height: int
    use: str
    view: int = 0
    name: str = ""
    names: tuple[str, ...] = ()
    down: tuple[float, float, float] = (0.0, 1.0, 0.0)
    data: bytes | None = None
    path: AnyPath | None = None

    def load(self) -> np.ndarray:
        """int32 [height, width]. BadRecord as by `DepthMap.load`."""
        values = _decoded(self, bits=8)
        if values.dtype.kind not in "iub":
            values = np.nan_to_num(values)
        return values.astype(np.int32)

    @classmethod
    def read(cls, tree, field: str, views: int) -> "Mask":
        """From its stored form (`codec`)."""
        _check_grid(tree, field)
        use, names, down = tree["use"], tree["names"], tree["down"]
        checks.need(use in USES, f"{field}.use", f"expected one of {', '.join(USES)}, got {use!r}")
        texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
        checks.need(texts, f"{field}.names", "expected texts")
        numbers = isinstance(down, list) and len(down) == 3 and all(type(n) in (int, float) for n in down)
        right = numbers and 0 < np.linalg.norm(down) < np.inf
        checks.need(right, f"{field}.down", f"expected a direction of 3 numbers, got {down!r}")
        view = checks.view_number(tree, field, views)
        size = tree["width"], tree["height"]
        return cls(*size, use, view, tree["name"], tuple(names), tuple(map(float, down)), data=tree["data"])


def encode_mask(values: np.ndarray, use: str, view: int = 0, name: str = "", names=(), down=(0.0, 1.0, 0.0)) -> Mask:
    """A mask [H, W] of truth values or numbers from 0 to 65,535 as PNG. ValueError for anything else."""
    values = np.asarray(values)
    if use not in USES or values.ndim != 2 or values.min() < 0 or values.max() > LARGEST:
        raise ValueError(f"expected a mask [H, W] for {USES}, got shape {values.shape} for {use!r}")
    small = values.max() <= 255
    data = _encoded(values.astype(np.uint8 if small else np.uint16))
    return Mask(values.shape[1], values.shape[0], use, view, name, tuple(names), tuple(down), data=data)


def place_depth(path: AnyPath, scale: float, kind: str, view: int = 0, name: str = "") -> DepthMap:
    """The map in a file, whose header tells its size. BadRecord if it is missing or no map."""
    return DepthMap(*map_files.size(path, name or str(path)), scale, kind, view, name or str(path), path=path)


def place_mask(path: AnyPath, use: str, view: int = 0, name: str = "") -> Mask:
    """The mask in a file, whose header tells its size. BadRecord if it is missing or none."""
    return Mask(*map_files.size(path, name or str(path)), use, view, name or str(path), path=path)


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
    return DepthMap(depth.shape[1], depth.shape[0], scale, kind, view, name, data=_encoded(steps))


def _encoded(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def _check_grid(tree, field: str) -> None:
    width, height = tree["width"], tree["height"]
    whole = all(type(n) is int and n >= 1 for n in (width, height))
    checks.need(whole, field, f"expected whole numbers as its size, got {width!r} x {height!r}")
    checks.need(width * height <= MAX_MAP_PIXELS, field, f"{width} x {height} is above {MAX_MAP_PIXELS} pixels")
    checks.need(isinstance(tree["name"], str), f"{field}.name", "expected text")
    checks.need(isinstance(tree["data"], bytes), f"{field}.data", "expected the bytes of a PNG")


def _decoded(stored, bits: int = 16) -> np.ndarray:
    """The values of a map or mask; BadRecord if they are not of its size."""
    name = stored.name or str(stored.path or "map")
    if stored.data is not None:
        values = map_files.decode(stored.data, ".png", name, bits)
    else:
        values = map_files.decode(map_files.read(stored.path, name), stored.path.suffix.lower(), name, bits)
    if values.shape != (stored.height, stored.width):
        found = " x ".join(map(str, values.shape[::-1]))
        raise BadRecord(f"{name}: the map is {found}, expected {stored.width} x {stored.height}")
    return values
