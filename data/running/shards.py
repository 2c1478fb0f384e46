"""One shard: a function of its job alone, written aside and renamed, with a record of completion beside it."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator

from array_record.python.array_record_module import ArrayRecordWriter

from vlm3_jax.builders.common import Builder, Item, Skip
from vlm3_jax.builders.running.envelope import wrap
from vlm3_jax.builders.running.plan import Job
from vlm3_jax.builders.running.prepare import prepare
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.files import write_text, writing
from vlm3_jax.records import Removed
from vlm3_jax.storage import is_remote, patiently

# Images and depth maps are compressed already.
WRITER = "group_size:1,uncompressed"
# Lines about labels that a shard's records do without; of more it is said how many.
MOST_LABELS = 20
# Of a reason: some libraries put a whole file into theirs.
MAX_REASON = 500


@dataclasses.dataclass(frozen=True)
class Rejected:
    """An item that gave no record: `kind` is "skipped" (the set's own word) or "failed".

    "label": it gave one without that `label`.
    """

    key: str
    scene: str
    kind: str
    reason: str
    label: str = ""

    def row(self) -> dict[str, str]:
        """As the file of rejected items has it."""
        found = dataclasses.asdict(self)
        return found if self.label else {name: value for name, value in found.items() if name != "label"}


def write_shard(job: Job, tick: Callable[[], None] = lambda: None) -> dict:
    """Writes a shard, unless it is there and nothing failed in it; returns what its record of completion holds.

    `tick()` is called after every item. UserError if it is not the data that are wrong (a module is missing).
    """
    if (done := completion(job)) is not None and not done["failed"]:
        return done
    with _aside(job) as tmp:
        found = _write(job, tmp, tick)
        with writing(job.shard):
            if is_remote(job.shard):
                job.shard.upload(tmp)
            else:
                os.replace(tmp, job.shard)
    with writing(job.completion):
        write_text(job.completion, json.dumps(found) + "\n")
    return found


@contextlib.contextmanager
def _aside(job: Job) -> Iterator[pathlib.Path]:
    """Where a shard is written first: beside its record of completion; for a bucket in a temporary folder."""
    if is_remote(job.shard):
        with tempfile.TemporaryDirectory(prefix="vlm3-build-") as folder:
            yield pathlib.Path(folder) / job.shard.name
        return
    job.completion.parent.mkdir(parents=True, exist_ok=True)
    tmp = job.completion.with_suffix(f".{os.getpid()}.part")
    try:
        yield tmp
    finally:
        tmp.unlink(missing_ok=True)


def completion(job: Job) -> dict | None:
    """The record of completion of a shard that is there; None if the shard is missing, another one or not whole."""
    try:
        found = json.loads(job.completion.read_text(encoding="utf-8"))
        whole = found["identity"] == job.identity and found["bytes"] == job.shard.stat().st_size
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if whole else None


def unchanged(job: Job, done: dict) -> bool:
    """Whether a shard that is there still has the sha256 that its record of completion says; not read in a bucket."""
    return is_remote(job.shard) or sha256(job.shard) == done.get("sha256")


def _write(job: Job, path: pathlib.Path, tick: Callable[[], None]) -> dict:
    builder = job.build.builder()
    with writing(path):
        writer = ArrayRecordWriter(str(path), WRITER)
    written = images = labels_removed = record_bytes = 0
    rejected: list[Rejected] = []
    left_out: list[Rejected] = []
    untold = 0
    try:
        for item in job.items:
            found = read(builder, job, item)
            if isinstance(found, Rejected):
                rejected.append(found)
            else:
                data, views, removed = found
                with writing(path):
                    writer.write(wrapped := wrap(data))
                written, images = written + 1, images + views
                labels_removed += sum(one.count for one in removed)
                if removed and len(left_out) < MOST_LABELS:
                    left_out += [Rejected(item.key, item.scene, "label", one.reason, one.label) for one in removed]
                elif removed:
                    untold += 1
                record_bytes += len(wrapped)
            tick()
    finally:
        with writing(path):
            writer.close()
    if untold:
        left_out.append(Rejected("", "", "label", "unusable", f"labels of {untold:,} more items of this shard"))
    return {
        "identity": job.identity,
        "number": job.number,
        "items": len(job.items),
        "written": written,
        **{kind: sum(one.kind == kind for one in rejected) for kind in ("skipped", "failed")},
        "images": images,
        "labels_removed": labels_removed,
        "record_bytes": record_bytes,
        "bytes": path.stat().st_size,
        "sha256": sha256(path),
        "rejected": [one.row() for one in [*rejected, *left_out]],
    }


def read(builder: Builder, job: Job, item: Item) -> tuple[bytes, int, tuple[Removed, ...]] | Rejected:
    """(bytes, images, labels left out) of an item's record, or why there is none.

    A builder that fails in its own way on a damaged file costs that one record; one that fails on every file does so
    too, and ends the build as soon as they are too many.
    """

    def rejected(kind: str, reason: str) -> Rejected:
        # Where the raw folder is says nothing about the data.
        reason = " ".join(reason.replace(f"{job.build.raw}/", "").split())
        return Rejected(item.key, item.scene, kind, reason[:MAX_REASON])

    try:
        record = patiently(lambda: builder.record(job.build.raw, item), item.key)
        data, removed = prepare(record, item, job.build.images)
        return data, len(record.views), removed
    except Skip as skip:
        return rejected("skipped", skip.reason)
    except BadRecord as error:
        return rejected("failed", str(error))
    except (UserError, MemoryError):
        raise
    except Exception as error:
        return rejected("failed", f"{type(error).__name__}: {error}")


def sha256(path: pathlib.Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
