"""HDF5 files and their datasets, with errors that name them."""

import contextlib
import io
import pathlib

import numpy as np

from vlm3_jax.errors import BadRecord
from vlm3_jax.formats.optional import module

MAX_BYTES = 2**31


@contextlib.contextmanager
def opened(path: pathlib.Path):
    """The file, to be read. BadRecord if it is no HDF5 file; FileNotFoundError if it is not there."""
    h5py = module("h5py")
    local = isinstance(path, pathlib.Path)
    if local and not path.exists():
        raise FileNotFoundError(path)
    try:
        file = h5py.File(path if local else io.BytesIO(path.read_bytes()), "r")
    except OSError as error:
        raise BadRecord(f"{path.name}: not a readable HDF5 file ({error})") from None
    with file:
        yield file


def dataset(file, key: str, name: str, index: int | None = None) -> np.ndarray:
    """The numbers of a dataset, or of its element `index`; BadRecord, calling the file `name`, if there are none."""
    try:
        found = file[key]
        size = found.size if index is None else int(np.prod(found.shape[1:]))
        if found.dtype.kind not in "biuf" or size * found.dtype.itemsize > MAX_BYTES:
            raise BadRecord(f"{name}: {key} holds {found.dtype} of shape {list(found.shape)}, not numbers")
        return np.asarray(found[()] if index is None else found[index])
    # Damaged files make h5py raise all kinds of errors.
    except (KeyError, OSError, ValueError, IndexError, RuntimeError, AttributeError, TypeError) as error:
        raise BadRecord(f"{name}: cannot read {key} ({error})") from None


def read_array(path: pathlib.Path, key: str) -> np.ndarray:
    """One dataset of a small file, such as Spring's dsp5 ("disparity") and MegaDepth's h5 ("depth")."""
    with opened(path) as file:
        return dataset(file, key, path.name)
