"""Records as bytes: msgpack for ArrayRecord files, every field checked when it is read; nothing is ever unpickled."""

import dataclasses

import msgpack
import numpy as np

from vlm3_jax.camera import Camera
from vlm3_jax.errors import BadRecord
from vlm3_jax.records.record import DepthPoints, ImageRef, Matches, Objects, Record, View


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
