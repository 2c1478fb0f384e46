"""The workdir of a run: one run at a time writes it, and all processes of the run see the same folder."""

import contextlib
import secrets
import time

import jax
import numpy as np

from vlm3_jax.errors import UserError
from vlm3_jax.parallel import processes
from vlm3_jax.storage import AnyPath, lock

LOCK = ".lock"
# So long a shared file system may take to show one host what another has written.
SHOWN_S = 10


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
        if jax.process_index() == 0:
            check = held.enter_context(lock.held(workdir / LOCK, workdir, token=token.hex()))
        if jax.process_count() > 1:
            _refuse_other_folders(workdir, token)
        yield check


def _nothing() -> None:
    pass


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
