"""Safetensors files: the header is judged in full before a byte is used, and the tensors are views of the mapped file.

Format: 8 bytes (little-endian length of the header), the header (JSON: key -> dtype, shape, data_offsets), the data.
https://github.com/huggingface/safetensors#format
"""

import collections
import dataclasses
import json
import math
import mmap
import pathlib
import struct

import numpy as np

from vlm3_jax.checkpoint.copying import DTYPES
from vlm3_jax.errors import UserError

HEADER_LIMIT = 100_000_000
NAMES = {"F32": DTYPES["float32"], "BF16": DTYPES["bfloat16"], "F16": DTYPES["float16"]}
_BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Entry:
    """A tensor of a file: the format's name of its dtype, its shape, and its bytes [start, stop) in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class SafetensorsFile:
    """An open file. UserError names what is wrong with it; nothing is read but the header until `tensor` is used."""

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.entries = _entries(self.path)
        with open(self.path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._bytes = np.frombuffer(self._map, np.uint8)

    def entry(self, key: str) -> Entry:
        """The entry of a floating-point tensor; UserError if it is missing or of a dtype that no parameter has."""
        if key not in self.entries:
            raise UserError(f"{self.path}: holds no tensor {key}, though the index says so")
        entry = self.entries[key]
        if entry.dtype not in NAMES:
            raise UserError(f"{self.path}: {key} is stored as {entry.dtype}, supported are {', '.join(NAMES)}")
        return entry

    def tensor(self, key: str, ahead: bool = False) -> np.ndarray:
        """A read-only view of the mapped file; `ahead`: all of it will be used, so it may be read in one go."""
        entry = self.entry(key)
        if ahead and entry.stop > entry.start:
            start = entry.start - entry.start % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, start, entry.stop - start)
        return self._bytes[entry.start : entry.stop].view(NAMES[entry.dtype]).reshape(entry.shape)


def header_bytes(tensors: list[tuple[str, np.dtype, tuple[int, ...]]]) -> tuple[bytes, list[int]]:
    """The first bytes of a file that holds `tensors` in this order, and where in the file each tensor starts."""
    header, offsets = {"__metadata__": {"format": "pt"}}, [0]
    names = {dtype: name for name, dtype in NAMES.items()}
    for key, dtype, shape in tensors:
        offsets.append(offsets[-1] + math.prod(shape) * dtype.itemsize)
        header[key] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": offsets[-2:]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, [8 + len(text) + offset for offset in offsets[:-1]]


def _entries(path) -> dict[str, Entry]:
    """The header, with every offset checked against every other and against the size of the file."""
    text, first, size = _header(path)
    twice: list[str] = []

    def unique(pairs):
        found = dict(pairs)
        if len(found) < len(pairs):
            twice.extend(key for key, n in collections.Counter(key for key, _ in pairs).items() if n > 1)
        return found

    try:
        header = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: truncated or not a safetensors file (its header is no JSON: {error})") from None
    if twice:
        raise UserError(f"{path}: the header names {twice[0]} twice")
    if not isinstance(header, dict):
        raise UserError(f"{path}: truncated or not a safetensors file (its header is no JSON object)")
    header.pop("__metadata__", None)
    entries = {key: _entry(path, key, value, first) for key, value in header.items()}
    for key, entry in entries.items():
        if entry.stop > size:
            behind = f"{key} ends {entry.stop - size:,} bytes behind its end"
            raise UserError(f"{path}: truncated or not a safetensors file ({behind})")
    end, last = first, "the header"
    for key, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != end:
            what = "overlap" if entry.start < end else "leave a gap"
            raise UserError(f"{path}: the data_offsets of {last} and {key} {what}")
        end, last = entry.stop, key
    if end != size:
        raise UserError(f"{path}: {size - end:,} bytes behind the last tensor belong to none")
    return entries


def _header(path) -> tuple[bytes, int, int]:
    """The header's text, where the data starts, and the size of the file."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if length > HEADER_LIMIT < size:
                raise UserError(f"{path}: a header of {length:,} bytes, at most {HEADER_LIMIT:,} are read")
            if size < 8 or length > size - 8:
                what = f"its header should have {length:,} bytes" if size >= 8 else "it has no header"
                raise UserError(f"{path}: truncated or not a safetensors file ({size:,} bytes, {what})")
            return file.read(length), 8 + length, size
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, though the index names it") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _entry(path, key, value, first) -> Entry:
    def numbers(name):
        found = value.get(name) if isinstance(value, dict) else None
        if not isinstance(found, list) or not all(type(n) is int and 0 <= n < 2**63 for n in found):
            raise UserError(f"{path}: the {name} of {key} are {str(found)[:80]}, expected whole numbers")
        return found

    shape, offsets = numbers("shape"), numbers("data_offsets")
    dtype = value.get("dtype")
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise UserError(f"{path}: the dtype of {key} is {str(dtype)[:40]!r}, which the format does not know")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise UserError(f"{path}: the data_offsets of {key} are {str(offsets)[:80]}, expected a start and an end")
    bits, bytes_ = math.prod(shape) * _BITS[dtype], offsets[1] - offsets[0]
    if bits != 8 * bytes_:
        raise UserError(f"{path}: {key} is {dtype} of shape {tuple(shape)}, which {bytes_:,} bytes are not")
    return Entry(dtype, tuple(shape), first + offsets[0], first + offsets[1])
