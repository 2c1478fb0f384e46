"""Files that others have written: found by the name of a record, and read without trusting them."""

import io
import pathlib
import zipfile
from collections.abc import Sequence

import numpy as np

from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.records.map_files import MAX_MAP_BYTES, read, read_npy


def find(folder: pathlib.Path, name: str, suffixes: Sequence[str]) -> pathlib.Path | None:
    """The file of a record in a folder, its name with one of the suffixes; None if there is none.

    UserError for a name that leads out of the folder, and for two files of one record.
    """
    parts = pathlib.PurePosixPath(name).parts
    if not parts or ".." in parts or name.startswith("/"):
        raise UserError(f"{folder}: a record called {name!r} cannot have a file there")
    place = folder.joinpath(*parts)
    found = [path for path in (place.with_name(place.name + suffix) for suffix in suffixes) if path.is_file()]
    if len(found) > 1:
        raise UserError(f"{found[0]}: there is also {found[1].name}; keep one of them")
    return found[0] if found else None


def read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of numbers in an npz file. BadRecord if it is none, or too large when it is unpacked."""
    try:
        with zipfile.ZipFile(io.BytesIO(read(path, str(path)))) as archive:
            members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            if sum(info.file_size for info in members) > MAX_MAP_BYTES:
                raise BadRecord(f"{path}: above {MAX_MAP_BYTES:,} bytes when unpacked")
            return {info.filename[:-4]: read_npy(archive.read(info), f"{path}: {info.filename}") for info in members}
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, RuntimeError) as error:
        raise BadRecord(f"{path}: not a readable npz file ({error})") from None


def one_of(arrays: dict[str, np.ndarray], names: Sequence[str], path: pathlib.Path) -> np.ndarray:
    """The array under the first of the names that is there, or the only one. BadRecord if that is not clear."""
    for name in names:
        if name in arrays:
            return arrays[name]
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    raise BadRecord(f"{path}: expected an array {' or '.join(names)}, it has {', '.join(arrays) or 'none'}")
