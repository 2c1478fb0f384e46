"""Sources: random access to records, whatever their files look like. `make_source` opens that of a component."""

import os
import typing

from vlm3_jax.config import check_component
from vlm3_jax.data.sources.array_record import ArrayRecordSource
from vlm3_jax.data.sources.depthlm import BadLine, DepthLMSource
from vlm3_jax.records import Record


class Source(typing.Protocol):
    """A sequence of records. `bad` lists what was set aside while indexing, `points_removed` counts unusable labels."""

    name: str
    path: object
    bad: list[BadLine]
    points_removed: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record | None:
        """Record `index`, its images not decoded; None if it is one of `bad`. BadRecord if its data cannot be used."""


def make_source(name: str, fields, max_bad_fraction: float = 0.01) -> Source:
    """The source of a component (`component_config` or a dict of its fields)."""
    fields = check_component(name, fields)
    limit = fields.limit or None
    if fields.kind == "records":
        return ArrayRecordSource(name, fields.path, fields.first, limit)
    images = fields.images or os.path.dirname(fields.path) or "."
    return DepthLMSource(name, fields.path, images, fields.depth_kind, fields.first, limit, max_bad_fraction)
