"""A builder's record made ready to be written: its images inside it, checked, and resized where that was asked for."""

import dataclasses

import numpy as np

from vlm3_jax import records
from vlm3_jax.builders import common
from vlm3_jax.builders.common import Item
from vlm3_jax.builders.running.plan import Images
from vlm3_jax.camera import Camera, Focal
from vlm3_jax.errors import BadRecord
from vlm3_jax.pose import check_pose
from vlm3_jax.processor.image import ImageLayout, image_layout
from vlm3_jax.records import DepthMap, ImageRef, Record, View, encode_depth


def prepare(record: Record, item: Item, images: Images) -> tuple[bytes, tuple[records.Removed, ...]]:
    """(the record's bytes, which parts of labels were unusable and left out).

    Every image and depth map is decoded, every label and pose looked at. BadRecord names what is wrong.
    """
    if record.id != item.key:
        raise ValueError(f"the record of item {item.key!r} is called {record.id!r}")
    record = dataclasses.replace(record, scene=record.scene or item.scene)
    for number, view in enumerate(record.views):
        if view.world_T_cam is not None:
            check_pose(view.world_T_cam, f"views[{number}].world_T_cam")
    record, removed = records.keep_sound(record)
    maps = [_stored_map(one, f"depth_maps[{number}]") for number, one in enumerate(record.depth_maps)]
    # A map covers its whole image, whatever size that has.
    record = _with_stored_images(dataclasses.replace(record, depth_maps=()), images)
    record = dataclasses.replace(record, depth_maps=tuple(one for one in maps if one is not None))
    _need_something(record, len(maps))
    data = records.to_bytes(record)
    # What reads it has its own checks.
    records.from_bytes(data)
    return data, removed


def _need_something(record: Record, maps: int) -> None:
    """BadRecord if nothing could be asked about the record."""
    posed = len(record.views) > 1 and all(view.world_T_cam is not None for view in record.views)
    parts = sum(len(label.sound(record.cameras)) for label in record.labels)
    if not (parts or record.depth_maps or posed):
        raise BadRecord(f"no label in it{f'; no pixel of its {maps} depth maps has a depth' if maps else ''}")


def _stored_map(depth: DepthMap, field: str) -> DepthMap | None:
    """The map with its bytes in it; None if it holds no depth. BadRecord if it cannot be read."""
    metres = depth.load()
    if not np.isfinite(metres).any():
        return None
    if depth.data is not None:
        return depth
    if depth.path.suffix.lower() == ".png":
        return dataclasses.replace(depth, data=depth.path.read_bytes(), path=None)
    return encode_depth(metres, depth.kind, view=depth.view, name=depth.name or field)


def _with_stored_images(record: Record, images: Images) -> Record:
    """The record with every image as bytes, and cameras and labels of the images as they are stored."""
    views = [dataclasses.replace(view, image=_held(view.image, images)) for view in record.views]
    decoded = [_decoded(view, number) for number, view in enumerate(views)]
    if not (images.resize or images.vision):
        return dataclasses.replace(record, views=tuple(views))
    views = [dataclasses.replace(view, image=ref) for view, ref in zip(views, decoded, strict=True)]
    record = dataclasses.replace(record, views=tuple(views))
    if rule := images.rule:
        record = records.with_cameras(record, [_exact(rule, view.camera) for view in views])
    return dataclasses.replace(record, views=tuple(_resized(view, images) for view in record.views))


def _held(image: ImageRef, images: Images) -> ImageRef:
    """The image with its pixels in memory, as bytes unless they are to be resized."""
    if image.path is not None:
        return common.image(image.path, image.name)
    if image.pixels is not None and not (images.resize or images.vision):
        return common.encode(image.pixels, image.name, images.quality)
    return image


def _decoded(view: View, number: int) -> ImageRef:
    """The image as pixels. BadRecord if it cannot be decoded, or is not of its camera's size."""
    image, camera = view.image, view.camera
    if (image.width, image.height) != (camera.width, camera.height):
        raise BadRecord(
            f"views[{number}]: the image is {image.width} x {image.height}, its camera's {camera.width} x "
            f"{camera.height}"
        )
    return ImageRef(image.width, image.height, image.name, pixels=image.load())


def _exact(rule, camera: Camera) -> Camera:
    """The camera of the resized image; its focal length is exactly the rule's, so that it is never resized again."""
    new = rule.camera(camera)
    if isinstance(rule, Focal):
        new = dataclasses.replace(new, fx=rule.px, **({"fy": rule.px} if rule.policy == "per_axis" else {}))
    return new


def _resized(view: View, images: Images) -> View:
    """The view with its pixels as the loader would resize them, exact before they are encoded."""
    size = view.camera.width, view.camera.height
    if images.vision:
        pixels = image_layout(view, images.vision).shown()
    else:
        pixels = np.asarray(ImageLayout(view.image, size, size, grid=(1, 1), merge_size=1).picture())
    image = common.encode(pixels, view.image.name, images.quality)
    return dataclasses.replace(view, image=image, final=images.vision is not None)
