"""A lock in a bucket: an object made only if it is not there, rewritten every few seconds.

No clocks are compared: a lock is stale when it has not changed for `LEASE_S` by the clock of who looks at it.
"""

import contextlib
import logging
import threading
import time

from vlm3_jax.errors import UserError
from vlm3_jax.storage import AnyPath, BucketPath
from vlm3_jax.storage.buckets import StorageError

BEAT_S, LEASE_S, LOOK_S = 10.0, 60.0, 1.0

_log = logging.getLogger(__name__)


class Lock:
    """A lock that is held until `release`; UserError, which calls the holder a `what`, if a living one has it.

    `folder`: what it guards; `who`: who holds it, in words, ending with a token of its own; `option`: of the command
    line, the one that names the folder.
    """

    def __init__(self, path: BucketPath, folder: AnyPath, who: str, what: str, option: str):
        self._path, self._folder, self._who, self._what, self._option = path, folder, who, what, option
        self._beats, self._lost = 0, ""
        self._version = self._acquired(self._content())
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="vlm3-lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """UserError if another has taken it over, which it may when this one was silent for `LEASE_S`."""
        if self._lost:
            raise UserError(
                f"{self._folder}: {self._lost} has taken it over while this {self._what} was silent for {LEASE_S:g} s "
                f"or more; what it has saved is whole; see that one {self._what} is left, or use another {self._option}"
            )

    def release(self) -> None:
        """Removes it, unless another has it by now."""
        self._end.set()
        self._thread.join()
        with contextlib.suppress(StorageError):
            found = self._path.versioned()
            if found and found[1] == self._version:
                self._path.unlink(missing_ok=True)

    def _content(self) -> bytes:
        return f"{self._who} {self._beats}\n".encode()

    def _beat(self) -> None:
        while not self._end.wait(BEAT_S):
            self._beats += 1
            try:
                version = self._path.update(self._content(), self._version)
                version = version or _mine(self._path, self._content())
                if version is None:
                    self._lost = self._holder()
                    return
                self._version = version
            except StorageError as error:
                _log.warning("%s: the lock cannot be renewed: %s", self._path, error.why)

    def _acquired(self, content: bytes) -> str:
        """The version of the lock that is ours now."""
        path, seen, since = self._path, None, 0.0
        while True:
            version = path.create(content) or _mine(path, content)
            if version:
                return version
            found = path.versioned()
            if found is None:
                continue
            if seen is None:
                seen, since = found[1], time.monotonic()
            elif found[1] != seen:
                raise taken(self._folder, self._holder(), self._what, self._option)
            elif time.monotonic() - since > LEASE_S:
                version = path.update(content, seen) or _mine(path, content)
                if version:
                    return version
                seen = None
            time.sleep(LOOK_S)

    def _holder(self) -> str:
        """Who has it, in words: all but the token and the count of beats."""
        found = self._path.versioned()
        return " ".join(found[0].decode(errors="replace").split()[:-2]) if found else f"another {self._what}"


def taken(folder: AnyPath, who: str, what: str, option: str) -> UserError:
    """The error of a second command."""
    return UserError(
        f"{folder}: another {what} is writing it ({who}); wait until it has ended, or use another {option}"
    )


def _mine(path: BucketPath, content: bytes) -> str | None:
    """Its version if the lock says this: a request that was tried again may have succeeded the first time."""
    found = path.versioned()
    return found[1] if found and found[0] == content else None
