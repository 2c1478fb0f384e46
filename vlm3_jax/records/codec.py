"""Records as bytes: msgpack for ArrayRecord files, every field checked when it is read; nothing is ever unpickled."""

import dataclasses

import msgpack
import numpy as np

from vlm3_jax.camera import Camera
from vlm3_jax.errors import BadRecord
from vlm3_jax.records.checks import array, need
from vlm3_jax.records.dense import DepthMap, Mask
from vlm3_jax.records.record import LABELS, ImageRef, Record, View


def to_bytes(record: Record) -> bytes:
    """The record as msgpack; every image and depth map must hold its encoded bytes (`ImageRef.data`)."""

    def plain(value):
        if isinstance(value, np.ndarray):
            return {
                "dtype": value.dtype.str,
                "shape": list(value.shape),
                "bytes": np.ascontiguousarray(value).tobytes(),
            }
        if isinstance(value, ImageRef | DepthMap | Mask):
            if value.data is None:
                what = _NAMES[type(value)]
                raise ValueError(f"{value.name}: only {what} with its bytes can be written")
            names = (f.name for f in dataclasses.fields(value) if f.name not in ("path", "pixels", "values"))
            return {name: plain(getattr(value, name)) for name in names}
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, tuple | list):
            return [plain(v) for v in value]
        return value.item() if isinstance(value, np.generic) else value

    return msgpack.packb(plain(record))


def from_bytes(data: bytes) -> Record:
    """The inverse of `to_bytes`. BadRecord, naming the field, if the bytes are not a record or its parts disagree.

    A field that is missing, as it is in shards from before there was one, has its default.
    """
    try:
        tree = msgpack.unpackb(data)
        views = tuple(_view(v, f"views[{n}]") for n, v in enumerate(tree["views"]))
        record = Record(
            id=str(tree["id"]),
            views=views,
            **{name: _labels(name, tree[name], len(views)) for name in LABELS if name in tree},
            **{name: tree[name] for name in ("covisibility", "metric", "scene") if name in tree},
            **{name: _maps(name, tree[name], len(views)) for name in _MAPS if name in tree},
        )
    except BadRecord:
        raise
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError, msgpack.UnpackException) as error:
        raise BadRecord(f"not a record of this project ({type(error).__name__}: {error})") from None
    need(views or record.conversation, "views", "there is none, and no conversation")
    overlap = record.covisibility
    number = isinstance(overlap, int | float) and overlap == overlap
    need(overlap is None or number, "covisibility", f"expected a number, got {overlap!r}")
    need(isinstance(record.metric, bool), "metric", f"expected true or false, got {record.metric!r}")
    need(isinstance(record.scene, str), "scene", "expected text")
    return record


_NAMES = {ImageRef: "an image", DepthMap: "a depth map", Mask: "a mask"}
_MAPS = {"depth_maps": DepthMap, "masks": Mask}


def _maps(name: str, stored, views: int) -> tuple:
    return tuple(_MAPS[name].read(one, f"{name}[{n}]", views) for n, one in enumerate(stored))


def _labels(name: str, stored, views: int):
    """What stands in a field of labels: several, or (where it is None by default) at most one."""
    read = LABELS[name].read
    if getattr(Record, name) is None:
        return None if stored is None else read(stored, name, views)
    return tuple(read(one, f"{name}[{n}]", views) for n, one in enumerate(stored))


def _view(tree, field: str) -> View:
    image, crop, flip, final = tree["image"], tree.get("crop"), tree.get("flip", False), tree.get("final", False)
    need(isinstance(image["data"], bytes), f"{field}.image.data", "expected the bytes of an image file")
    need(isinstance(image["name"], str), f"{field}.image.name", "expected text")
    names, camera = [f.name for f in dataclasses.fields(Camera)], Camera.from_fields(tree["camera"])
    wanted = f"expected the numbers {', '.join(sorted(names))}, got {tree['camera']!r}"
    need(camera and len(tree["camera"]) == len(names), f"{field}.camera", wanted)
    camera = camera.plausible(f"{field}.camera")
    for part, size in (("image", (image["width"], image["height"])), ("camera", (camera.width, camera.height))):
        need(all(n % 1 == 0 for n in size), f"{field}.{part}", f"expected whole numbers as its size, got {size}")
    for part, value in (("flip", flip), ("final", final)):
        need(isinstance(value, bool), f"{field}.{part}", f"expected true or false, got {value!r}")
    if crop is not None:
        whole = isinstance(crop, list) and len(crop) == 4 and all(isinstance(n, int) for n in crop)
        need(whole, f"{field}.crop", f"expected 4 whole numbers, got {crop!r}")
    pose = tree["world_T_cam"]
    return View(
        # Not `**image`: a record has no say in which files are read.
        ImageRef(image["width"], image["height"], image["name"], data=image["data"]),
        camera,
        None if pose is None else array(pose, f"{field}.world_T_cam", 4, 4),
        flip,
        crop and tuple(crop),
        final,
    )
