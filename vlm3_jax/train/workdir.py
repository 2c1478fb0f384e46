"""The workdir of a run: one run at a time writes it, and all processes of the run see the same folder."""

import contextlib
import errno
import fcntl
import os
import pathlib
import secrets
import socket
import time

import jax
import numpy as np

from vlm3_jax.errors import UserError
from vlm3_jax.parallel import processes
from vlm3_jax.storage import AnyPath, is_remote
from vlm3_jax.train import bucket_lock

LOCK = ".lock"
# Seconds that a run which was killed may take to let go: on this host, and on one that a file server has lost (NFS 4
# gives it 90 s on Linux).
LET_GO_S, LEASE_S = 10, 120
# So long a shared file system may take to show one host what another has written.
SHOWN_S = 10
# What file systems say that know no locks.
_NO_LOCKS = (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS)


@contextlib.contextmanager
def claimed(workdir: AnyPath):
    """Inside, this run is the only one that writes `workdir`, which is made if it is missing; gives what checks that.

    The kernel ends that with process 0, however it ends; in a bucket, where a lock may be lost, the function that is
    given raises a UserError if it was. UserError if another run has the folder, or if a process sees another folder
    than process 0.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    token = secrets.token_bytes(8)
    with contextlib.ExitStack() as held:
        check = _nothing
        if jax.process_index() == 0 and is_remote(workdir):
            check = held.enter_context(bucket_lock.held(workdir / LOCK, _who(token.hex()))).check
        elif jax.process_index() == 0:
            held.enter_context(_locked(workdir, token.hex()))
        if jax.process_count() > 1:
            _refuse_other_folders(workdir, token)
        yield check


def _nothing() -> None:
    pass


def _who(token: str) -> str:
    return f"process {os.getpid()} on {socket.gethostname()} {token}"


@contextlib.contextmanager
def _locked(workdir: pathlib.Path, token: str):
    with open(workdir / LOCK, "a+", encoding="utf-8") as file:
        start = time.monotonic()
        while not _lock(file):
            file.seek(0)
            who = " ".join(file.read().split()[:-1])
            if time.monotonic() - start > (LET_GO_S if who.endswith(f" on {socket.gethostname()}") else LEASE_S):
                raise UserError(
                    f"{workdir}: another run is writing it ({who}); wait until it has ended, or use another --workdir"
                )
            time.sleep(0.1)
        file.truncate(0)
        file.write(f"{_who(token)}\n")
        file.flush()
        # Other hosts see it only then.
        os.fsync(file.fileno())
        yield


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


def _refuse_other_folders(workdir: AnyPath, token: bytes) -> None:
    """UserError in all processes if one does not find what process 0 has written."""
    wanted = processes.gather({"token": np.frombuffer(token, np.uint8)})["token"][0].tobytes().hex()
    end = time.monotonic() + SHOWN_S
    while not (here := _holds(workdir / LOCK, wanted)) and time.monotonic() < end:
        time.sleep(0.1)
    here = processes.gather({"here": np.array(here)})["here"]
    if not here.all():
        numbers = ", ".join(map(str, np.flatnonzero(~here)))
        raise UserError(
            f"{workdir}: --workdir is not the same folder in process {numbers} as in process 0; "
            "it must lie on a file system that all hosts share"
        )


def _holds(path: AnyPath, text: str) -> bool:
    with contextlib.suppress(OSError):
        return text in path.read_text(encoding="utf-8")
    return False
