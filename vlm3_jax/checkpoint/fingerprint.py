"""What tells a model's files from those of another, without reading gigabytes."""

import hashlib
from collections.abc import Sequence

from vlm3_jax.storage import AnyPath

# Larger files are sampled: so many pieces of so many bytes, evenly spaced. Training changes nearly every weight.
WHOLE, PIECES, PIECE = 64 * 2**20, 64, 2**18
# What lies in a model's folder and has no say in its answers.
IGNORED = (".md", ".png", ".jpg")
IGNORED_NAMES = ("spread.json",)


def of(folders: Sequence[AnyPath]) -> str:
    """32 hexadecimal digits of names, sizes and bytes of all files in these folders, wherever those lie."""
    found = hashlib.sha256()
    for number, folder in enumerate(folders):
        for path in sorted(p for p in folder.rglob("*") if p.is_file() and _counts(p)):
            size = path.stat().st_size
            found.update(f"{number}/{path.relative_to(folder)}\0{size}\0".encode(errors="backslashreplace"))
            _update(found, path, size)
    return found.hexdigest()[:32]


def _counts(path: AnyPath) -> bool:
    return path.suffix not in IGNORED and path.name not in IGNORED_NAMES


def _update(found, path: AnyPath, size: int) -> None:
    with path.open("rb") as file:
        if size <= WHOLE:
            found.update(file.read())
            return
        for piece in range(PIECES):
            file.seek((size - PIECE) * piece // (PIECES - 1))
            found.update(file.read(PIECE))
