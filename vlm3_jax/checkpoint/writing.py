"""Writes tensors into the files of a folder: strip by strip, two at a time, and on after a kill where it stopped.

No strip needs more than a few megabytes beside the source. Nothing is synced to disk before the folder takes its name
(as with `cp`), so finished tensors are only trusted by a later call on the same boot of the machine.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed

import numpy as np

from vlm3_jax.checkpoint.copying import copy_into
from vlm3_jax.errors import UserError
from vlm3_jax.files import replace_dir
from vlm3_jax.storage import AnyPath, is_remote
from vlm3_jax.storage.folders import put_folder, scratch

STRIP_BYTES = 2 * 2**20
WORKERS = 2
JOURNAL = ".progress"
_LARGE_BYTES = 256 * 2**20
_large = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Piece:
    """Rows [start, stop) of a tensor's first axis lie in `file` (a name inside the folder) from byte `offset` on."""

    file: str
    offset: int
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Job:
    """One tensor: `read` gives it in the layout in which it is written (any strides), as `dtype` into its pieces."""

    name: str
    read: Callable[[], np.ndarray]
    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: tuple[Piece, ...]
    nbytes: int


@dataclasses.dataclass(frozen=True)
class WritePlan:
    """Everything that makes a folder: its small files (headers of large ones too), then the tensors."""

    small: dict[str, bytes]
    jobs: list[Job]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(job.nbytes for job in self.jobs)


def place_beside(target: AnyPath, ending: str) -> pathlib.Path:
    """Where the folder that becomes `target` is written: beside it, for one in a bucket on this machine."""
    local = scratch(target) if is_remote(target) else target
    return local.with_name(local.name + ending)


def finish(folder: pathlib.Path, target: AnyPath, last: str = "config.json") -> None:
    """Gives a complete folder its name; what stood there is gone only then.

    In a bucket the file `last`, without which nobody takes it for a model, is put up behind all others.
    """
    if is_remote(target):
        put_folder(folder, target, last, without=JOURNAL)
        shutil.rmtree(folder)
        return
    (folder / JOURNAL).unlink(missing_ok=True)
    replace_dir(folder, target)


def write(folder: pathlib.Path, plan: WritePlan, identity: object = None, advance: Callable[[int], None] | None = None):
    """Writes a plan into `folder`, where its journal stays until `finish`. UserError if the disk is full.

    `identity` (JSON): tensors done by an earlier call with the same one are kept; without it the folder is started
    anew. `advance` is told the bytes of every tensor.
    """
    digest = hashlib.sha256(json.dumps([identity, _boot()]).encode()).hexdigest()
    try:
        with _journal(folder, digest, resume=identity is not None) as (file, done):
            if not done:
                for name, data in plan.small.items():
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    (folder / name).write_bytes(data)
                file.write(digest + "\n")
            if advance:
                advance(sum(plan.jobs[number].nbytes for number in done - {-1}))
            for number in _run(folder, plan.jobs, done, file):
                if advance:
                    advance(plan.jobs[number].nbytes)
    except OSError as error:
        again = "; what is written is kept: the same command goes on from there" if identity is not None else ""
        raise UserError(f"{folder}: cannot be written ({error.strerror or error}){again}") from None


@contextlib.contextmanager
def _journal(folder, digest, resume):
    """The open journal and the numbers of the jobs that are done (-1: the small files)."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / JOURNAL, "a+", buffering=1) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another process is writing it") from None
        file.seek(0)
        lines = file.read().splitlines(keepends=True)
        if resume and lines and lines[0] == digest + "\n":
            # A line without its end was cut off by the kill.
            yield file, {-1, *(int(line) for line in lines[1:] if line.endswith("\n"))}
            return
        for path in folder.iterdir():
            if path.name != JOURNAL:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        file.truncate(0)
        yield file, set()


def _run(folder, jobs, done, journal):
    """Runs the jobs that are not done, notes in the journal those that are, and yields their numbers."""
    pool, noting = ThreadPoolExecutor(WORKERS), threading.Lock()

    def run(number):
        _write_tensor(folder, jobs[number])
        with noting:
            journal.write(f"{number}\n")

    try:
        left = [number for number in range(len(jobs)) if number not in done]
        running = {pool.submit(run, number): number for number in left}
        for future in as_completed(running):
            future.result()
            yield running[future]
    finally:
        pool.shutdown(cancel_futures=True)


def _write_tensor(folder, job):
    # Of large tensors, which may have to be read as a whole, one at a time.
    with _large if job.nbytes > _LARGE_BYTES else contextlib.nullcontext():
        _write_pieces(folder, job, job.read())


def _write_pieces(folder, job, value):
    for piece in job.pieces:
        with open(os.open(folder / piece.file, os.O_WRONLY | os.O_CREAT, 0o644), "wb", buffering=0) as file:
            file.seek(piece.offset)
            step = max(1, STRIP_BYTES * job.shape[0] // job.nbytes)
            for start in range(piece.start, piece.stop, step):
                _write_all(file, _bytes(job, value[start : min(piece.stop, start + step)]))


def _bytes(job, strip) -> memoryview:
    if not strip.flags.c_contiguous or strip.dtype != job.dtype:
        block = np.empty(strip.shape, job.dtype)
        try:
            copy_into(block, strip)
        except FloatingPointError:
            raise UserError(f"{job.name}: holds values too large for {job.dtype}; choose another --dtype") from None
        strip = block
    return memoryview(strip.reshape(-1).view(np.uint8))


def _write_all(file, data):
    while len(data):
        data = data[file.write(data) :]


def free_bytes(path: pathlib.Path) -> int:
    """Free bytes on the disk on which `path` lies or will lie."""
    return shutil.disk_usage(next(folder for folder in (path, *path.absolute().parents) if folder.exists())).free


def _boot() -> str:
    """Names this boot of the machine, where the system tells: data that was not synced is gone after the next."""
    path = pathlib.Path("/proc/sys/kernel/random/boot_id")
    return path.read_text() if path.exists() else ""
