"""Captures reconstructed by COLMAP, in place: depths, matches and poses of the points of its sparse model."""

import pathlib
import typing
from typing import Any

import numpy as np

from vlm3_jax.data.sources.colmap_model import Model, ModelImage, find_model, read_model
from vlm3_jax.data.sources.items import ItemSource, image_ref, inside, part_of
from vlm3_jax.errors import UserError
from vlm3_jax.records import DepthPoints, Matches, Record, View

# Two images of fewer common points share a view by chance.
LEAST_SHARED = 20
IMAGES = ("images", "dense/images", "image", "rgb")


class Capture(typing.NamedTuple):
    """A reconstructed scene: its model, the folder of its images, and their ids sorted by name."""

    scene: str
    model: Model
    images: pathlib.Path
    ids: list[int]


class ColmapSource(ItemSource):
    """Records of captures: single images with the z of their points, or `pairs` of images with common points.

    `images`: the folder of the images, "" for `images/` beside the model. `metres`: of a unit of the model, 0 where it
    is not known: then there are no depths, and records are not metric. A pair needs `LEAST_SHARED` common points and a
    covisibility of `least`, the mean share of common points among those that each image sees.
    """

    def __init__(
        self,
        name: str,
        path: pathlib.Path,
        pairs: bool,
        images: str = "",
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
        listed = [(number, id) for number, capture in enumerate(self._captures) for id in capture.ids]
        scenes = [self._captures[number].scene for number, _ in listed]
        chosen = [listed[i] for i in part_of(scenes, part, share, name)]
        items: list[Any] = chosen
        if pairs:
            items = []
            for number, capture in enumerate(self._captures):
                ids = [id for n, id in chosen if n == number]
                items += [(number, *pair) for pair in shared_pairs(capture.model, ids, least)]
        super().__init__(name, path, items, first, limit)

    def _record(self, item) -> Record:
        capture = self._captures[item[0]]
        images = [capture.model.images[id] for id in item[1:3]]
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
        camera = capture.model.cameras[image.camera].pinhole().plausible(f"{capture.scene}/{image.name}: camera")
        pose = image.world_T_cam.copy()
        pose[:3, 3] *= self._metres or 1.0
        file = inside(capture.images, image.name, f"{capture.scene}: images")
        return View(image_ref(file, (camera.width, camera.height), f"{capture.scene}/{image.name}"), camera, pose)

    def _depth(self, model: Model, image: ModelImage, view: View, number: int) -> DepthPoints:
        seen = image.point_ids >= 0
        pose = image.world_T_cam
        z = (model.places(image.point_ids[seen]) - pose[:3, 3]) @ pose[:3, 2] * self._metres
        pixels = np.rint(image.points_px[seen]).astype(np.int64)
        good = (z > 0) & view.camera.inside(pixels)
        return DepthPoints(pixels[good], z[good], "z", number)


def _matches(first: ModelImage, second: ModelImage) -> Matches:
    """The common points; the pixel of view 0 is whole, so that of view 1 is off by up to half as much too."""
    kept = [np.flatnonzero(image.point_ids >= 0) for image in (first, second)]
    _, i, j = np.intersect1d(first.point_ids[kept[0]], second.point_ids[kept[1]], return_indices=True)
    return Matches(np.rint(first.points_px[kept[0][i]]).astype(np.int64), second.points_px[kept[1][j]])


def find_captures(name: str, path: pathlib.Path, images: str = "") -> list[Capture]:
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
        for camera in model.cameras.values():
            if any(camera.distortion):
                raise UserError(
                    f"{place}: {camera.model} has distortion; run colmap image_undistorter --image_path IMAGES "
                    f"--input_path {place} --output_path UNDISTORTED, and give UNDISTORTED"
                )
        ids = sorted(model.images, key=lambda id: model.images[id].name)
        captures.append(Capture(folder.name, model, image_folder(name, folder, images), ids))
    return captures


def image_folder(name: str, capture: pathlib.Path, images: str = "") -> pathlib.Path:
    """Where the images of a capture are; UserError if that is not found."""
    if images:
        given = pathlib.Path(images)
        places = [given / capture.name, given]
    else:
        places = [capture / place for place in IMAGES] + [parent / "images" for parent in capture.parents[:2]]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise UserError(f"{name}: no folder of images for {capture}; name it in images")
    return found.resolve()


def shared_pairs(model: Model, ids: list[int], least: float = 0.0) -> list[tuple[int, int, float]]:
    """(id, id, covisibility) of the pairs of images that have enough points in common, in the order of `ids`."""
    number = {id: n for n, id in enumerate(ids)}
    seen = [np.unique(model.images[id].point_ids) for id in ids]
    seen = [own[own >= 0] for own in seen]
    owners = np.concatenate([np.full(len(own), n) for n, own in enumerate(seen)] or [np.zeros(0, np.int64)])
    points = np.concatenate(seen or [np.zeros(0, np.int64)])
    order = np.lexsort((owners, points))
    owners, points = owners[order], points[order]
    counts = np.zeros(len(number) ** 2, np.int64)
    # Of a point's images, sorted, every two are some places apart.
    for apart in range(1, len(number)):
        same = points[apart:] == points[:-apart]
        if not same.any():
            break
        keys = owners[:-apart][same] * len(number) + owners[apart:][same]
        counts += np.bincount(keys, minlength=len(counts))
    totals = np.maximum(np.array([len(own) for own in seen]), 1)
    found = []
    for key in np.flatnonzero(counts >= LEAST_SHARED).tolist():
        i, j = divmod(key, len(number))
        share = counts[key] * (1 / totals[i] + 1 / totals[j]) / 2
        if share >= least:
            found.append((ids[i], ids[j], float(share)))
    return found
