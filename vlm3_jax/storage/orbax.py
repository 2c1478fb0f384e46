"""What Orbax needs to read and write buckets without gcsfs, google-cloud-storage or TensorFlow.

Orbax writes arrays through tensorstore, which knows gs:// and s3:// by itself, and folders through etils.epath, which
asks fsspec for gs://: `Objects` answers there. Orbax knows gs:// only, so a path in S3 is given to it under the alias
gs://s3@BUCKET/... (no bucket's name has an @), which `kvstore` and `Objects` understand.
"""

import functools
import os
import tempfile

import fsspec
from etils import epath

from vlm3_jax.storage import AnyPath, BucketPath, buckets
from vlm3_jax.storage.buckets import aws_settings, endpoint

# By which Orbax knows a complete checkpoint in a bucket; checkpoint/locate.py looks for it too.
COMMITTED = "commit_success.txt"
_ALIAS = "s3@"
# tensorstore tries again by itself: 0.5, 1, 2, ... 20 s, about as long as we do.
RETRIES = {"max_retries": 12, "initial_delay": "500ms", "max_delay": "20s"}


def orbax_path(path: AnyPath) -> epath.Path:
    """The path under which Orbax finds it."""
    if not isinstance(path, BucketPath):
        return epath.Path(path)
    _prepare()
    alias = _ALIAS if path.scheme == "s3" else ""
    return epath.Path(f"gs://{alias}{path.bucket}/{path.key}")


def kvstore(path: AnyPath) -> dict:
    """tensorstore's description of a folder."""
    if not isinstance(path, BucketPath):
        return {"driver": "file", "path": f"{path}/"}
    _point_at_emulators()
    return _kvstore(path.scheme, path.bucket, f"{path.key}/")


def _kvstore(scheme: str, bucket: str, key: str) -> dict:
    if scheme == "gs":
        spec = {"driver": "gcs", "bucket": bucket, "path": key}
        return spec | {"context": {"gcs_request_retries": RETRIES}}
    settings, server = aws_settings(), endpoint("s3")
    spec = {"driver": "s3", "bucket": bucket, "path": key, "context": {"s3_request_retries": RETRIES}}
    if server:
        spec |= {"endpoint": server, "aws_region": settings.get("region", "us-east-1")}
    return spec


@functools.cache
def _prepare() -> None:
    """Once a process: epath and Orbax go through here."""
    from orbax.checkpoint._src.path import gcs_utils

    _point_at_emulators()
    # epath would take TensorFlow's file system where TensorFlow is installed.
    os.environ.setdefault("EPATH_USE_TF", "false")
    for name in ("gs", "gcs"):
        fsspec.register_implementation(name, Objects, clobber=True)
    plain = gcs_utils.get_kvstore_for_gcs

    def kvstore_for(text: str) -> dict:
        bucket, key = gcs_utils.parse_gcs_path(text, add_trailing_slash=False)
        if os.environ.get("TENSORSTORE_GCS_BACKEND", "gcs") != "gcs" and not bucket.startswith(_ALIAS):
            return plain(text)
        return _kvstore(*_resolved(bucket), key)

    gcs_utils.get_kvstore_for_gcs = kvstore_for
    # It would ask google-cloud-storage, which needs a right that those who only write objects lack.
    gcs_utils.is_hierarchical_namespace_enabled = lambda _: False


def _point_at_emulators() -> None:
    """The server in STORAGE_EMULATOR_HOST, under the names by which tensorstore and ArrayRecord look for it."""
    if server := endpoint("gs"):
        os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", server)
        os.environ.setdefault("CLOUD_STORAGE_EMULATOR_ENDPOINT", server)


def _resolved(bucket: str) -> tuple[str, str]:
    """Scheme and name of a bucket by its name or alias."""
    return ("s3", bucket.removeprefix(_ALIAS)) if bucket.startswith(_ALIAS) else ("gs", bucket)


class Objects(fsspec.AbstractFileSystem):
    """A file system for fsspec, and so for epath, over our own buckets."""

    protocol = ("gs", "gcs")
    cachable = True

    def __init__(self, **_):
        super().__init__(use_listings_cache=False, skip_instance_cache=False)

    def _path(self, path) -> BucketPath:
        bucket, _, key = self._strip_protocol(os.fspath(path)).partition("/")
        return BucketPath(*_resolved(bucket), key.rstrip("/"))

    @staticmethod
    def _name(path: BucketPath) -> str:
        alias = _ALIAS if path.scheme == "s3" else ""
        return f"{alias}{path.bucket}/{path.key}".rstrip("/")

    def info(self, path, **_):
        """Size and kind."""
        found = self._path(path)
        if found.is_dir():
            return {"name": self._name(found), "size": 0, "type": "directory"}
        return self._file(found, found.stat())

    def _file(self, path: BucketPath, stat) -> dict:
        return {"name": self._name(path), "size": stat.st_size, "type": "file", "mtime": stat.st_mtime_ns / 1e9}

    def ls(self, path, detail=True, **_):
        """What lies in a folder, which may have been "made" and is empty; an object itself."""
        found = self._path(path)
        folders, entries = buckets.open_bucket(found.scheme, found.bucket).children(found.key)
        listed = [{"name": self._name(found._with(key)), "size": 0, "type": "directory"} for key in folders]
        for entry in entries:
            path = found._with(entry.key)
            listed.append({"name": self._name(path), "size": entry.size, "type": "file", "mtime": entry.mtime_ns / 1e9})
        if not listed and found.is_file():
            listed = [self._file(found, found.stat())]
        return listed if detail else [entry["name"] for entry in listed]

    def exists(self, path, **_):
        """Whether there is an object or a folder."""
        return self._path(path).exists()

    def isdir(self, path):
        """Whether there is a folder."""
        return self._path(path).is_dir()

    def isfile(self, path):
        """Whether there is an object."""
        return self._path(path).is_file()

    def mkdir(self, path, create_parents=True, **_):
        """Nothing."""

    def makedirs(self, path, exist_ok=False):
        """Nothing."""

    def rmdir(self, path):
        """Nothing."""

    def rm(self, path, recursive=False, maxdepth=None):
        """Removes an object or all in a folder, the mark of a complete checkpoint first."""
        found = self._path(path)
        if recursive:
            found.rmtree(first=COMMITTED)
        if not recursive or found.is_file():
            found.unlink(missing_ok=recursive)

    def cp_file(self, path1, path2, **_):
        """Copies an object inside its bucket."""
        source = self._path(path1)
        buckets.open_bucket(source.scheme, source.bucket).copy(source.key, self._path(path2).key)

    def _rename(self, path1, path2):
        self._path(path1).rename(self._path(path2))

    def mv(self, path1, path2, recursive=False, maxdepth=None, **_):
        """Copies, then removes."""
        self._rename(path1, path2)

    def _open(self, path, mode="rb", **_):
        found = self._path(path)
        if mode == "rb":
            return found.reader()
        if mode == "wb":
            return _Upload(found)
        raise ValueError(f"{found}: an object cannot be opened with mode {mode!r}")


class _Upload(tempfile.SpooledTemporaryFile):
    """A file that becomes an object when it is closed, unless an error ends its block."""

    def __init__(self, path: BucketPath):
        super().__init__(max_size=2**24, mode="w+b")
        self._path = path

    def __exit__(self, kind, error, trace):
        if kind:
            super().close()
        else:
            self.close()

    def close(self):
        if not self.closed:
            self.seek(0)
            self._path.write_bytes(self.read())
        super().close()
