"""Lists of names: .txt (a line each), .json, or .npy, which MapAnything's split lists are (numpy's object arrays)."""

import json

from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.formats.npz import read_object_npy
from vlm3_jax.formats.numbers import MAX_TEXT_BYTES, text
from vlm3_jax.records import map_files
from vlm3_jax.storage import AnyPath


def read_names(path: AnyPath) -> list[str]:
    """The names in a list. UserError, which names the file, if it is none."""
    try:
        found = _names_of(path)
    except BadRecord as error:
        raise UserError(str(error)) from None
    if not found or not all(isinstance(name, str) for name in found):
        raise UserError(f"{path}: expected a list of names")
    return found


def _names_of(path: AnyPath) -> list:
    suffix = path.suffix.lower()
    if suffix == ".npy":
        try:
            return read_object_npy(map_files.read(path, str(path), MAX_TEXT_BYTES), str(path))
        except BadRecord as error:
            raise BadRecord(f"{error}; write one name a line into a .txt file") from None
    words = text(path)
    if suffix == ".json":
        try:
            found = json.loads(words)
        except (ValueError, RecursionError) as error:
            raise BadRecord(f"{path}: not JSON ({error})") from None
        return found if isinstance(found, list) else []
    return [line.strip() for line in words.splitlines() if line.strip()]
