"""Captures reconstructed by COLMAP, in place: depths, matches and poses of the points of its sparse model."""

import typing
from collections.abc import Sequence
from typing import Any

import numpy as np

from vlm3_jax.data.sources.items import ItemSource, image_ref, inside, part_of
from vlm3_jax.errors import UserError
from vlm3_jax.formats.colmap import Model, ModelImage, common_points, find_model, read_model
from vlm3_jax.records import DepthPoints, Matches, Record, View
from vlm3_jax.storage import AnyPath

# Two images of fewer common points share a view by chance.
LEAST_SHARED = 20
IMAGES = ("images", "dense/images", "image", "rgb")


class Capture(typing.NamedTuple):
    """A reconstructed scene: its model and the folder of its images."""

    scene: str
    model: Model
    images: AnyPath


class ColmapSource(ItemSource):
    """Records of captures: single images with the z of their points, or `pairs` of images with common points.

    `images`: the folder of the images, None for `images/` beside the model. `metres`: of a unit of the model, 0 where
    it is not known: then there are no depths, and records are not metric. A pair needs `LEAST_SHARED` common points and
    a covisibility of `least`, the mean share of common points among those that each image sees.
    """

    def __init__(
        self,
        name: str,
        path: AnyPath,
        pairs: bool,
        images: AnyPath | None = None,
        metres: float = 0.0,
        least: float = 0.0,
        part: str = "",
        share: float = 0.1,
        first: int = 0,
        limit: int | None = None,
    ):
        self._metres = metres
        self._captures = find_captures(name, path, images)
        if not pairs and not metres:
            raise UserError(
                f"{name}: COLMAP's models have no scale, so no depth in metres; set depth_scale to the metres of a "
                "unit (a known length over the model's), or train correspondence and pose"
            )
        listed = [(number, name) for number, capture in enumerate(self._captures) for name in capture.model.images]
        scenes = [self._captures[number].scene for number, _ in listed]
        chosen = [listed[i] for i in part_of(scenes, part, share, name)]
        items: list[Any] = chosen
        if pairs:
            items = []
            for number, capture in enumerate(self._captures):
                images = [capture.model.images[name] for n, name in chosen if n == number]
                items += [(number, *pair) for pair in shared_pairs(images, least)]
        super().__init__(name, path, items, first, limit)

    def _record(self, item) -> Record:
        capture = self._captures[item[0]]
        images = [capture.model.images[name] for name in item[1:3]]
        views, depth = [], []
        for number, image in enumerate(images):
            view = self._view(capture, image)
            views.append(view)
            if self._metres:
                depth.append(self._depth(capture.model, image, view, number))
        matches = _matches(*images) if len(images) == 2 else None
        return Record(
            f"{capture.scene}/{'+'.join(image.name for image in images)}",
            tuple(views),
            depth=tuple(depth),
            matches=matches,
            covisibility=item[3] if len(item) > 3 else None,
            metric=bool(self._metres),
            scene=capture.scene,
        )

    def _view(self, capture: Capture, image: ModelImage) -> View:
        camera = image.camera.pinhole().plausible(f"{capture.scene}/{image.name}: camera")
        pose = image.world_T_cam.copy()
        pose[:3, 3] *= self._metres or 1.0
        file = inside(capture.images, image.name, f"{capture.scene}: images")
        return View(image_ref(file, (camera.width, camera.height), f"{capture.scene}/{image.name}"), camera, pose)

    def _depth(self, model: Model, image: ModelImage, view: View, number: int) -> DepthPoints:
        pose = image.world_T_cam
        z = (model.places(image.points) - pose[:3, 3]) @ pose[:3, 2] * self._metres
        pixels = np.rint(image.points_px).astype(np.int64)
        good = (z > 0) & view.camera.inside(pixels)
        return DepthPoints(pixels[good], z[good], "z", number)


def _matches(first: ModelImage, second: ModelImage) -> Matches:
    """The common points; the pixel of view 0 is whole, so that of view 1 is off by up to half as much too."""
    _, i, j = np.intersect1d(first.points, second.points, assume_unique=True, return_indices=True)
    return Matches(np.rint(first.points_px[i]).astype(np.int64), second.points_px[j])


def find_captures(name: str, path: AnyPath, images: AnyPath | None = None) -> list[Capture]:
    """The captures at a folder, or in the folders of it. UserError if there is none, or one has distorted images."""
    if not path.is_dir():
        raise UserError(f"{name}: no such folder {path}")
    root = path.resolve()
    folders = [root] if find_model(root) else sorted(p for p in root.iterdir() if p.is_dir() and find_model(p))
    if not folders:
        raise UserError(f"{name}: no COLMAP model in {path} (cameras, images and points3D, .bin or .txt, in sparse/0)")
    captures = []
    for folder in folders:
        place = find_model(folder)
        model = read_model(place)
        for camera in {image.camera for image in model.images.values()}:
            if any(camera.distortion):
                raise UserError(
                    f"{place}: {camera.model} has distortion; run colmap image_undistorter --image_path IMAGES "
                    f"--input_path {place} --output_path UNDISTORTED, and give UNDISTORTED"
                )
        captures.append(Capture(folder.name, model, image_folder(name, folder, images)))
    return captures


def image_folder(name: str, capture: AnyPath, images: AnyPath | None = None) -> AnyPath:
    """Where the images of a capture are; UserError if that is not found."""
    if images:
        places = [images / capture.name, images]
    else:
        places = [capture / place for place in IMAGES] + [parent / "images" for parent in capture.parents[:2]]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise UserError(f"{name}: no folder of images for {capture}; name it in images")
    return found.resolve()


def shared_pairs(images: Sequence[ModelImage], least: float = 0.0) -> list[tuple[str, str, float]]:
    """(name, name, covisibility) of the pairs of images that have enough points in common, in their order."""
    found = []
    for (i, j), count in zip(*(found.tolist() for found in common_points(images)), strict=True):
        share = count * (1 / len(images[i].points) + 1 / len(images[j].points)) / 2
        if count >= LEAST_SHARED and share >= least:
            found.append((images[i].name, images[j].name, share))
    return found
