"""How parameters lie in files: an HF directory (safetensors in shards) or an Orbax item (zarr, a layer a chunk)."""

import functools
import json
import math
from collections.abc import Iterator

import numpy as np

from vlm3_jax.checkpoint.copying import DTYPES
from vlm3_jax.checkpoint.locate import INDEX, PARAMS, SINGLE
from vlm3_jax.checkpoint.safetensors_file import header_bytes
from vlm3_jax.checkpoint.sources import HF_SHAPE, ZARR_DTYPES, Source
from vlm3_jax.checkpoint.writing import Job, Piece, WritePlan
from vlm3_jax.model.params import Param

# A stack of at most so many bytes is one chunk: a file for every norm of every layer would cost more than its bytes.
_SMALL_BYTES = 2**20
# Larger layers are cut along their first axis, so that no reader needs to hold more at once.
CHUNK_BYTES = 64 * 2**20


def hf_plan(source: Source, dtype: str | None, max_shard_bytes: int) -> WritePlan:
    """Safetensors under the original names, in shards with an index if they do not fit in one file."""
    shards: list[list[tuple]] = [[]]
    used = total = 0
    for row in source.rows:
        kind = DTYPES[dtype] if dtype else source.dtype(row)
        size = math.prod(row.hf_shape) * kind.itemsize
        for layer, key in enumerate(row.hf_keys):
            if used and used + size > max_shard_bytes:
                shards.append([])
                used = 0
            shards[-1].append((row, layer, key, kind, size))
            used, total = used + size, total + size
    small, jobs, weight_map = {}, [], {}
    for number, shard in enumerate(shards, 1):
        name = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        # Wide items first keep all of them aligned.
        shard.sort(key=lambda item: -item[3].itemsize)
        shapes = [source.hf_shape(row) for row, *_ in shard]
        items = [(key, kind, shape) for (_, _, key, kind, _), shape in zip(shard, shapes)]
        small[name], offsets = header_bytes(items)
        for (row, layer, key, kind, size), shape, offset in zip(shard, shapes, offsets, strict=True):
            read = functools.partial(_hf_value, source, row, layer)
            jobs.append(Job(key, read, shape, kind, (Piece(name, offset, 0, shape[0]),), size))
            weight_map[key] = name
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        small[INDEX] = json.dumps(index, indent=2, sort_keys=True).encode()
    return WritePlan(small, jobs)


def _hf_value(source, row, layer) -> np.ndarray:
    return row.to_hf(source.value(row, layer), source.hf_shape(row))


def checkpoint_plan(source: Source, dtype: str | None) -> WritePlan:
    """An Orbax item `params` that StandardRestore and PyTreeRestore read: plain zarr arrays, not compressed."""
    small, jobs, tree = {}, [], {}
    for row in source.rows:
        kind = DTYPES[dtype] if dtype else source.dtype(row)
        chunks = _chunks(row, kind.itemsize)
        folder = f"{PARAMS}/{row.name}"
        small[f"{folder}/.zarray"] = json.dumps(_zarray(row, kind, chunks)).encode()
        if source.hf_shape(row) != row.hf_shape:
            # Experts came with their axes exchanged, and are to go back as they came.
            small[f"{folder}/.zattrs"] = json.dumps({HF_SHAPE: source.hf_shape(row)}).encode()
        size = math.prod(row.layer_shape) * kind.itemsize
        for layer, key in enumerate(row.hf_keys):
            read = functools.partial(source.value, row, layer)
            pieces = tuple(_pieces(row, folder, layer, chunks, size))
            jobs.append(Job(key, read, row.layer_shape, kind, pieces, size))
        tree[str(row.path)] = {
            "key_metadata": [{"key": key, "key_type": 2} for key in row.path],
            "value_metadata": {"value_type": "jax.Array", "skip_deserialize": False, "write_shape": list(row.shape)},
        }
    metadata = {
        "tree_metadata": tree,
        "use_ocdbt": False,
        "use_zarr3": False,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }
    small[f"{PARAMS}/_METADATA"] = json.dumps(metadata).encode()
    return WritePlan(small, jobs)


def _zarray(row: Param, kind, chunks) -> dict:
    return {
        "zarr_format": 2,
        "shape": list(row.shape),
        "chunks": list(chunks),
        "dtype": next(name for name, dtype in ZARR_DTYPES.items() if dtype == kind),
        "order": "C",
        "compressor": None,
        "filters": None,
        "fill_value": None,
        "dimension_separator": ".",
    }


def _chunks(row: Param, itemsize: int) -> tuple[int, ...]:
    """Shape of a chunk: a small stack as a whole, else a layer, cut along its first axis where it is too large.

    The cut divides the axis, since zarr stores the last chunk of an axis in full size.
    """
    if row.size * itemsize <= _SMALL_BYTES:
        return row.shape
    rows, *rest = row.layer_shape
    least = math.ceil(math.prod(row.layer_shape) * itemsize / CHUNK_BYTES)
    parts = next(n for n in range(min(least, rows), rows + 1) if rows % n == 0)
    return (*((1,) if row.stacked else ()), rows // parts, *rest)


def _pieces(row: Param, folder: str, layer: int, chunks: tuple[int, ...], size: int) -> Iterator[Piece]:
    rows = row.layer_shape[0]
    height = chunks[1] if row.stacked else chunks[0]
    whole = row.stacked and chunks[0] > 1
    for part in range(rows // height):
        place = (*((0 if whole else layer,) if row.stacked else ()), part, *[0] * (len(row.layer_shape) - 1))
        offset = layer * size if whole else 0
        yield Piece(f"{folder}/{'.'.join(map(str, place))}", offset, part * height, (part + 1) * height)
