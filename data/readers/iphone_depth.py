"""depth.bin of ScanNet++: all depth frames of an iPhone video in one file, in either of two forms.

One raw-deflate stream of float32 metres [N, 192, 256]; or frame by frame, uint32 (little-endian) its size and then
lz4-compressed uint16 millimetres or raw-deflate float32 metres.
"""

import functools
import pathlib
import zlib

import numpy as np

from vlm3_jax.builders import common
from vlm3_jax.errors import BadRecord

HEIGHT, WIDTH = 192, 256
_PIXELS = HEIGHT * WIDTH
# An uncompressible frame is hardly larger than its numbers.
_LARGEST = 8 * _PIXELS


def read_frame(path: pathlib.Path, number: int) -> np.ndarray:
    """float32 metres [192, 256] of a frame, 0 where there is none. BadRecord if the file is damaged or ends before."""
    offsets = _offsets(path)
    if offsets is None:
        return _stream(path).frame(number)
    if number >= len(offsets):
        raise BadRecord(f"{path.name}: has {len(offsets)} frames, no {number}")
    start, size = offsets[number]
    with path.open("rb") as file:
        file.seek(start)
        data = file.read(size)
    return _unpacked(data, f"{path.name}: frame {number}")


@functools.lru_cache(maxsize=8)
def _offsets(path: pathlib.Path) -> list[tuple[int, int]] | None:
    """Where each whole frame's bytes are, (offset, size); None if the file is one stream."""
    found, end = [], path.stat().st_size
    with path.open("rb") as file:
        at = 0
        while at < end:
            file.seek(at)
            size = int.from_bytes(file.read(4), "little")
            if not 0 < size <= _LARGEST or at + 4 + size > end:
                # A stream, or frames of which the last is cut off.
                return found if found and _unpacks(file, *found[0]) else None
            found.append((at + 4, size))
            at += 4 + size
    return found


def _unpacks(file, start: int, size: int) -> bool:
    file.seek(start)
    try:
        _unpacked(file.read(size), "the first frame")
    except BadRecord:
        return False
    return True


def _unpacked(data: bytes, name: str) -> np.ndarray:
    try:
        raw = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, 4 * _PIXELS + 1)
        if len(raw) == 4 * _PIXELS:
            return np.frombuffer(raw, "<f4").reshape(HEIGHT, WIDTH)
    except zlib.error:
        pass
    try:
        raw = common.module("lz4.block").decompress(data, uncompressed_size=2 * _PIXELS)
    # lz4 has an error of its own, which is not there where lz4 is not.
    except (ValueError, RuntimeError, MemoryError) as error:
        raise BadRecord(f"{name}: neither deflate nor lz4 ({error})") from None
    if len(raw) != 2 * _PIXELS:
        raise BadRecord(f"{name}: {len(raw)} bytes, expected {2 * _PIXELS}")
    return np.frombuffer(raw, "<u2").reshape(HEIGHT, WIDTH).astype(np.float32) * np.float32(1e-3)


class _Stream:
    """Frames of one deflate stream, which can be read forwards only: for what lies before it is begun anew."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._begin()

    def _begin(self) -> None:
        self.next, self._at, self._rest = 0, 0, b""
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)

    def frame(self, number: int) -> np.ndarray:
        """float32 metres [192, 256]."""
        if number < self.next:
            self._begin()
        try:
            with self.path.open("rb") as file:
                file.seek(self._at)
                while True:
                    data = self._read(file)
                    self.next += 1
                    if self.next == number + 1:
                        self._at = file.tell()
                        return np.frombuffer(data, "<f4").reshape(HEIGHT, WIDTH)
        except (BadRecord, zlib.error) as error:
            name = f"{self.path.name}: frame {self.next}"
            self._begin()
            raise BadRecord(f"{name}: {error}") from None

    def _read(self, file) -> bytes:
        wanted, parts = 4 * _PIXELS, []
        while wanted:
            self._rest = self._rest or file.read(1 << 16)
            ended = not self._rest
            part = self._inflate.decompress(self._rest, wanted)
            self._rest = self._inflate.unconsumed_tail
            if not part and (ended or self._inflate.eof):
                raise BadRecord("the file ends before it")
            parts.append(part)
            wanted -= len(part)
        return b"".join(parts)


@functools.lru_cache(maxsize=2)
def _stream(path: pathlib.Path) -> _Stream:
    return _Stream(path)
