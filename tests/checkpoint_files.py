"""Safetensors files read by the format's definition, for comparing bytes."""

import json
import struct


def stored(folder) -> dict[str, tuple]:
    """{key: (dtype, shape, bytes)} of all safetensors files, read by the format's definition and no library."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        data = path.read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        for key, entry in json.loads(data[8 : 8 + size]).items():
            if key != "__metadata__":
                assert key not in tensors
                start, end = (8 + size + offset for offset in entry["data_offsets"])
                tensors[key] = entry["dtype"], tuple(entry["shape"]), data[start:end]
    return tensors
