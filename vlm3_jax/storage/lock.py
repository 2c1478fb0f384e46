"""The lock of a folder that one command at a time may write, here or in a bucket."""

import contextlib
import errno
import fcntl
import os
import pathlib
import secrets
import socket
import time
from collections.abc import Callable, Iterator

from vlm3_jax.storage import AnyPath, is_remote
from vlm3_jax.storage.bucket_lock import Lock, taken

# Seconds that a command which was killed may take to let go: on this host, and on one that a file server has lost
# (NFS 4 gives it 90 s on Linux).
LET_GO_S, LEASE_S = 10, 120
# What file systems say that know no locks.
_NO_LOCKS = (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS)


@contextlib.contextmanager
def held(
    path: AnyPath, folder: AnyPath, what: str = "run", option: str = "--workdir", token: str = ""
) -> Iterator[Callable[[], None]]:
    """Inside, the lock `path` of a `folder` is this process's; gives what raises a UserError once it was lost.

    The kernel ends a local one with the process, however it ends; in a bucket it may be taken over, see `bucket_lock`.
    UserError if another has it: a second `what` (run, build), which may use another folder by `option`. `token`: hex
    digits that the lock holds; "" makes some.
    """
    who = f"process {os.getpid()} on {socket.gethostname()} {token or secrets.token_hex(8)}"
    if is_remote(path):
        lock = Lock(path, folder, who, what, option)
        try:
            yield lock.check
        finally:
            lock.release()
        return
    with open(path, "a+", encoding="utf-8") as file:
        _wait(file, folder, what, option)
        file.truncate(0)
        file.write(f"{who}\n")
        file.flush()
        # Other hosts see it only then.
        os.fsync(file.fileno())
        try:
            yield _nothing
        finally:
            # What is left says nothing of who has written the folder.
            file.truncate(0)


def _nothing() -> None:
    pass


def _wait(file, folder: pathlib.Path, what: str, option: str) -> None:
    """Until the file is locked; UserError if that takes longer than letting go does."""
    start = time.monotonic()
    while not _lock(file):
        file.seek(0)
        who = " ".join(file.read().split()[:-1])
        if time.monotonic() - start > (LET_GO_S if who.endswith(f" on {socket.gethostname()}") else LEASE_S):
            raise taken(folder, who, what, option)
        time.sleep(0.1)


def _lock(file) -> bool:
    """Whether the file is locked now, or cannot be."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True
