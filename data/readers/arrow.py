"""Feather and Parquet files: single columns, and single rows without the rest of a large file."""

import functools
import pathlib

import numpy as np

from vlm3_jax.builders import common
from vlm3_jax.errors import BadRecord, UserError

# Row groups of images that stay in memory; items come in the order of the file.
KEPT_GROUPS = 16


def feather(path: pathlib.Path, columns) -> dict[str, np.ndarray]:
    """Columns of a feather file by name; BadRecord if the file is missing or damaged or lacks one."""
    module = common.module("pyarrow.feather")
    try:
        table = module.read_table(path, columns=list(columns), memory_map=False)
    except FileNotFoundError:
        raise BadRecord(f"{path}: no such file") from None
    # Damaged files make pyarrow raise all kinds of errors.
    except Exception as error:
        raise BadRecord(f"{path}: cannot read the feather file ({str(error).splitlines()[0]})") from None
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise BadRecord(f"{path}: has no column {missing[0]!r}")
    return {name: table[name].to_numpy() for name in columns}


@functools.lru_cache(maxsize=64)
def _opened(path: pathlib.Path):
    module = common.module("pyarrow.parquet")
    try:
        return module.ParquetFile(path)
    except FileNotFoundError:
        raise BadRecord(f"{path}: no such file") from None
    except Exception as error:
        raise BadRecord(f"{path}: cannot read the parquet file ({str(error).splitlines()[0]})") from None


@functools.lru_cache(maxsize=KEPT_GROUPS)
def _group(path: pathlib.Path, group: int, columns: tuple[str, ...]):
    return _opened(path).read_row_group(group, columns=list(columns))


def parquet_keys(path: pathlib.Path, columns) -> list[tuple]:
    """The rows of some small columns, in the file's order. UserError if the file is missing or lacks one."""
    try:
        file = _opened(path)
        known = file.schema_arrow.names
        missing = [name for name in columns if name not in known]
        if missing:
            raise UserError(f"{path}: has no column {missing[0]!r}; it has {', '.join(known)}")
        table = file.read(columns=list(columns))
    except BadRecord as error:
        raise UserError(str(error)) from None
    return list(zip(*(table[name].to_pylist() for name in columns), strict=True))


def parquet_row(path: pathlib.Path, row: int, columns) -> dict:
    """Some columns of one row, lists of numbers as arrays; only its row group is read, and a few of them are kept."""
    meta = _opened(path).metadata
    for group in range(meta.num_row_groups):
        rows = meta.row_group(group).num_rows
        if row < rows:
            table = _group(path, group, tuple(columns))
            return {name: _plain(table[name][row]) for name in columns}
        row -= rows
    raise BadRecord(f"{path}: has no row {row}")


def _plain(scalar):
    values = getattr(scalar, "values", None)
    return scalar.as_py() if values is None else values.to_numpy(zero_copy_only=False)
