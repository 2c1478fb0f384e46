"""Reading from storage that may hiccup: what fails is tried once more before its record is set aside."""

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from vlm3_jax.errors import BadRecord

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

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Unreadable(BadRecord):
    """The storage failed `ATTEMPTS` times, the last with `why`: the record may be sound. Many in a row stop a run."""

    def __init__(self, name: str, why: str):
        super().__init__(f"{name}: failed {ATTEMPTS} times, the last with {why}")
        self.why = why


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
