"""Records in ArrayRecord shards (`records.to_bytes`), read by index."""

import bisect
import concurrent.futures
import itertools
import os
import pathlib

from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordReader

from vlm3_jax.data import records
from vlm3_jax.errors import BadRecord, UserError


class ArrayRecordSource:
    """Random access to the records of ArrayRecord shards.

    `path`: a shard, a folder of shards (`*.array_record*`, in order of their names) or a glob pattern. Shards are
    opened when first read and may be read by several threads. `first`, `limit`: only records [first, first + limit).
    UserError if there are no shards or one cannot be opened; BadRecord, naming shard and index, if a record is broken.
    """

    def __init__(self, name: str, path: str | os.PathLike, first: int = 0, limit: int | None = None):
        self.name = name
        self.path = pathlib.Path(path)
        self.bad: list = []
        self.points_removed = 0
        self.shards = _shard_paths(name, self.path)
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            counts = list(pool.map(_count, self.shards))
        self._ends = list(itertools.accumulate(counts))
        # "path[start:end]" spares the reader a second pass over all shards for their lengths.
        self._source = ArrayRecordDataSource([f"{s}[0:{n}]" for s, n in zip(self.shards, counts, strict=True)])
        self._range = range(self._ends[-1])[first : None if limit is None else first + limit]
        if not self._range:
            raise UserError(f"{name}: {path} holds {self._ends[-1]} records, so none from index {first} on")

    def __len__(self) -> int:
        return len(self._range)

    def __getitem__(self, index: int) -> records.Record:
        key = self._range[index]
        try:
            return records.from_bytes(self._source[key])
        except (BadRecord, RuntimeError, ValueError, IndexError) as error:
            shard = bisect.bisect_right(self._ends, key)
            position = key - (self._ends[shard - 1] if shard else 0)
            raise BadRecord(f"{self.shards[shard]}[{position}]: {_first_line(error)}") from None

    def close(self) -> None:
        """Closes the shards."""
        self._source.__exit__(None, None, None)


def _shard_paths(name: str, path: pathlib.Path) -> list[pathlib.Path]:
    """The shards that `path` (file, folder or glob pattern) names, sorted."""
    if path.is_dir():
        shards = sorted(p for p in path.iterdir() if ".array_record" in p.name or p.suffix == ".arrayrecord")
    elif path.exists():
        shards = [path]
    else:
        shards = sorted(path.parent.glob(path.name))
    if not shards:
        raise UserError(f"{name}: no ArrayRecord shards (*.array_record*) at {path}")
    return shards


def _count(shard: pathlib.Path) -> int:
    try:
        reader = ArrayRecordReader(str(shard))
        count = reader.num_records()
        reader.close()
        return count
    except (RuntimeError, ValueError, IndexError, OSError) as error:
        raise UserError(f"{shard}: not a readable ArrayRecord file ({_first_line(error)})") from None


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
