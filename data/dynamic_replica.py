"""DynamicReplica: 524 stereo videos of animated people and animals in scanned rooms."""

import numpy as np

from vlm3_jax.builders import posed
from vlm3_jax.builders.common import image, need_files
from vlm3_jax.builders.readers import raster
from vlm3_jax.builders.readers.numbers import read_json
from vlm3_jax.builders.readers.pytorch3d import read_viewpoint
from vlm3_jax.errors import BadRecord, UserError


class DynamicReplica(posed.PairBuilder):
    """Frames and cameras stand in frame_annotations_<split>.jgz, in PyTorch3D's conventions (`readers.pytorch3d`).

    Depth is z in metres, the bits of half floats in a 16-bit PNG. Left and right camera of one moment see the same
    world; between moments people and animals move, so pairs of two moments have no depth where `masks` is not 0. The
    published splits are kept.
    """

    name, title = "dynamic_replica", "DynamicReplica"
    splits, held_out = ("train", "valid", "test"), "valid"
    layout = "frame_annotations_{train,valid,test}.jgz, <id>_source_{left,right}/{images, depths, masks}"
    labels = "z-depth in metres, poses; pairs of both cameras within 16 moments"
    licence = "CC BY-NC 4.0; dynamic-stereo.github.io"
    doubts = ("that masks mark what moves", "half a pixel: as PyTorch3D has it, not measured on these files")
    test = "tests/builders/test_dynamic_replica.py"
    window = 32

    def scenes(self, raw, split):
        """The sequences of the split's annotations; both cameras by turns."""
        path = raw / f"frame_annotations_{split}.jgz"
        need_files([path])
        found: dict[str, list] = {}
        try:
            for row in read_json(path.read_bytes(), path.name):
                data = {"key": f"{int(row['frame_number']):04d}_{row['camera_name']}", "image": row["image"]["path"]}
                data |= {"depth": row["depth"]["path"], "mask": (row.get("mask") or {}).get("path", "")}
                data |= {"moment": int(row["frame_number"]), "viewpoint": row["viewpoint"]}
                found.setdefault(str(row["sequence_name"]), []).append(data)
        except (BadRecord, KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: not a list of PyTorch3D's frame annotations ({error})") from None
        return [(name, sorted(frames, key=lambda frame: frame["key"])) for name, frames in sorted(found.items())]

    def frame(self, raw, scene, data):
        """Image and depth by their paths of the annotations."""
        photo = image(posed.below(raw, data["image"]), data["image"])
        K, pose = read_viewpoint(data["viewpoint"], photo.width, photo.height, data["image"])
        depth = raster.half(posed.contents(posed.below(raw, data["depth"])), data["depth"])
        return posed.PosedFrame(photo, posed.camera(*K, photo, first=0.5), pose, depth)

    def two_frames(self, raw, scene, frames):
        """Without what moves, if they are of two moments."""
        found = super().two_frames(raw, scene, frames)
        if frames[0]["moment"] != frames[1]["moment"]:
            for one, data in zip(found, frames, strict=True):
                if data["mask"]:
                    moves = raster.grey(posed.contents(posed.below(raw, data["mask"])), data["mask"])
                    if moves.shape != one.depth.shape:
                        raise BadRecord(f"{data['mask']}: not of the depth's size")
                    one.depth[moves > 0] = np.nan
        return found
