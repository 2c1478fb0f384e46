"""Event files of TensorBoard: numbers by step, as TFRecords of the protocol buffer Event.

Written here because only scalars are wanted: the fields are few and fixed (tensorflow/core/util/event.proto,
framework/summary.proto). What writes them elsewhere imports torch wherever torch is installed: seconds at each start.
"""

import os
import pathlib
import socket
import struct
import time

from vlm3_jax.files import naming


class Events:
    """An event file in `folder`; TensorBoard hides what earlier files have from `purge_step` on.

    Written by who calls: a writing thread would be ended by a full disk, and whoever then adds to its queue waits for
    ever. OSError with the name of the file.
    """

    def __init__(self, folder: pathlib.Path, purge_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        # Unbuffered: what could not be written must not be tried again when it is closed.
        self._file = self.path.open("ab", buffering=0)
        self._append([_bytes(3, b"brain.Event:2")])
        # A SessionLog whose status is START.
        self._append([_number(2, purge_step) + _bytes(7, _number(1, 1))])

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Appends the numbers of a step."""
        self._append(_number(2, step) + _bytes(5, _bytes(1, _scalar(*item))) for item in numbers.items())

    def _append(self, events) -> None:
        wall_time = b"\x09" + struct.pack("<d", time.time())
        data = b"".join(_record(wall_time + event) for event in events)
        with naming(self.path):
            while data:
                data = data[self._file.write(data) :]

    def close(self) -> None:
        """Closes the file."""
        with naming(self.path):
            self._file.close()


def _varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _scalar(tag: str, value: float) -> bytes:
    """A Summary.Value: its tag and a float."""
    return _bytes(1, tag.encode()) + b"\x15" + struct.pack("<f", value)


def _record(data: bytes) -> bytes:
    """A TFRecord: length and data, each with its checksum."""
    length = struct.pack("<Q", len(data))
    return b"".join([length, struct.pack("<I", _masked_crc32c(length)), data, struct.pack("<I", _masked_crc32c(data))])


def _table() -> list[int]:
    """CRC-32C (Castagnoli) of every byte."""
    table = list(range(256))
    for _ in range(8):
        table = [value >> 1 ^ (0x82F63B78 if value & 1 else 0) for value in table]
    return table


_TABLE = _table()


def _masked_crc32c(data: bytes) -> int:
    """The checksum of TFRecords: CRC-32C, turned and moved so that sums over sums stay good."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 255]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
