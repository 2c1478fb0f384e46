"""Paths, which are local ones until object storage is there, and reading from storage that may hiccup."""

import errno
import logging
import os
import pathlib
import re
import time
from collections.abc import Callable
from typing import TypeVar

from vlm3_jax.errors import BadRecord, UserError

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

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Unreadable(BadRecord):
    """The storage failed `ATTEMPTS` times, the last with `why`: the record may be sound. Many in a row stop a run."""

    def __init__(self, name: str, why: str):
        super().__init__(f"{name}: failed {ATTEMPTS} times, the last with {why}")
        self.why = why


def local_path(path, name: str = "") -> pathlib.Path:
    """The path; UserError, with its field's or option's `name`, for one with a scheme: no folder "gs:" is ever made."""
    if _SCHEME.match(os.fspath(path)):
        where = f"{name}: " if name else ""
        raise UserError(f"{where}{os.fspath(path)}: only local files are read and written; give a local path")
    return pathlib.Path(path)


def patiently(read: Callable[[], _T], name: str) -> _T:
    """`read()`, once more if it ends with an OSError; Unreadable, which calls the thing read `name`, if it does again.

    An OSError that says that the path is wrong is raised as it is, at once.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return read()
        except OSError as error:
            if error.errno in WRONG_PATH:
                raise
            why = f"{type(error).__name__}: {error}"
        if attempt < ATTEMPTS:
            _log.warning("data: %s: %s; trying once more", name, why)
            time.sleep(PAUSE_S)
    raise Unreadable(name, why)
