"""Lists of names: .txt (a line each), .json, or .npy as MapAnything's split lists are, which hold a pickle.

That pickle is read by an unpickler that knows three names, of which numpy's arrays of objects are made, and has for
them objects of its own that only keep what they are given: nothing is called by what a file says.
"""

import io
import json
import pathlib
import pickle

import numpy as np

from vlm3_jax.data.sources.numbers import MAX_TEXT_BYTES, text
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.records import map_files


class _Kept:
    """In place of an array or a type: what it was given as its state."""

    state: object = None

    def __init__(self, *_):
        pass

    def __setstate__(self, state):
        self.state = state


# numpy 2 calls its module numpy._core, numpy 1 numpy.core.
_KNOWN = {("numpy", "ndarray"), ("numpy", "dtype")}
_KNOWN |= {(module, "_reconstruct") for module in ("numpy.core.multiarray", "numpy._core.multiarray")}


class _Restricted(pickle.Unpickler):
    """Makes nothing but `_Kept`, texts, numbers, lists and tuples."""

    def find_class(self, module: str, name: str):
        """`_Kept` for a name that is known; UnpicklingError for any other, which is not even looked up."""
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return _Kept

    def persistent_load(self, pid):
        """Nothing is loaded from elsewhere."""
        raise pickle.UnpicklingError("it refers to something outside")


def read_names(path: pathlib.Path) -> list[str]:
    """The names in a list. UserError, which names the file, if it is none."""
    try:
        found = _names_of(path)
    except BadRecord as error:
        raise UserError(str(error)) from None
    if not found or not all(isinstance(name, str) for name in found):
        raise UserError(f"{path}: expected a list of names")
    return found


def _names_of(path: pathlib.Path) -> list:
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return _npy_names(map_files.read(path, str(path), MAX_TEXT_BYTES), path)
    words = text(path)
    if suffix == ".json":
        try:
            found = json.loads(words)
        except (ValueError, RecursionError) as error:
            raise BadRecord(f"{path}: not JSON ({error})") from None
        return found if isinstance(found, list) else []
    return [line.strip() for line in words.splitlines() if line.strip()]


def _npy_names(data: bytes, path: pathlib.Path) -> list:
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, _, dtype = readers[version](file)
        if dtype.kind == "U":
            file.seek(0)
            return np.lib.format.read_array(file, allow_pickle=False).ravel().tolist()
        if dtype.kind != "O":
            raise ValueError(f"it holds {dtype}")
        array = _Restricted(file).load()
        # As numpy writes them: version, shape, type, whether by columns, and the items.
        _, stored, _, _, names = array.state
    # Whatever a pickle made on purpose may raise while it is read.
    except Exception as error:
        raise BadRecord(f"{path}: not a list of names ({error}); write one name a line into a .txt file") from None
    if not isinstance(names, list) or tuple(stored) != shape:
        raise BadRecord(f"{path}: not a list of names; write one name a line into a .txt file")
    return names
