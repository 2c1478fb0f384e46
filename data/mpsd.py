"""Mapillary Planet-Scale Depth (MPSD): street photos from everywhere, with depth and reconstructions."""

import itertools

from vlm3_jax.builders import posed
from vlm3_jax.builders.common import Skip, image, need_files, subfolders
from vlm3_jax.builders.readers import raster
from vlm3_jax.builders.readers.numbers import read_json
from vlm3_jax.builders.readers.opensfm import intrinsics, read_shots
from vlm3_jax.errors import BadRecord, UserError


class Mpsd(posed.PairBuilder):
    """Poses stand in reconstruction_data/*/<time>/reconstruction.json (OpenSfM: axis-angle, world-to-camera).

    train.json and val.json give each image's focal length, as a part of its longer side; depth is z in centimetres and
    coarser than the image. Scale comes from GPS and is very coarse (the author of Metric3D switched metric supervision
    off, issue 13), so records count as not metric. A reconstruction belongs to val if any of its images is in val.json:
    the published split, without a scene in both.
    """

    name, title = "mpsd", "Mapillary Planet-Scale Depth"
    splits, held_out = ("train", "val"), "val"
    metric = False
    covisible = 0.15
    layout = (
        "{train,val}.json, {train,val}/<key>.{jpg,png}, "
        "reconstruction_data/*/<time>/{image_list.txt, reconstruction.json}"
    )
    labels = "z-depth in centimetres of a coarse scale (not metric), poses; pairs within 12 images of a reconstruction"
    licence = "CC BY-NC-SA 4.0; mapillary.com/dataset/depth"
    doubts = ("that depth is z", "that images are free of distortion, since only a focal length is given")
    test = "tests/builders/test_mpsd.py"
    window, partners = 12, 12

    def scenes(self, raw, split):
        """Reconstructions with two images or more that have a focal length."""
        need_files([raw / "train.json", raw / "val.json", raw / "reconstruction_data"])
        known = {part: read_focals(raw / f"{part}.json") for part in ("val", "train")}
        for group in subfolders(raw / "reconstruction_data", "folders such as geoeven_4"):
            for folder in subfolders(group, "a folder for each reconstruction"):
                found = self._images(folder, known)
                held_out = any(frame["part"] == "val" for frame in found)
                if len(found) > 1 and held_out == (split == "val"):
                    yield f"{group.name}/{folder.name}", found

    def _images(self, folder, known) -> list[dict]:
        path = folder / "image_list.txt"
        if not path.exists():
            return []
        names = sorted({line.strip().split("/")[-1] for line in path.read_text("utf-8").splitlines() if line.strip()})
        return [
            {"key": name, "part": part, "focal": focals[name]}
            for name, (part, focals) in itertools.product(names, known.items())
            if name in focals
        ]

    def frame(self, raw, scene, data):
        """Image, its depth and its shot."""
        key, name = data["key"], f"{scene}/{data['key']}"
        group, folder = scene.split("/")
        path = raw / "reconstruction_data" / group / folder / "reconstruction.json"
        shots = read_shots(read_json(posed.contents(path), f"{scene}/reconstruction.json"), scene)
        if key not in shots:
            raise Skip("a frame has no shot in the reconstruction")
        photo = image(posed.below(raw, f"{data['part']}/{key}.jpg"), f"{name}.jpg")
        depth = raster.uint16(posed.contents(posed.below(raw, f"{data['part']}/{key}.png")), f"{name}.png") / 100.0
        camera = posed.camera(*intrinsics(data["focal"], photo.width, photo.height), photo)
        return posed.PosedFrame(photo, camera, posed.inverse(shots[key], name), depth)


def read_focals(path) -> dict[str, float]:
    """train.json or val.json: image -> focal length over the longer side."""
    try:
        return {str(key): float(entry["focal"]) for key, entry in read_json(path.read_bytes(), path.name).items()}
    except (BadRecord, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: expected a focal length for each image ({error})") from None
