"""Records: what every source yields, whatever the data set looked like on disk.

A record holds one or two views (an image that is not decoded yet, its camera, its pose) and the labels it has. It is
turned into bytes with msgpack for ArrayRecord files; nothing in it is ever unpickled.
"""

import dataclasses
import io
import pathlib

import msgpack
import numpy as np
from PIL import Image, UnidentifiedImageError

from vlm3_jax.camera import Camera
from vlm3_jax.data.reading import patiently
from vlm3_jax.errors import BadRecord

MAX_IMAGE_BYTES = 256 * 2**20
MAX_IMAGE_PIXELS = 200_000_000
# Pillow knows more, and would start other programs on the data for some of them.
FORMATS = ("JPEG", "PNG", "WEBP")


@dataclasses.dataclass(frozen=True, eq=False)
class ImageRef:
    """An image that is not decoded yet: its size is known, its pixels are read by `load`.

    Exactly one of `path` and `data` (encoded JPEG, PNG or WebP bytes) is given; `name` is what errors call it.
    """

    width: int
    height: int
    name: str
    path: pathlib.Path | None = None
    data: bytes | None = None

    def load(self) -> np.ndarray:
        """Decoded pixels, uint8 [height, width, 3], RGB.

        BadRecord if the image is missing, damaged, of another size or of more than 8 bits a value; Unreadable if the
        storage fails twice.
        """
        data = self.data if self.data is not None else self._read()
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            self._check(image)
            return np.asarray(image.convert("RGB"))
        except (BadRecord, MemoryError):
            raise
        except UnidentifiedImageError:
            raise BadRecord(f"{self.name}: cannot decode the image (no {', '.join(FORMATS)} file)") from None
        # Damaged bytes make Pillow raise all kinds of errors.
        except Exception as error:
            raise BadRecord(f"{self.name}: cannot decode the image ({error})") from None

    def _check(self, image: Image.Image) -> None:
        """BadRecord if the pixels, not decoded yet, cannot be used."""
        if image.width * image.height > MAX_IMAGE_PIXELS:
            raise BadRecord(f"{self.name}: {image.width} x {image.height} pixels is above {MAX_IMAGE_PIXELS}")
        if image.size != (self.width, self.height):
            raise BadRecord(
                f"{self.name}: the image is {image.width} x {image.height}, its labels say {self.width} x {self.height}"
            )
        # Pillow would clip these at 255, most of them to white; "I;16", "I" and "F" are 16 and 32 bits a pixel.
        if image.mode[0] in "IF":
            raise BadRecord(f"{self.name}: an image of 16 or more bits a pixel ({image.mode}); convert it to 8 bits")

    def _read(self) -> bytes:
        try:
            return patiently(self._bytes, self.name)
        except FileNotFoundError:
            raise BadRecord(f"{self.name}: no such image file") from None
        except OSError as error:
            raise BadRecord(f"{self.name}: cannot read the image ({error.strerror})") from None

    def _bytes(self) -> bytes:
        size = self.path.stat().st_size
        if size > MAX_IMAGE_BYTES:
            raise BadRecord(f"{self.name}: {size} bytes is above the limit of {MAX_IMAGE_BYTES}")
        return self.path.read_bytes()


def encode_image(pixels: np.ndarray, name: str) -> ImageRef:
    """uint8 [H, W, 3] -> an ImageRef that holds the pixels as PNG (lossless)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=3)
    return ImageRef(pixels.shape[1], pixels.shape[0], name, data=buffer.getvalue())


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """One image with its camera and, where known, its 4x4 camera-to-world pose (OpenCV).

    As stored, the camera is that of the stored image. `flip`: the image is the stored one mirrored left to right.
    `crop` (left, top, full width, full height): the camera's image is cut at (left, top) from the one resized to full
    size.
    """

    image: ImageRef
    camera: Camera
    world_T_cam: np.ndarray | None = None
    flip: bool = False
    crop: tuple[int, int, int, int] | None = None

    def seen_by(self, camera: Camera) -> "View":
        """The view after a resize, or after a crop: a camera of the same focal lengths that sees a smaller image."""
        old = self.camera
        if (camera.fx, camera.fy) != (old.fx, old.fy) or (camera.width, camera.height) == (old.width, old.height):
            return dataclasses.replace(self, camera=camera)
        left, top, *full = self.crop or (0, 0, old.width, old.height)
        crop = (left + round(old.cx - camera.cx), top + round(old.cy - camera.cy), *full)
        return dataclasses.replace(self, camera=camera, crop=crop)


@dataclasses.dataclass(frozen=True, eq=False)
class DepthPoints:
    """Labelled pixels of one view: `points_px` int [N, 2], `depth_m` [N], `kind` "distance" (to the centre) or "z"."""

    points_px: np.ndarray
    depth_m: np.ndarray
    kind: str
    view: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Objects:
    """Objects of one view.

    `boxes_px` int [M, 4] as x1, y1, x2, y2; `names` M strings; `points_m` M arrays [P, 3] of surface points in a frame
    at the camera, x right, y down, z forward, gravity aligned (y is straight down, z the horizontal viewing direction).
    """

    boxes_px: np.ndarray
    names: tuple[str, ...]
    points_m: tuple[np.ndarray, ...]
    view: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Matches:
    """Pixels of view 0, int [N, 2], and where the same surface lies in view 1, float [N, 2]; visible in both."""

    points0_px: np.ndarray
    points1_px: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """One item of a source. `id` is unique within the source; `metric` says whether poses are in metres."""

    id: str
    views: tuple[View, ...]
    depth: tuple[DepthPoints, ...] = ()
    objects: tuple[Objects, ...] = ()
    matches: Matches | None = None
    covisibility: float | None = None
    metric: bool = True


def unify(record: Record, focal: float, policy: str = "uniform") -> Record:
    """The record with every camera at focal length `focal` (px) and every label in pixels of the resized images.

    Images stay as stored: `data.image` resizes the pixels to the new camera's size when they are decoded.
    """
    cameras = [view.camera.unify(focal, policy) for view in record.views]
    return with_cameras(record, cameras)


def with_cameras(record: Record, cameras) -> Record:
    """The record as seen through resized or cropped `cameras` (one a view); labels are mapped, none is removed."""

    def mapped(view, points):
        return record.views[view].camera.map_points(points, cameras[view])

    def scaled(view, points):
        old, new = record.views[view].camera, cameras[view]
        focal = np.array([new.fx / old.fx, new.fy / old.fy])
        return (np.asarray(points, np.float64) - [old.cx, old.cy]) * focal + [new.cx, new.cy]

    matches = record.matches and Matches(mapped(0, record.matches.points0_px), scaled(1, record.matches.points1_px))
    return dataclasses.replace(
        record,
        views=tuple(v.seen_by(c) for v, c in zip(record.views, cameras, strict=True)),
        depth=tuple(dataclasses.replace(d, points_px=mapped(d.view, d.points_px)) for d in record.depth),
        objects=tuple(
            dataclasses.replace(o, boxes_px=mapped(o.view, o.boxes_px.reshape(-1, 2)).reshape(-1, 4))
            for o in record.objects
        ),
        matches=matches,
    )


def flip(record: Record) -> Record:
    """The stored record mirrored left to right: every label stays exact for the mirrored images.

    Pixel x becomes W - 1 - x, also of principal points; 3-D points become (-x, y, z); a pose T becomes F T F with
    F = diag(-1, 1, 1, 1), the rotation of the mirrored world. Flip before `unify`: resizing assumes stored images.
    """
    sign = np.array([-1, 1, 1, 1], np.float32)

    def mirrored_view(view):
        camera = dataclasses.replace(view.camera, cx=view.camera.width - 1 - view.camera.cx)
        pose = None if view.world_T_cam is None else sign[:, None] * view.world_T_cam * sign
        return dataclasses.replace(view, camera=camera, world_T_cam=pose, flip=not view.flip)

    def mirrored(view, points):
        points = np.array(points)
        points[..., 0] = record.views[view].camera.width - 1 - points[..., 0]
        return points

    def mirrored_boxes(view, boxes):
        corners = mirrored(view, np.reshape(boxes, (-1, 2, 2)))
        return np.stack([corners[:, 1, 0], corners[:, 0, 1], corners[:, 0, 0], corners[:, 1, 1]], -1)

    return dataclasses.replace(
        record,
        views=tuple(map(mirrored_view, record.views)),
        depth=tuple(dataclasses.replace(d, points_px=mirrored(d.view, d.points_px)) for d in record.depth),
        objects=tuple(
            dataclasses.replace(
                o, boxes_px=mirrored_boxes(o.view, o.boxes_px), points_m=tuple(p * sign[:3] for p in o.points_m)
            )
            for o in record.objects
        ),
        matches=record.matches
        and Matches(mirrored(0, record.matches.points0_px), mirrored(1, record.matches.points1_px)),
    )


def to_bytes(record: Record) -> bytes:
    """The record as msgpack; every image must hold its encoded bytes (`ImageRef.data`)."""

    def plain(value):
        if isinstance(value, np.ndarray):
            return {
                "dtype": value.dtype.str,
                "shape": list(value.shape),
                "bytes": np.ascontiguousarray(value).tobytes(),
            }
        if isinstance(value, ImageRef):
            if value.data is None:
                raise ValueError(f"{value.name}: only an image with its bytes can be written")
            return {"width": value.width, "height": value.height, "name": value.name, "data": value.data}
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, tuple | list):
            return [plain(v) for v in value]
        return value.item() if isinstance(value, np.generic) else value

    return msgpack.packb(plain(record))


def from_bytes(data: bytes) -> Record:
    """The inverse of `to_bytes`. BadRecord, naming the field, if the bytes are not a record or its parts disagree."""
    try:
        tree = msgpack.unpackb(data)
        views = tuple(_view(v, f"views[{n}]") for n, v in enumerate(tree["views"]))
        matches = tree["matches"]
        record = Record(
            id=str(tree["id"]),
            views=views,
            depth=tuple(_depth(d, f"depth[{n}]", len(views)) for n, d in enumerate(tree["depth"])),
            objects=tuple(_objects(o, f"objects[{n}]", len(views)) for n, o in enumerate(tree["objects"])),
            matches=None if matches is None else _matches(matches, len(views)),
            covisibility=tree["covisibility"],
            metric=tree["metric"],
        )
    except BadRecord:
        raise
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError, msgpack.UnpackException) as error:
        raise BadRecord(f"not a record of this project ({type(error).__name__}: {error})") from None
    _need(views, "views", "there is none")
    overlap = record.covisibility
    number = isinstance(overlap, int | float) and overlap == overlap
    _need(overlap is None or number, "covisibility", f"expected a number, got {overlap!r}")
    _need(isinstance(record.metric, bool), "metric", f"expected true or false, got {record.metric!r}")
    return record


def _view(tree, field: str) -> View:
    image, crop, flip = tree["image"], tree.get("crop"), tree.get("flip", False)
    _need(isinstance(image["data"], bytes), f"{field}.image.data", "expected the bytes of an image file")
    _need(isinstance(image["name"], str), f"{field}.image.name", "expected text")
    camera = Camera(**tree["camera"])
    for part, size in (("image", (image["width"], image["height"])), ("camera", (camera.width, camera.height))):
        _need(all(n % 1 == 0 for n in size), f"{field}.{part}", f"expected whole numbers as its size, got {size}")
    _need(isinstance(flip, bool), f"{field}.flip", f"expected true or false, got {flip!r}")
    if crop is not None:
        whole = isinstance(crop, list) and len(crop) == 4 and all(isinstance(n, int) for n in crop)
        _need(whole, f"{field}.crop", f"expected 4 whole numbers, got {crop!r}")
    pose = tree["world_T_cam"]
    return View(
        # Not `**image`: a record has no say in which files are read.
        ImageRef(image["width"], image["height"], image["name"], data=image["data"]),
        camera,
        None if pose is None else _array(pose, f"{field}.world_T_cam", 4, 4),
        flip,
        crop and tuple(crop),
    )


def _depth(tree, field: str, views: int) -> DepthPoints:
    points = _pixels(tree["points_px"], f"{field}.points_px", None, 2)
    depth = _array(tree["depth_m"], f"{field}.depth_m", len(points))
    _need(tree["kind"] in ("distance", "z"), f"{field}.kind", f'expected "distance" or "z", got {tree["kind"]!r}')
    return DepthPoints(points, depth, tree["kind"], _view_number(tree, field, views))


def _objects(tree, field: str, views: int) -> Objects:
    boxes, names, points = _pixels(tree["boxes_px"], f"{field}.boxes_px", None, 4), tree["names"], tree["points_m"]
    for part, values in (("names", names), ("points_m", points)):
        right = isinstance(values, list) and len(values) == len(boxes)
        _need(right, f"{field}.{part}", f"expected a list of {len(boxes)}, one for each box")
    _need(all(isinstance(name, str) for name in names), f"{field}.names", "expected text")
    clouds = tuple(_array(p, f"{field}.points_m[{n}]", None, 3) for n, p in enumerate(points))
    return Objects(boxes, tuple(names), clouds, _view_number(tree, field, views))


def _matches(tree, views: int) -> Matches:
    _need(views >= 2, "matches", "the record has one view, matches need two")
    points = _pixels(tree["points0_px"], "matches.points0_px", None, 2)
    return Matches(points, _pixels(tree["points1_px"], "matches.points1_px", len(points), 2))


def _view_number(tree, field: str, views: int) -> int:
    view = tree["view"]
    right = isinstance(view, int) and 0 <= view < views
    _need(right, f"{field}.view", f"is {view!r}, and the record has {views} views, counted from 0")
    return view


def _pixels(tree, field: str, *shape: int | None) -> np.ndarray:
    points = _array(tree, field, *shape)
    _need(points.dtype.kind != "f" or np.isfinite(points).all(), field, "its pixels are not finite")
    return points


def _array(tree, field: str, *shape: int | None) -> np.ndarray:
    """A stored array of numbers; BadRecord unless it has this shape (None: any length)."""
    dtype = np.dtype(tree["dtype"])
    if dtype.kind not in "iuf":
        raise BadRecord(f"{field}: expected an array of numbers, got {dtype}")
    array = np.frombuffer(tree["bytes"], dtype).reshape(tree["shape"])
    if not array.size and shape[0] is None:
        # np.array([]) has but one axis.
        return array.reshape(0, *shape[1:])
    right = array.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, array.shape))
    if not right:
        wanted = " x ".join("N" if n is None else str(n) for n in shape)
        raise BadRecord(f"{field}: expected {wanted} numbers, got shape {list(array.shape)}")
    return array


def _need(right: bool, field: str, what: str) -> None:
    if not right:
        raise BadRecord(f"{field}: {what}")
