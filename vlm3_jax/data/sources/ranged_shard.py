"""An ArrayRecord shard in a bucket, read by ranges: one request for its index, one for each record.

The format: https://github.com/google/riegeli/blob/master/doc/riegeli_records_file_format.md, and the footer that
ArrayRecord puts behind it, https://github.com/google/array_record/blob/main/cpp/layout.proto. The hashes in it are not
looked at, since buckets check what they store by themselves; sizes and counts are.
"""

import itertools
import struct

import numpy as np
import zstandard

from vlm3_jax.errors import BadRecord
from vlm3_jax.storage import BucketPath

BLOCK, BLOCK_HEADER, CHUNK_HEADER = 2**16, 24, 40
MAGIC = 0x71930E704FDAE05E
# Fetched from the end of a shard at once: enough for the index of some ten thousand records.
END_BYTES = 4 * BLOCK
# Of a chunk, encoded or not.
MAX_CHUNK_BYTES = 2**30
_SIMPLE = ord("r")


class RangedShard:
    """The records of a shard. BadRecord if it is damaged, StorageError if the bucket does not give it."""

    def __init__(self, path: BucketPath):
        self._path = path
        end, size = path.read_end(END_BYTES)
        first = size - len(end)
        if size < BLOCK:
            raise BadRecord(f"{size:,} bytes, fewer than the end of a shard has")
        postscript = _fields(_records(_chunk(end[-BLOCK:], size - BLOCK))[0])
        start, stop = postscript.get(1, size), size - BLOCK
        if postscript.get(2) != MAGIC or start >= stop:
            raise BadRecord("truncated, or no ArrayRecord file")
        if stop - start > MAX_CHUNK_BYTES:
            raise BadRecord(f"an index of {stop - start:,} bytes, at most {MAX_CHUNK_BYTES:,} are read")
        footer = end[start - first : stop - first] if start >= first else path.read_range(start, stop)
        metadata, *chunks = _records(_chunk(footer, start))
        described = _fields(_fields(metadata).get(1, b""))
        if described.get(1) != 1 or described.get(2, 0) != len(chunks):
            raise BadRecord("its index is not that of an ArrayRecord file")
        self._count = described.get(3, 0)
        found = [_fields(chunk) for chunk in chunks]
        self._group = found[0].get(3, 0) if found else 1
        # The last chunk ends where the index begins.
        self._starts = np.array([chunk.get(1, 0) for chunk in found] + [start], np.int64)
        rising = (np.diff(self._starts) > 0).all()
        if not rising or not self._group or -(-self._count // self._group) != len(chunks):
            raise BadRecord("its index contradicts itself")

    def num_records(self) -> int:
        """How many there are."""
        return self._count

    def ok(self) -> bool:
        """True: what is wrong is said when it is opened."""
        return True

    def read(self, positions) -> list[bytes]:
        """The records at some positions."""
        return [self._read(position) for position in positions]

    def _read(self, position: int) -> bytes:
        chunk, inside = divmod(position, self._group)
        start, stop = map(int, self._starts[chunk : chunk + 2])
        if stop - start > MAX_CHUNK_BYTES:
            raise BadRecord(f"a chunk of {stop - start:,} bytes, at most {MAX_CHUNK_BYTES:,} are read")
        found = _records(_chunk(self._path.read_range(start, stop), start))
        if inside >= len(found):
            raise BadRecord(f"Corrupted: {len(found)} records where more should be")
        return found[inside]


def _chunk(data: bytes, start: int) -> tuple[int, int, bytes]:
    """(records, their bytes when decoded, encoded data) of the chunk that lies in a file from `start` on."""
    first = -start % BLOCK
    if first < len(data):
        # Every 64 KiB a header interrupts whatever there is.
        parts = [data[:first]]
        parts += [data[at + BLOCK_HEADER : at + BLOCK] for at in range(first, len(data), BLOCK)]
        data = b"".join(parts)
    if len(data) < CHUNK_HEADER:
        raise BadRecord("Corrupted: a chunk is cut off")
    _, size, _, kind, decoded = struct.unpack_from("<5Q", data)
    if size > len(data) - CHUNK_HEADER or decoded > MAX_CHUNK_BYTES:
        raise BadRecord("Corrupted: a chunk is larger than its place")
    if kind & 0xFF != _SIMPLE:
        raise BadRecord(f"a chunk of kind {kind & 0xFF:#x}; write shards without `transpose`")
    return kind >> 8, decoded, data[CHUNK_HEADER : CHUNK_HEADER + size]


def _records(chunk: tuple[int, int, bytes]) -> list[bytes]:
    """The records of a simple chunk."""
    count, decoded, data = chunk
    if not data:
        raise BadRecord("Corrupted: an empty chunk")
    size, at = _varint(data, 1)
    # A size takes ten bytes at most.
    sizes = _plain(data[0], data[at : at + size], min(10 * count, MAX_CHUNK_BYTES))
    values = _plain(data[0], data[at + size :], decoded)
    ends, place, end = [0], 0, 0
    for _ in range(count):
        one, place = _varint(sizes, place)
        end += one
        ends.append(end)
    if place != len(sizes) or end != len(values) or end != decoded:
        raise BadRecord("Corrupted: the sizes of records contradict their chunk")
    return [values[a:b] for a, b in itertools.pairwise(ends)] if count > 1 else [values][:count]


def _plain(compression: int, data: bytes, limit: int) -> bytes:
    """Decompressed data of at most `limit` bytes."""
    if not compression:
        return data
    if compression != ord("z"):
        raise BadRecord(f"compressed by method {chr(compression)!r}; write shards uncompressed or with zstd")
    size, at = _varint(data, 0)
    if size > limit:
        raise BadRecord(f"Corrupted: {size:,} bytes where at most {limit:,} can be")
    try:
        found = zstandard.ZstdDecompressor().decompress(data[at:], max_output_size=max(1, size))
    except zstandard.ZstdError as error:
        raise BadRecord(f"Corrupted: {error}") from None
    if len(found) != size:
        raise BadRecord(f"Corrupted: {len(found):,} bytes, expected {size:,}")
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where it ends."""
    value = shift = 0
    for byte in data[at : at + 10]:
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise BadRecord("Corrupted: a number has no end")


def _fields(message: bytes) -> dict[int, int | bytes]:
    """Numbers and texts of a protocol buffer by their field."""
    found, at = {}, 0
    while at < len(message):
        key, at = _varint(message, at)
        value, at = _varint(message, at)
        if key & 7 == 2:
            value, at = message[at : at + value], at + value
        elif key & 7:
            raise BadRecord("Corrupted: a field of an unknown kind")
        found[key >> 3] = value
    return found
