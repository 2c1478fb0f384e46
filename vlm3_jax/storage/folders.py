"""Folders between a bucket and this machine: fetched once, written aside and put up whole."""

import contextlib
import functools
import glob
import hashlib
import json
import logging
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from vlm3_jax.errors import UserError
from vlm3_jax.storage import AnyPath, BucketPath, is_remote
from vlm3_jax.storage.buckets import StorageError
from vlm3_jax.storage.paths import Stat

# Files sent or fetched at the same time.
_FILES = 8
# Copies of one folder in the cache: its small files and all of them, now and as they were last.
COPIES = 4

_log = logging.getLogger(__name__)


def cache() -> pathlib.Path:
    """Where what comes from buckets is kept: $VLM3_CACHE, else ~/.cache/vlm3."""
    return pathlib.Path(os.environ.get("VLM3_CACHE") or pathlib.Path("~/.cache/vlm3").expanduser())


def fetched(folder: AnyPath, wanted: Callable[[str], bool] = lambda name: True) -> pathlib.Path:
    """A local folder with the files that lie right in `folder` and whose names are `wanted`; a local one as it is.

    They are fetched into the cache once, and again when they have changed. Several processes may do so at the same
    time. UserError if the disk has no room.
    """
    if not is_remote(folder):
        return folder
    entries = {path.name: stat for path, stat in folder.files() if wanted(path.name)}
    if not entries:
        raise UserError(f"{folder}: no such folder, or none of its files is of use")
    return _fetched(folder, entries)


def fetched_file(path: AnyPath) -> pathlib.Path:
    """A local copy of an object, as `fetched`; a local file as it is."""
    return _fetched(path.parent, {path.name: path.stat()}) / path.name if is_remote(path) else path


def _fetched(folder: BucketPath, entries: dict[str, Stat]) -> pathlib.Path:
    state = json.dumps([str(folder), sorted((name, stat.st_size, stat.version) for name, stat in entries.items())])
    place = cache() / folder.scheme / folder.bucket / folder.key
    place = place.with_name(f"{place.name or 'bucket'}@{hashlib.sha256(state.encode()).hexdigest()[:12]}")
    if place.is_dir():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    size = sum(stat.st_size for stat in entries.values())
    if size > (free := shutil.disk_usage(place.parent).free):
        raise UserError(
            f"{folder}: {size:,} bytes are fetched into {cache()}, the disk has {free:,}; set VLM3_CACHE to another"
        )
    part = pathlib.Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    try:
        with ThreadPoolExecutor(_FILES) as pool:
            list(pool.map(lambda name: (folder / name).download(part / name), entries))
        # Another process may have been faster.
        with contextlib.suppress(OSError):
            part.rename(place)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    # Of a folder that changes, such as the export of a run, old copies go.
    copies = place.parent.glob(glob.escape(place.name.rpartition("@")[0]) + "@*")
    # Or another process removes them at this moment.
    with contextlib.suppress(OSError):
        for old in sorted(copies, key=lambda copy: copy.stat().st_mtime)[:-COPIES]:
            shutil.rmtree(old, ignore_errors=True)
    return place


def put_folder(local: pathlib.Path, target: BucketPath, last: str, without: str = "") -> None:
    """Puts up all files of a local folder, but the one named `without`, in place of what lies in `target`.

    The file named `last`, by which others know that the folder is complete, is removed first and put up last.
    """
    found = (path for path in sorted(local.rglob("*")) if path.is_file() and path.name != without)
    files = {path.relative_to(local).as_posix(): path for path in found}
    (target / last).unlink(missing_ok=True)
    with ThreadPoolExecutor(_FILES) as pool:
        list(pool.map(lambda name: (target / name).upload(files[name]), [name for name in files if name != last]))
    stale = [path for path, _ in target.walk() if path.relative_to(target) not in files]
    for path in stale:
        path.unlink(missing_ok=True)
    if last in files:
        (target / last).upload(files[last])


@functools.cache
def scratch(target: BucketPath) -> pathlib.Path:
    """A local path beside which what becomes `target` is written: the same for the same target, also after a kill."""
    digest = hashlib.sha256(str(target).encode()).hexdigest()[:12]
    folder = cache() / "writing"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{target.name}-{digest}"


def _state(path: pathlib.Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


class Workspace:
    """Files of a run that grow: written locally, put up as whole objects now and then.

    `folder`: where they are written, the workdir itself if that is local; nothing is put up then.
    """

    def __init__(self, workdir: AnyPath):
        self.workdir, self._put, self._fetched = workdir, {}, {}
        self._own = pathlib.Path(tempfile.mkdtemp(prefix="vlm3-")) if is_remote(workdir) else None
        self.folder = self._own or pathlib.Path(workdir)

    def fetch(self, pattern: str) -> None:
        """Fetches the files of a name (or pattern, as of `glob`) that are there and have not been written here."""
        for path in list(self.workdir.glob(pattern)) if self._own else ():
            local = self._own / path.relative_to(self.workdir)
            if local not in self._put or self._put[local] == self._fetched.get(local):
                path.download(local)
                self._put[local] = self._fetched[local] = _state(local)

    @contextlib.contextmanager
    def published(self, *names: str):
        """Around all writing: fetches what is there of the files `names`, which are gone on with, and puts up the last.

        Also where the block ends with an error; that of putting up is then only logged.
        """
        try:
            for name in names:
                self.fetch(name)
            yield self
        except BaseException as error:
            self.put_up_last(error)
            raise
        else:
            self.publish(final=True)
        finally:
            self.close()

    def publish(self, final: bool = False) -> str | None:
        """Puts up what has changed; what went wrong, in a line: it is tried again the next time.

        With `final` a StorageError is raised instead.
        """
        if not self._own:
            return None
        for path in sorted(self._own.rglob("*")):
            try:
                state = _state(path)
                if self._is_wanted(path) and self._put.get(path) != state:
                    (self.workdir / path.relative_to(self._own).as_posix()).upload(path)
                    self._put[path] = state
            except StorageError as error:
                if final:
                    raise
                return f"{error}; tried again at the next save"
        return None

    def put_up_last(self, error: BaseException) -> None:
        """Before a run ends with an error: puts up what it has told; the error names the bucket, not the copy here."""
        if not self._own:
            return
        if problem := self.publish():
            _log.warning("%s", problem)
        if isinstance(error, UserError) and error.args and isinstance(error.args[0], str):
            error.args = (error.args[0].replace(str(self._own), str(self.workdir)), *error.args[1:])

    def _is_wanted(self, path: pathlib.Path) -> bool:
        """Whether a file is to be put up: wandb has its own way of doing so."""
        parts = path.relative_to(self._own).parts
        return path.is_file() and not path.is_symlink() and parts[0] != "wandb" and not path.name.endswith(".part")

    def close(self) -> None:
        """Removes the local files, if they were copies."""
        if self._own:
            shutil.rmtree(self._own, ignore_errors=True)
