"""Records in ArrayRecord shards (`records.to_bytes`), read by index."""

import bisect
import collections
import concurrent.futures
import itertools
import logging
import os
import resource
import sys
import threading
import weakref
from collections.abc import Sequence
from typing import ClassVar

from array_record.python.array_record_module import ArrayRecordReader

from vlm3_jax import records, storage
from vlm3_jax.data.sources.ranged_shard import RangedShard
from vlm3_jax.data.sources.removed import RemovedLabels
from vlm3_jax.data.sources.tfds_example import is_wrapped, unwrapped
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.storage import AnyPath, Unreadable, patiently

_log = logging.getLogger(__name__)


class ArrayRecordSource:
    """Random access to the records of ArrayRecord shards.

    `path`: a shard, a folder of shards (`*.array_record*`, in order of their names) or a glob pattern, local or in a
    bucket. Shards are opened when first read, stay open as far as the limit on open files allows, and may be read by
    several threads. `first`, `limit`: only records [first, first + limit). UserError if there are no shards or one
    cannot be opened; BadRecord, naming shard and index, if a record is broken or has unusable labels only, Unreadable
    if reading it fails twice. Single labels that are unusable are left out and told in `removed`.
    """

    def __init__(self, name: str, path: str | os.PathLike, first: int = 0, limit: int | None = None):
        self.name = name
        self.path = storage.path(path)
        self.bad: list = []
        self.removed = RemovedLabels()
        self.shards = _shard_paths(name, self.path)
        remote = storage.is_remote(self.path)
        with concurrent.futures.ThreadPoolExecutor(64 if remote else 16) as pool:
            counts, readers = zip(*pool.map(_counted, self.shards, itertools.repeat(remote)))
        self._ends = list(itertools.accumulate(counts))
        self._open = _OpenShards(self.shards, readers if remote else ())
        self._range = range(self._ends[-1])[first : None if limit is None else first + limit]
        if not self._range:
            raise UserError(f"{name}: {path} holds {self._ends[-1]} records, so none from index {first} on")

    def __len__(self) -> int:
        return len(self._range)

    def __getitem__(self, index: int) -> records.Record:
        key = self._range[index]
        shard = bisect.bisect_right(self._ends, key)
        position = key - (self._ends[shard - 1] if shard else 0)
        name = f"{self.shards[shard]}[{position}]"
        data = patiently(lambda: self._open.read(shard, position, name), name)
        try:
            data = unwrapped(data) if is_wrapped(data) else data
            record, removed = records.keep_sound(records.from_bytes(data))
        except BadRecord as error:
            raise BadRecord(f"{name}: {error}") from None
        self.removed.add(index, name, record.id, removed)
        return record

    def close(self) -> None:
        """Closes the shards."""
        self._open.close()


class _OpenShards:
    """The open readers of one source. Each holds a file descriptor, so the one used longest ago makes room for another.

    All sources of the process together keep at most `_most_open()` open, each in proportion to its shards. Readers of
    shards in a bucket hold none but their index, which `readers` have read already: they all stay.
    """

    _all: ClassVar[weakref.WeakSet] = weakref.WeakSet()
    _all_lock = threading.Lock()

    def __init__(self, shards: list[AnyPath], readers: Sequence[RangedShard] = ()):
        self._shards = shards
        self._readers: collections.OrderedDict[int, ArrayRecordReader | RangedShard] = collections.OrderedDict()
        self._readers.update(enumerate(readers))
        self._lock = threading.Lock()
        if not storage.is_remote(shards[0]):
            with self._all_lock:
                self._all.add(self)
        if self._share() < len(shards):
            _log.warning(
                "data: only %d of the %d shards in %s stay open; to spare opening them again and again, raise "
                "`ulimit -n` to twice the number of all shards",
                self._share(),
                len(shards),
                shards[0].parent,
            )

    def read(self, shard: int, position: int, name: str) -> bytes:
        """The bytes of a record, which errors call `name`. OSError if the storage fails, BadRecord if it is damaged."""
        with self._lock:
            reader = self._readers.get(shard)
            if reader is not None:
                self._readers.move_to_end(shard)
        try:
            # Outside the lock, since storage may hang. Two threads may open one shard; the last reader is kept.
            if reader is None:
                reader = self._keep(shard, _opened(self._shards[shard]))
            return reader.read([position])[0]
        except BadRecord as error:
            raise BadRecord(f"{name}: {error}") from None
        except RuntimeError as error:
            # A stale handle stays stale: the next attempt opens the shard anew.
            with self._lock:
                self._readers.pop(shard, None)
            raise _failure(error, name) from None

    def close(self) -> None:
        """Closes all; reading opens them again."""
        with self._lock:
            self._readers.clear()

    def _keep(self, shard: int, reader):
        most = self._share()
        # Let go of outside the lock, not closed: a thread that is reading from one keeps it open until it is done.
        dropped = []
        with self._lock:
            self._readers[shard] = reader
            while len(self._readers) > most:
                dropped.append(self._readers.popitem(last=False))
        return reader

    def _share(self) -> int:
        if storage.is_remote(self._shards[0]):
            return len(self._shards)
        with self._all_lock:
            shards = sum(len(one._shards) for one in self._all)
        return max(1, min(len(self._shards), _most_open() * len(self._shards) // shards))


def _most_open() -> int:
    """How many shards may be open at a time: half of the limit on open files, for there are others."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft // 2


def _shard_paths(name: str, path: AnyPath) -> list[AnyPath]:
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


def _opened(shard: AnyPath) -> "ArrayRecordReader | RangedShard":
    """A reader without readahead, for random access; RuntimeError that says why it cannot be read."""
    if storage.is_remote(shard):
        return RangedShard(shard)
    reader = ArrayRecordReader(str(shard), options="readahead_buffer_size:0", file_reader_buffer_size=32768)
    # It is made whatever happens, and would say that there are no records.
    if not reader.ok():
        reader.close()
    return reader


def _counted(shard: AnyPath, keep: bool) -> tuple[int, RangedShard | None]:
    """How many records a shard has, and its reader if that is to be kept."""

    def count():
        try:
            reader = _opened(shard)
            return reader.num_records(), reader if keep else None
        except RuntimeError as error:
            raise _failure(error, "damaged") from None

    try:
        return patiently(count, str(shard))
    except BadRecord as error:
        why = error.why if isinstance(error, Unreadable) else error
        raise UserError(f"{shard}: not a readable ArrayRecord file ({why})") from None


def _failure(error: RuntimeError, name: str) -> BadRecord | OSError:
    """What a reader's error means: the bytes of the thing called `name` are damaged, or the storage failed."""
    why = (str(error) or type(error).__name__).splitlines()[0]
    return BadRecord(f"{name}: {why}") if "Corrupted" in why else OSError(why)
