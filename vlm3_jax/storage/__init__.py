"""Every path a user can give: local, gs:// or s3://. `path` makes it; what reads and writes takes what it gives.

A local path is a pathlib.Path. A path in a bucket is a `BucketPath` with the same methods, and no os.PathLike: whoever
hands it to something that knows local files only gets a TypeError, not a folder named "gs:".
"""

import errno
import logging
import os
import pathlib
import re
import time
from collections.abc import Callable
from typing import TypeAlias, TypeVar

from vlm3_jax.errors import Again, BadRecord, UserError
from vlm3_jax.storage.buckets import SCHEMES, StorageError
from vlm3_jax.storage.paths import BucketPath

__all__ = ["AnyPath", "BucketPath", "StorageError", "Unreadable", "is_remote", "local_path", "path", "patiently"]

AnyPath: TypeAlias = pathlib.Path | BucketPath

ATTEMPTS = 2
# A stale handle or a full table of open files passes in moments, not at once.
PAUSE_S = 0.5
# These say that the path itself is wrong: it will not be right a moment later.
WRONG_PATH = {
    errno.EACCES,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EPERM,
}

# One letter is a drive.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Unreadable(BadRecord):
    """The storage failed `ATTEMPTS` times, the last with `why`: the record may be sound. Many in a row stop a run.

    `passing`: it was a bucket that failed for a while, which may be over when the run is started again.
    """

    def __init__(self, name: str, why: str, passing: bool = False):
        super().__init__(f"{name}: {why}" if passing else f"{name}: failed {ATTEMPTS} times, the last with {why}")
        self.why, self.passing = why, passing


def path(text, name: str = "") -> AnyPath:
    """The path that a text, or a path, stands for; UserError, with its field's or option's `name`, for another scheme.

    Nothing is looked up: no bucket is asked.
    """
    if isinstance(text, BucketPath):
        return text
    text = os.fspath(text)
    where = f"{name}: " if name else ""
    scheme = _SCHEME.match(text)
    if not scheme:
        return pathlib.Path(text)
    if scheme[1] not in SCHEMES:
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise UserError(f"{where}{text}: give a local path or one that begins with {known}")
    try:
        return BucketPath.parse(text)
    except UserError as error:
        raise UserError(f"{where}{error}") from None


def local_path(text, name: str = "") -> pathlib.Path:
    """As `path` where only a local file will do; UserError for one in a bucket too."""
    found = path(text, name)
    if is_remote(found):
        where = f"{name}: " if name else ""
        raise UserError(f"{where}{found}: only a local path will do here; copy it there first")
    return found


def is_remote(path) -> bool:
    """Whether a path lies in a bucket."""
    return isinstance(path, BucketPath)


def patiently(read: Callable[[], _T], name: str) -> _T:
    """`read()`, once more if it ends with an OSError; Unreadable, which calls the thing read `name`, if it does again.

    An OSError that says that the path is wrong is raised as it is, at once. What a bucket fails at has been tried again
    where it was asked.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return read()
        except OSError as error:
            if error.errno in WRONG_PATH:
                raise
            if isinstance(error, StorageError):
                raise Unreadable(name, error.why, passing=isinstance(error, Again)) from None
            why = f"{type(error).__name__}: {error}"
        if attempt < ATTEMPTS:
            _log.warning("data: %s: %s; trying once more", name, why)
            time.sleep(PAUSE_S)
    raise Unreadable(name, why)
