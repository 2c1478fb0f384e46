"""MegaDepth and AerialMegaDepth: landmarks reconstructed from photos of visitors, and from the air."""

import collections
import functools
import pathlib

import numpy as np

from vlm3_jax.builders import posed
from vlm3_jax.builders.common import Skip, image, subfolders
from vlm3_jax.builders.readers import raster
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.formats import colmap
from vlm3_jax.formats.hdf5 import read_array
from vlm3_jax.formats.npz import read_objects
from vlm3_jax.processor.undistort import Distortion

DENSE = "sfm_output_localization/sfm_superpoint+superglue/localized_dense_metric"
SKY = 2
"""The sky's class of the masks (ADE20K, from 0)."""
LEAST_SHARED, MOST_PARTNERS = 0.1, 16


class MegaDepth(posed.PairBuilder):
    """<id>/dense<k> is a reconstruction: imgs are undistorted, sparse/manhattan/<k> holds the cameras before that.

    Two downloads, MegaDepth v1 and its SfM models, unpacked into one folder. The camera of an undistorted image is not
    stored. COLMAP keeps the focal length while it undistorts and cuts what would be empty, then may shrink the image;
    the size that results and the distortion tell the factor, that of the optimal matrix of OpenCV with alpha 0 and the
    principal point in the middle (as in DUSt3R). Depth is z without a unit; what is not above 0 is none, or a label of
    order. Pairs are those of DUSt3R's megadepth_pairs.npz if it is in the raw folder, else images that share
    reconstructed points. DUSt3R's scenes are held out.
    """

    name, title = "megadepth", "MegaDepth"
    splits, held_out = ("train", "val"), "val"
    metric = False
    layout = (
        "<0000>/{dense<k>/{imgs/*.jpg, depths/*.h5}, sparse/manhattan/<k>/{cameras,images}.txt}, megadepth_pairs.npz"
    )
    labels = "z-depth without a unit, poses; DUSt3R's pairs or by points in common"
    licence = "CC BY 4.0; cs.cornell.edu/projects/megadepth"
    doubts = ("the camera of undistorted images is computed", "the file of pairs: read as DUSt3R's code reads it")
    test = "tests/builders/test_megadepth.py"
    needs = ("h5py",)
    val = ("0015_0", "0015_1", "0022_0")
    listed = "megadepth_pairs.npz"

    def models(self, raw) -> list[tuple[str, pathlib.Path, pathlib.Path]]:
        """Scene, folder of its images, folder of its model."""
        found = []
        for folder in subfolders(raw, "folders such as 0000"):
            for dense in sorted(folder.glob("dense*"), key=str):
                k = dense.name.removeprefix("dense")
                found.append((f"{folder.name}_{k}", dense / "imgs", folder / "sparse" / "manhattan" / k))
        return found

    def scenes(self, raw, split):
        """Reconstructions that have a model; their images that have a file."""
        found = self.models(raw)
        if not found:
            raise UserError(f"{raw}: {self.layout.split(',')[0]} is expected in it")
        for scene, images, model in found:
            if (scene in self.val) == (split == "val"):
                place = {"images": str(images.relative_to(raw)), "model": str(model.relative_to(raw))}
                files = {path.name for path in images.iterdir()} if images.exists() else set()
                names = sorted(files & set(_model(model)))
                yield scene, [{"key": name} | place for name in names]

    def pairs(self, raw, scene, frames):
        """As listed, else every image with those that share most points with it."""
        numbers = {frame["key"]: n for n, frame in enumerate(frames)}
        if (raw / self.listed).exists():
            for first, second in self.listed_pairs(raw).get(scene, ()):
                if first in numbers and second in numbers:
                    yield numbers[first], numbers[second]
        elif frames:
            yield from shared_pairs([_model(raw / frames[0]["model"])[frame["key"]] for frame in frames])

    def listed_pairs(self, raw) -> dict[str, list[tuple[str, str]]]:
        """Scene -> its pairs of image names."""
        return _pairs_of(raw / self.listed)

    def frame(self, raw, scene, data):
        """Image, depth and the camera that undistortion has left."""
        images, key, name = posed.below(raw, data["images"]), data["key"], f"{scene}/{data['key']}"
        seen = _model(posed.below(raw, data["model"]))[key]
        photo = image(images / key, name)
        depth = self.depth(raw, scene, images.parent / "depths" / f"{pathlib.PurePath(key).stem}.h5", key)
        return posed.PosedFrame(photo, self.camera(seen.camera, photo), seen.world_T_cam, depth)

    def camera(self, stored: colmap.ModelCamera, photo):
        """The camera of an undistorted image."""
        before, distortion = Distortion.from_colmap(stored.model, stored.params, stored.width, stored.height)
        return distortion.fitted(before, photo.width, photo.height, centred=True).plausible(photo.name)

    def depth(self, raw, scene, path, key) -> np.ndarray:
        """z of an image's file."""
        try:
            return read_array(path, "depth")
        except FileNotFoundError:
            raise Skip("a frame has no file in depths") from None


class AerialMegaDepth(MegaDepth):
    """Photos of MegaDepth's landmarks with rendered views from the air, one reconstruction each; undistorted already.

    Scene 0001 is published, the others are made by the set's own tools (data_generation), which leave this layout in
    megadepth_aerial_tv/data: give that folder. Depth is z without a unit, of the sky too: class 2 of
    aerialmegadepth_segmasks has none. A frame without a mask is skipped. Pairs share reconstructed points. DUSt3R's
    scenes are held out.
    """

    name, title = "aerialmegadepth", "AerialMegaDepth"
    layout = f"<0000>/{DENSE}/{{images, depths, sparse-txt}}, aerialmegadepth_segmasks/<0000>/*.png"
    labels = "z-depth without a unit, poses; pairs by points in common"
    licence = "none is stated; images are Google Earth's and MegaDepth's; aerial-megadepth.github.io"
    doubts = (posed.HALF_A_PIXEL, "that the sky is class 2 of the masks: as MapAnything has it")
    val = ("0015", "0022")
    listed = "none"

    def models(self, raw):
        """Scenes with a localised reconstruction."""
        folders = [folder for folder in subfolders(raw, "folders such as 0001") if (folder / DENSE).exists()]
        return [(folder.name, folder / DENSE / "images", folder / DENSE / "sparse-txt") for folder in folders]

    def camera(self, stored, photo):
        """As it is stored."""
        before, distortion = Distortion.from_colmap(stored.model, stored.params, stored.width, stored.height)
        if not distortion.is_none or (before.width, before.height) != (photo.width, photo.height):
            raise BadRecord(f"{photo.name}: its camera is {stored.model} of {before.width} x {before.height}")
        return before.plausible(photo.name)

    def depth(self, raw, scene, path, key):
        """Without the sky."""
        found = np.array(super().depth(raw, scene, path, key), np.float32)
        mask = raster.grey(posed.contents(raw / "aerialmegadepth_segmasks" / scene / f"{key}.png"), f"{key}.png")
        if mask.shape != found.shape:
            raise BadRecord(f"{scene}/{key}.png: not of the depth's size")
        found[mask == SKY] = np.nan
        return found


@functools.lru_cache(maxsize=2)
def _model(folder: pathlib.Path) -> dict[str, colmap.ModelImage]:
    return colmap.read_images(folder)


@functools.lru_cache(maxsize=1)
def _pairs_of(path: pathlib.Path) -> dict[str, list[tuple[str, str]]]:
    """DUSt3R's list: scenes "0000 0", images, and pairs (scene, image, image, score) of numbers in them."""
    data = path.read_bytes()
    found = collections.defaultdict(list)
    try:
        scenes, images, rows = (read_objects(data, path.name, key) for key in ("scenes", "images", "pairs"))
        for scene, first, second, *_ in rows:
            names = images[int(first)], images[int(second)]
            if isinstance(scenes[int(scene)], str) and all(isinstance(name, str) for name in names):
                found["_".join(scenes[int(scene)].split())].append(names)
    except (BadRecord, IndexError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not DUSt3R's list of pairs ({error})") from None
    return dict(found)


def shared_pairs(images: list[colmap.ModelImage]):
    """Each image with up to 16 others, those that share most points with it and at least a tenth; once a pair."""
    best = collections.defaultdict(list)
    for (a, b), count in zip(*(found.tolist() for found in colmap.common_points(images)), strict=True):
        if count >= LEAST_SHARED * min(len(images[a].points), len(images[b].points)):
            best[a].append((-count, b))
            best[b].append((-count, a))
    met = {tuple(sorted((a, b))) for a, others in best.items() for _, b in sorted(others)[:MOST_PARTNERS]}
    yield from sorted(met)
