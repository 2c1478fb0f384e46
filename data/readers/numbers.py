"""Lines of numbers and JSON, with errors that name their file."""

import gzip
import io
import json

import numpy as np

from vlm3_jax.errors import BadRecord

MAX_JSON_BYTES = 4 * 2**30


def read_rows(data: bytes, name: str, columns: int | None = None) -> np.ndarray:
    """Lines of numbers, float64 [N, columns]; lines that are empty or begin with # are left out."""
    lines = (line.split() for line in data.decode("utf-8", "replace").splitlines())
    try:
        rows = [[float(word) for word in line] for line in lines if line and not line[0].startswith("#")]
        values = np.array(rows, np.float64)
        if values.ndim != 2 or columns not in (None, values.shape[1]):
            raise ValueError
    except ValueError:
        raise BadRecord(f"{name}: expected lines of {columns or 'equally many'} numbers") from None
    return values


def read_json(data: bytes, name: str):
    """Parsed JSON, unpacked first if it is gzip; BadRecord if it is not."""
    try:
        if data[:2] == b"\x1f\x8b":
            with gzip.open(io.BytesIO(data)) as file:
                data = file.read(MAX_JSON_BYTES + 1)
        if len(data) > MAX_JSON_BYTES:
            raise BadRecord(f"{name}: above {MAX_JSON_BYTES:,} bytes of JSON")
        return json.loads(data)
    except (OSError, EOFError, ValueError, RecursionError) as error:
        raise BadRecord(f"{name}: cannot be read as JSON ({error})") from None
