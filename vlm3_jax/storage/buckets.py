"""Buckets of Google Cloud Storage and S3: whole objects, ranges, lists; every call tried again while that may help.

Stands on obstore (Rust's object_store), which finds credentials by itself: those of the machine or pod, Google's
application default credentials, AWS's environment variables and files. For other servers than the clouds' own:
STORAGE_EMULATOR_HOST=http://HOST:PORT (gs://), AWS_ENDPOINT_URL=http://HOST:PORT (s3://).
"""

import configparser
import contextlib
import errno
import functools
import itertools
import logging
import os
import pathlib
import random
import re
import time
import typing
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from vlm3_jax.errors import Again, BadRecord, UserError
from vlm3_jax.storage.emulator import Emulator

SCHEMES = ("gs", "s3")
# How long a bucket that fails is asked again, to be read less long than data.worker_timeout_s; and how long between.
PATIENCE_S, READ_PATIENCE_S = 180.0, 90.0
# So often at least: a machine that stood still has waited without asking.
FEWEST_TRIES = 4
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 20.0
# A connection that gives nothing for so long is dead; and the longest that a request may take.
STALLED_S, REQUEST_S = 25, 300
# Larger objects are sent in parts, and fetched in parts, several at a time.
PART_BYTES, PARTS = 16 * 2**20, 8

_NO_BUCKET = re.compile(r"NoSuchBucket|bucket does not exist|no bucket named", re.I)
# What the libraries say of a request that was wrong in itself: it will not be right a moment later.
_WRONG = re.compile(r"\b(400|401|403|404|405|409|411|412|416)\b|InvalidBucketName|AccessDenied|301 Moved")

_log = logging.getLogger(__name__)
_T = typing.TypeVar("_T")


class StorageError(OSError, UserError):
    """A bucket does not do what it is asked to; one line, with the URL."""

    number = errno.EIO

    def __init__(self, url: str, why: str):
        super().__init__(self.number, why, url)
        self.url, self.why = url, why

    def __str__(self) -> str:
        return f"{self.url}: {self.why}"

    def __reduce__(self):
        return type(self), (self.url, self.why)


class Missing(StorageError, FileNotFoundError):
    """There is no such object or folder."""

    number = errno.ENOENT


class Refused(StorageError, PermissionError):
    """The bucket is not there, or whoever asks may not do that."""

    number = errno.EACCES


class Failing(StorageError, Again):
    """The store failed for minutes; the same command may succeed later."""


class Entry(typing.NamedTuple):
    """An object: its key, bytes, time of writing and a text that is another for each content."""

    key: str
    size: int
    mtime_ns: int
    version: str


class Bucket:
    """The objects of one bucket. Its methods may be called from several threads; all raise StorageError."""

    def __init__(self, scheme: str, name: str, endpoint: str):
        import obstore

        self._api, self.url = obstore, f"{scheme}://{name}"
        self._store = (_gcs if scheme == "gs" else _s3)(name, endpoint)
        self._emulator = Emulator(endpoint, name, obstore.exceptions) if scheme == "gs" and endpoint else None

    def head(self, key: str) -> Entry:
        """Size and version. Missing if there is no such object."""
        return _entry(self._steadily(key, lambda: self._api.head(self._store, key)))

    def read(self, key: str, limit: int) -> bytes:
        """A whole object; BadRecord if it has more than `limit` bytes."""

        def read():
            found = self._api.get(self._store, key)
            if found.meta["size"] > limit:
                raise BadRecord(f"{self.url}/{key}: {found.meta['size']:,} bytes, at most {limit:,} are read")
            return _whole(found.bytes().to_bytes(), found.meta["size"])

        return self._steadily(key, read, READ_PATIENCE_S)

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop)."""
        if start == stop:
            return b""

        def read():
            return _whole(self._api.get_range(self._store, key, start=start, end=stop).to_bytes(), stop - start)

        return self._steadily(key, read, READ_PATIENCE_S)

    def read_end(self, key: str, size: int) -> tuple[bytes, Entry]:
        """The last `size` bytes of an object (all of one that has fewer), and what it is."""

        def read():
            found = self._api.get(self._store, key, options={"range": {"suffix": size}})
            return _whole(found.bytes().to_bytes(), min(size, found.meta["size"])), _entry(found.meta)

        return self._steadily(key, read, READ_PATIENCE_S)

    def download(self, key: str, local) -> None:
        """Into a local file, which is there only when it is whole."""
        local = pathlib.Path(local)
        entry, part = self.head(key), local.with_name(local.name + ".part")
        local.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file, ThreadPoolExecutor(PARTS) as pool:

            def fetch(start):
                stop = min(start + PART_BYTES, entry.size)
                os.pwrite(file.fileno(), self.read_range(key, start, stop), start)

            list(pool.map(fetch, range(0, entry.size, PART_BYTES)))
        if self.head(key).version != entry.version:
            raise Failing(f"{self.url}/{key}", "was replaced while it was read; run the same command again")
        part.rename(local)

    def put(self, key: str, data) -> None:
        """Puts up bytes, or an open binary file from its start, as a whole object."""
        size = len(data) if isinstance(data, bytes) else os.fstat(data.fileno()).st_size

        def put():
            if not isinstance(data, bytes):
                data.seek(0)
            if self._emulator:
                return self._emulator.put(key, data)
            body = data if isinstance(data, bytes) or size > PART_BYTES else data.read()
            several = size > PART_BYTES
            return self._api.put(self._store, key, body, use_multipart=several, chunk_size=PART_BYTES)

        self._written(key, put)

    def create(self, key: str, data: bytes) -> str | None:
        """Makes an object if there is none; its version, None if there is one."""
        return self._conditional(key, data, "create")

    def update(self, key: str, data: bytes, version: str) -> str | None:
        """Replaces one version of an object; the new version, None if it has changed since."""
        tag, _, generation = version.partition(" ")
        mode = {"e_tag": tag, "version": generation}
        return self._conditional(key, data, {name: value for name, value in mode.items() if value})

    def _conditional(self, key: str, data: bytes, mode) -> str | None:
        def put():
            try:
                if self._emulator:
                    return self._emulator.put(key, data, mode)
                return self._api.put(self._store, key, data, mode=mode)
            except (self._api.exceptions.AlreadyExistsError, self._api.exceptions.PreconditionError):
                return None

        done = self._written(key, put)
        return done and _version(done)

    def _written(self, key: str, put: Callable[[], _T]) -> _T:
        try:
            return self._steadily(key, put)
        except Missing:
            # What is written need not be there, so it is the bucket.
            raise _no_bucket(self.url) from None

    def versioned(self, key: str) -> tuple[bytes, str] | None:
        """Content and version of a small object, None if there is none."""

        def read():
            found = self._api.get(self._store, key)
            return found.bytes().to_bytes(), _version(found.meta)

        try:
            return self._steadily(key, read)
        except Missing:
            return None

    def copy(self, key: str, target: str) -> None:
        """Copies an object inside the bucket, without fetching it."""
        copy = self._emulator.copy if self._emulator else functools.partial(self._api.copy, self._store)
        self._steadily(key, lambda: copy(key, target))

    def delete(self, keys: Sequence[str]) -> None:
        """Removes objects; those that are not there are removed already."""

        def delete(key):
            with contextlib.suppress(Missing):
                self._steadily(key, lambda: self._api.delete(self._store, key))

        with ThreadPoolExecutor(PARTS) as pool:
            list(pool.map(delete, keys))

    def holds(self, folder: str) -> bool:
        """Whether there is an object in a folder."""

        def first():
            for part in self._api.list(self._store, folder or None, chunk_size=10):
                if any(entry["path"] != folder for entry in part):
                    return True
            return False

        return self._steadily(folder, first)

    def walk(self, folder: str) -> Iterator[Entry]:
        """All objects in a folder and below."""
        found = self._steadily(folder, lambda: self._api.list(self._store, folder or None, chunk_size=1000).collect())
        return (_entry(meta) for meta in found if meta["path"] != folder)

    def children(self, folder: str) -> tuple[list[str], list[Entry]]:
        """Keys of the folders, and the objects, that lie right in a folder."""
        found = self._steadily(folder, lambda: self._api.list_with_delimiter(self._store, folder or None))
        return list(found["common_prefixes"]), [_entry(meta) for meta in found["objects"] if meta["path"] != folder]

    def _steadily(self, key: str, call: Callable[[], _T], patience: float | None = None) -> _T:
        """`call()`, again and again while it fails in a way that may pass; says so once."""
        url, errors = f"{self.url}/{key}".rstrip("/"), self._api.exceptions
        patience = PATIENCE_S if patience is None else patience
        end, pause = time.monotonic() + patience, FIRST_PAUSE_S
        for tries in itertools.count(1):
            try:
                return call()
            except UserError:
                raise
            except (errors.BaseError, OSError, ValueError) as error:
                why = _reason(error)
                if problem := self._final(url, key, why, error):
                    raise problem from None
                if tries >= FEWEST_TRIES and time.monotonic() + pause > end:
                    raise Failing(url, f"failed for {patience:g} s, the last time with: {why}") from None
            if pause == FIRST_PAUSE_S:
                _log.warning("%s: %s; trying again for up to %g s", url, why, patience)
            # Not all hosts at the same moment.
            time.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _final(self, url: str, key: str, why: str, error: Exception) -> StorageError | None:
        """What to raise for an error that will be there the next time too; None if it may pass."""
        errors, missing = self._api.exceptions, isinstance(error, FileNotFoundError)
        if _NO_BUCKET.search(str(error)) or (missing and not key):
            return _no_bucket(self.url)
        if missing:
            return Missing(url, "no such object")
        if isinstance(error, errors.PermissionDeniedError | errors.UnauthenticatedError):
            return Refused(url, f"permission denied ({why}); see docs/storage.md for credentials")
        return Refused(url, why) if isinstance(error, ValueError) or _WRONG.search(why) else None


def _no_bucket(url: str) -> Refused:
    return Refused(url, "no such bucket; make it, or mend the name")


class Short(OSError):
    """Fewer bytes came than were asked for."""


def _whole(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise Short(errno.EIO, f"{len(data):,} of {size:,} bytes came")
    return data


def _entry(meta) -> Entry:
    key = meta["path"]
    if ".." in key.split("/"):
        raise Refused(key, "a name that leads out of its folder")
    return Entry(key, meta["size"], int(meta["last_modified"].timestamp() * 1e9), _version(meta))


def _version(meta) -> str:
    return f"{meta['e_tag'] or ''} {meta['version'] or ''}".strip()


def _reason(error: Exception) -> str:
    """One short line of what Rust prints over several."""
    text = " ".join(str(error).split())
    if found := re.search(r"<Message>(.*?)</Message>", text):
        status = re.search(r"\b[45]\d\d\b", text)
        return f"{status[0]} {found[1]}" if status else found[1]
    for pattern in (r"status: (\d{3})", r"Server returned [\w-]+ status code: (\d{3}[\w ]*)", r"(\d{3} [A-Z][\w ]+)"):
        if found := re.search(pattern, text):
            return found[1]
    return text.split(" Debug source:")[0][:200]


def open_bucket(scheme: str, name: str) -> Bucket:
    """The bucket, opened once a process."""
    return _open(scheme, name, endpoint(scheme))


_open = functools.lru_cache(maxsize=64)(Bucket)


def endpoint(scheme: str) -> str:
    """The server that is asked instead of the cloud's own; "" for that."""
    names = ("STORAGE_EMULATOR_HOST",) if scheme == "gs" else ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    found = next(filter(None, map(os.environ.get, names)), "").rstrip("/")
    return found if not found or "://" in found else f"http://{found}"


def _client(endpoint: str) -> dict:
    seconds = {"timeout": f"{REQUEST_S} s", "read_timeout": f"{1000 * STALLED_S:.0f} ms", "connect_timeout": "10 s"}
    return seconds | {"allow_http": endpoint.startswith("http://"), "pool_idle_timeout": "60 s"}


# The library tries again without a word: short, since we do so too, and say it.
_RETRY = {"max_retries": 1}


def _gcs(name: str, endpoint: str):
    from obstore.store import GCSStore

    there = {"base_url": endpoint, "bearer_token": "none"} if endpoint else {}
    return GCSStore(name, client_options=_client(endpoint), retry_config=_RETRY, **there)


def _s3(name: str, endpoint: str):
    from obstore.store import S3Store

    config = aws_settings() | ({"endpoint": endpoint} if endpoint else {})
    config.setdefault("region", "us-east-1" if endpoint else _region(name))
    return S3Store(name, client_options=_client(endpoint), retry_config=_RETRY, **config)


def aws_settings() -> dict[str, str]:
    """Keys and region of AWS's files, for the profile in use, as far as the environment does not name them."""
    env, profile = os.environ, os.environ.get("AWS_PROFILE", "default")
    folder, found = pathlib.Path("~/.aws").expanduser(), {}
    region = env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION")
    keys = configparser.RawConfigParser()
    keys.read(
        [env.get("AWS_CONFIG_FILE", folder / "config"), env.get("AWS_SHARED_CREDENTIALS_FILE", folder / "credentials")]
    )
    section = {
        name: value
        for part in (f"profile {profile}", profile)
        if keys.has_section(part)
        for name, value in keys[part].items()
    }
    if "AWS_ACCESS_KEY_ID" not in env and "aws_secret_access_key" in section:
        names = {
            "aws_access_key_id": "access_key_id",
            "aws_secret_access_key": "secret_access_key",
            "aws_session_token": "session_token",
        }
        found = {own: section[name] for name, own in names.items() if name in section}
    if region := region or section.get("region"):
        found["region"] = region
    return found


def _region(name: str) -> str:
    """Where a bucket lies, which S3 tells everybody."""
    request = urllib.request.Request(f"https://s3.amazonaws.com/{name}", method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            headers = answer.headers
    except urllib.error.HTTPError as error:
        # Whoever may not look is told all the same.
        error.close()
        headers = error.headers
    except OSError:
        headers = {}
    return headers.get("x-amz-bucket-region", "us-east-1")
