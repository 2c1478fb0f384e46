"""Sources: random access to records, whatever their files look like. `make_source` opens that of a component."""

import os
import typing

from vlm3_jax import storage
from vlm3_jax.config_rules import check_component
from vlm3_jax.data.sources.array_record import ArrayRecordSource
from vlm3_jax.data.sources.colmap import ColmapSource
from vlm3_jax.data.sources.conversations import ConversationSource
from vlm3_jax.data.sources.depthlm import BadLine, DepthLMSource
from vlm3_jax.data.sources.gta_sfm import GTASfMSource
from vlm3_jax.data.sources.realestate10k import RealEstate10KSource
from vlm3_jax.data.sources.removed import RemovedLabels
from vlm3_jax.data.sources.rgbd import RGBDSource
from vlm3_jax.data.sources.wai import WAISource
from vlm3_jax.errors import UserError
from vlm3_jax.kinds import PAIRS
from vlm3_jax.records import Record
from vlm3_jax.storage.listed import listed


class Source(typing.Protocol):
    """A sequence of records. `bad` lists what was set aside while indexing, `removed` the unusable labels left out."""

    name: str
    path: object
    bad: list[BadLine]
    removed: RemovedLabels

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record | None:
        """Record `index`, its images not decoded; None if it is one of `bad`. BadRecord if its data cannot be used."""


def make_source(name: str, fields, max_bad_fraction: float = 0.01) -> Source:
    """The source of a component (`component_config` or a dict of its fields)."""
    fields = check_component(name, fields)
    limit = fields.limit or None
    if fields.kind == "records":
        return ArrayRecordSource(name, fields.path, fields.first, limit)
    if fields.kind == "depthlm":
        images = fields.images or os.path.dirname(fields.path) or "."
        return DepthLMSource(name, fields.path, images, fields.depth_kind, fields.first, limit, max_bad_fraction)
    path, images = (storage.path(fields[field]) if fields[field] else None for field in ("path", "images"))
    if fields.kind == "gta_sfm" and storage.is_remote(path):
        raise UserError(
            f"{name}: {path}: HDF5 files are read from a disk only; copy them there, or make shards of them in the "
            "bucket (vlm3 data build gta_sfm --raw=COPY --out=gs://...)"
        )
    if fields.kind == "conversations":
        images = images or path.parent
    else:
        # They look into many small files, and each look would take as long as reading one.
        path = listed(path)
    return _IN_PLACE[fields.kind](
        name,
        path,
        images and listed(images),
        fields,
        part=fields.part,
        share=fields.held_out,
        first=fields.first,
        limit=limit,
    )


def _pairs(fields) -> bool:
    return fields.task in PAIRS


# Of every kind of files in place: its source, with the fields that are its own.
_IN_PLACE = {
    "rgbd": lambda name, path, _, f, **same: RGBDSource(name, path, f.depth_kind, f.depth_scale, f.gaps, **same),
    "wai": lambda name, path, _, f, **same: WAISource(
        name, path, _pairs(f), f.covisibility_min, f.scenes, f.depth, f.mask, f.gaps, **same
    ),
    "colmap": lambda name, path, images, f, **same: ColmapSource(
        name, path, _pairs(f), images, f.depth_scale, f.covisibility_min, **same
    ),
    "conversations": lambda name, path, images, f, **same: ConversationSource(name, path, images, f.camera, **same),
    "realestate10k": lambda name, path, images, f, **same: RealEstate10KSource(name, path, f.gaps, images, **same),
    "gta_sfm": lambda name, path, _, f, **same: GTASfMSource(name, path, f.gaps, **same),
}
