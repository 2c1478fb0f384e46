"""A path in a bucket, with the methods of pathlib.Path that this project uses."""

import contextlib
import fnmatch
import functools
import io
import posixpath
import re
import tempfile
import typing
from collections.abc import Iterator

from vlm3_jax.errors import UserError
from vlm3_jax.storage import buckets
from vlm3_jax.storage.buckets import Entry, Missing

# Read at once; larger objects are read in ranges or copied.
READ_LIMIT = 2**30
# What a file opened for reading asks for at a time.
BUFFER_BYTES = 4 * 2**20

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,221}")


class Stat(typing.NamedTuple):
    """What is used of os.stat: bytes, when it was written, and a text that changes with the object."""

    st_size: int
    st_mtime_ns: int
    version: str


@functools.total_ordering
class BucketPath:
    """`scheme`://`bucket`/`key`; an object, or the folder of all objects whose keys begin with `key`/.

    Objects appear whole or not at all; there are no folders to make, and none without an object in it. All methods
    that look at the bucket raise a StorageError, which is a UserError and an OSError, if it does not answer as it
    should: `Missing`, a FileNotFoundError, if there is no such object, others after minutes of trying again.
    """

    __slots__ = ("bucket", "key", "scheme")

    def __init__(self, scheme: str, bucket: str, key: str = ""):
        self.scheme, self.bucket, self.key = scheme, bucket, key

    @classmethod
    def parse(cls, text: str) -> "BucketPath":
        """The path of an URL; UserError if it is none, or leads out of the bucket."""
        scheme, colon, rest = text.partition("://")
        bucket, _, key = rest.partition("/")
        if not colon or not _BUCKET.fullmatch(bucket):
            raise UserError(f"{text}: write {scheme.partition(':')[0]}://BUCKET/NAME")
        return cls(scheme, bucket, _joined("", key, text))

    # Names

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.key}".rstrip("/")

    def __repr__(self) -> str:
        return f"BucketPath({str(self)!r})"

    def __eq__(self, other) -> bool:
        return isinstance(other, BucketPath) and str(self) == str(other)

    def __lt__(self, other) -> bool:
        return (str(self).split("/")) < str(other).split("/") if isinstance(other, BucketPath) else NotImplemented

    def __hash__(self) -> int:
        return hash(str(self))

    def __truediv__(self, name) -> "BucketPath":
        """A path inside this one; UserError for a name that leads out of it."""
        return self._with(_joined(self.key, str(name), f"{self}/{name}"))

    def joinpath(self, *names) -> "BucketPath":
        """As several `/`."""
        return functools.reduce(BucketPath.__truediv__, names, self)

    def _with(self, key: str) -> "BucketPath":
        return BucketPath(self.scheme, self.bucket, key)

    @property
    def name(self) -> str:
        """The last part; of a bucket itself its name."""
        return posixpath.basename(self.key) or self.bucket

    @property
    def suffix(self) -> str:
        """The last part's ending, with the dot."""
        return posixpath.splitext(self.name)[1]

    @property
    def stem(self) -> str:
        """The last part without its ending."""
        return posixpath.splitext(self.name)[0]

    @property
    def parent(self) -> "BucketPath":
        """The folder; of a bucket itself the bucket."""
        return self._with(posixpath.dirname(self.key))

    @property
    def parents(self) -> list["BucketPath"]:
        """The folders it lies in, the nearest first, the bucket last."""
        parts = self.key.split("/") if self.key else []
        return [self._with("/".join(parts[:n])) for n in reversed(range(len(parts)))]

    def with_name(self, name: str) -> "BucketPath":
        """Another one in the same folder."""
        return self.parent / name

    def with_suffix(self, suffix: str) -> "BucketPath":
        """The same with another ending."""
        return self.parent / (self.stem + suffix)

    def relative_to(self, other) -> str:
        """The part of the name behind the folder `other`. ValueError if it does not lie there."""
        if not self.is_relative_to(other):
            raise ValueError(f"{self} is not in {other}")
        return self.key[len(other.key) :].lstrip("/")

    def is_relative_to(self, other) -> bool:
        """Whether it is `other`, or lies in it."""
        return self == other or other in self.parents

    def absolute(self) -> "BucketPath":
        """Itself."""
        return self

    resolve = absolute

    def as_posix(self) -> str:
        """The URL."""
        return str(self)

    # Looking

    @property
    def _store(self) -> "buckets.Bucket":
        return buckets.open_bucket(self.scheme, self.bucket)

    def exists(self) -> bool:
        """Whether there is such an object, or a folder with objects."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        """Whether there is such an object."""
        try:
            return bool(self.key) and self._store.head(self.key) is not None
        except Missing:
            return False

    def is_dir(self) -> bool:
        """Whether there is an object in such a folder."""
        return self._store.holds(self.key)

    def is_symlink(self) -> bool:
        """There are none."""
        return False

    def iterdir(self) -> Iterator["BucketPath"]:
        """What lies in the folder, by name. Missing if there is none."""
        folders, entries = self._store.children(self.key)
        found = sorted(self._with(key) for key in (*folders, *(entry.key for entry in entries)))
        if not found:
            raise Missing(str(self), "no such folder")
        yield from found

    def glob(self, pattern: str) -> Iterator["BucketPath"]:
        """Paths below this one whose parts match those of the pattern (*, ?, [...]), sorted; no **."""
        head, _, rest = pattern.partition("/")
        if "**" in pattern:
            raise ValueError(f"{pattern}: no ** in buckets; use rglob")
        folders, entries = self._store.children(self.key)
        names = sorted({key.rsplit("/", 1)[-1] for key in (*folders, *(entry.key for entry in entries))})
        for name in fnmatch.filter(names, head):
            if rest:
                yield from (self / name).glob(rest)
            else:
                yield self / name

    def rglob(self, pattern: str) -> Iterator["BucketPath"]:
        """All objects at any depth whose names match the pattern, sorted; folders are not among them."""
        return (path for path, _ in self.walk() if fnmatch.fnmatch(path.name, pattern))

    def walk(self) -> list[tuple["BucketPath", Stat]]:
        """All objects at any depth with what `stat` says of them, sorted; one call for a thousand."""
        return sorted((self._with(entry.key), _stat(entry)) for entry in self._store.walk(self.key))

    def files(self) -> list[tuple["BucketPath", Stat]]:
        """The objects that lie right in the folder, with what `stat` says of them, sorted."""
        return sorted((self._with(entry.key), _stat(entry)) for entry in self._store.children(self.key)[1])

    def stat(self) -> Stat:
        """Size and version of an object."""
        return _stat(self._store.head(self.key))

    # Reading

    def read_bytes(self, limit: int = READ_LIMIT) -> bytes:
        """The whole object; BadRecord if it has more bytes than `limit`."""
        return self._store.read(self.key, limit)

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """The whole object as text."""
        return io.TextIOWrapper(io.BytesIO(self.read_bytes()), encoding, errors).read()

    def read_range(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of an object; StorageError if it has not so many."""
        return self._store.read_range(self.key, start, stop)

    @contextlib.contextmanager
    def open(self, mode: str = "r", encoding: str = "utf-8", errors: str | None = None, newline: str | None = None):
        """A file object. Opened for reading it asks for ranges; for writing ("w", "wb") it is put up at the end.

        Written is nothing if the block ends with an error. There is no appending to an object.
        """
        if mode not in ("r", "rb", "w", "wb"):
            raise ValueError(f"{self}: an object cannot be opened with mode {mode!r}")
        text = {} if "b" in mode else {"encoding": encoding, "errors": errors, "newline": newline}
        if mode[0] == "r":
            raw = self.reader()
            with io.TextIOWrapper(raw, **text) if text else raw as file:
                yield file
            return
        with tempfile.TemporaryFile("w+b") as spool:
            file = io.TextIOWrapper(spool, **text) if text else spool
            yield file
            file.flush()
            spool.seek(0)
            self._store.put(self.key, spool)

    def read_end(self, size: int) -> tuple[bytes, int]:
        """The last `size` bytes of an object (all of a smaller one), and how many it has; one request."""
        data, entry = self._store.read_end(self.key, size)
        return data, entry.size

    def reader(self) -> io.BufferedReader:
        """An object as an open file, which asks for ranges."""
        return io.BufferedReader(_Ranges(self), BUFFER_BYTES)

    # Writing

    def write_bytes(self, data) -> int:
        """Puts up a whole object in place of what was there."""
        self._store.put(self.key, bytes(data))
        return len(data)

    def write_text(self, text: str, encoding: str = "utf-8", errors: str = "strict") -> int:
        """Puts up a text."""
        return self.write_bytes(text.encode(encoding, errors))

    def create(self, data: bytes) -> str | None:
        """Makes an object if there is none of that name; its version, None if there is one."""
        return self._store.create(self.key, data)

    def update(self, data: bytes, version: str) -> str | None:
        """Replaces this version of an object; the new version, None if it has been replaced or removed since."""
        return self._store.update(self.key, data, version)

    def versioned(self) -> tuple[bytes, str] | None:
        """Content and version, as `update` takes it, of a small object; None if there is none."""
        return self._store.versioned(self.key)

    def upload(self, local) -> None:
        """Puts up a local file as this object."""
        with open(local, "rb") as file:
            self._store.put(self.key, file)

    def download(self, local) -> None:
        """Copies an object to a local file, which is there only when it is whole."""
        self._store.download(self.key, local)

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes an object."""
        if not missing_ok:
            self.stat()
        self._store.delete([self.key])

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: a folder is there with its first object."""

    def rmtree(self, first: str = "") -> None:
        """Removes all objects in a folder; those named `first` before all others, so that no half looks complete."""
        keys = [entry.key for entry in self._store.walk(self.key)]
        marks = [key for key in keys if first and posixpath.basename(key) == first]
        for part in (marks, [key for key in keys if key not in set(marks)]):
            self._store.delete(part)

    def rename(self, target: "BucketPath") -> "BucketPath":
        """Copies an object, or all in a folder, to `target` in the same bucket, then removes it; not atomic."""
        if (target.scheme, target.bucket) != (self.scheme, self.bucket):
            raise ValueError(f"{self} cannot be renamed to {target}: another bucket")
        if self.is_file():
            moves = {self.key: target.key}
        else:
            moves = {e.key: target.key + e.key[len(self.key) :] for e in self._store.walk(self.key)}
        if not moves:
            raise Missing(str(self), "no such object")
        for old, new in moves.items():
            self._store.copy(old, new)
        self._store.delete(list(moves))
        return target


class _Ranges(io.RawIOBase):
    """An object as a file: every read asks for a range."""

    def __init__(self, path: BucketPath):
        self._path, self._at = path, 0
        self._size = path.stat().st_size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def readinto(self, buffer) -> int:
        stop = min(self._at + len(buffer), self._size)
        if stop <= self._at:
            return 0
        data = self._path.read_range(self._at, stop)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _stat(entry: Entry) -> Stat:
    return Stat(entry.size, entry.mtime_ns, entry.version)


def _joined(folder: str, name: str, shown: str) -> str:
    """A key inside `folder`, parts that say nothing left out; UserError if it leads out of it."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in name or "\n" in name:
        raise UserError(f"{shown}: leads out of its folder, or is no name")
    return "/".join(filter(None, [folder, *parts]))
