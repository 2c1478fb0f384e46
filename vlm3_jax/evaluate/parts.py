"""Answers as they come: every process appends to a file of its own, and whoever reads takes all of them together.

`OUT/parts/DIGEST/PROCESS.jsonl` holds a row an answer with its `place` (variant, record and question by number), its
`key`, a hash of what was asked, and its `turn`: where a place has several rows, that of the highest turn holds. A kill
leaves whole rows and perhaps a torn last one, which is passed over; nothing else has to be kept for the same command to
go on, by as many processes as there are then.
"""

import fcntl
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from vlm3_jax.errors import UserError
from vlm3_jax.evaluate.items import Questions
from vlm3_jax.files import naming
from vlm3_jax.processor.image import ImageLayout

FOLDER = "parts"
# So often what has grown goes into a bucket, if that is where it lies.
PUT_UP_S = 60.0


class Parts:
    """The rows in one folder of answers, of which this process appends to one file.

    `put_up` is called now and then while it grows. UserError if another program appends to it.
    """

    def __init__(self, folder: pathlib.Path, process: int = 0, put_up: Callable[[], Any] = lambda: None):
        self._put_up, self._last = put_up, time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        path = folder / f"{process:05d}.jsonl"
        self._file = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise UserError(f"{path}: another vlm3 eval is writing here; wait for it, or give another --out") from None
        _cut_torn_row(self._file)

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Writes rows at once, so that a kill loses at most those that are being answered."""
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        with naming(self._file.name):
            self._file.write(text.encode(errors="backslashreplace"))
            self._file.flush()
            os.fsync(self._file.fileno())
        if time.monotonic() - self._last > PUT_UP_S:
            self._put_up()
            self._last = time.monotonic()

    def close(self) -> None:
        """Lets others append."""
        with naming(self._file.name):
            self._file.close()

    def __enter__(self) -> "Parts":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def read_parts(folder: pathlib.Path) -> Iterator[dict[str, Any]]:
    """All whole rows, in the order of files and lines. UserError, with the line, for what is no row."""
    for path in sorted(folder.glob("*.jsonl")):
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                # The writer may be in the middle of it.
                if line.endswith(b"\n"):
                    yield _row(line, f"{path}, line {number}")


def keys(questions: Questions, images: tuple[ImageLayout, ...]) -> list[str]:
    """What identifies each question as it is asked: its words and the images shown, by their encoded bytes."""
    shown = hashlib.sha256()
    for layout in images:
        about = layout.size, layout.crop, layout.final, layout.grid, layout.flip, layout.blank
        about += () if layout.marker is None else (layout.marker,)
        shown.update(repr(about).encode() + (b"" if layout.blank else layout.ref.digest()))
    return [
        hashlib.sha256(shown.digest() + example.question.encode(errors="backslashreplace")).hexdigest()[:32]
        for example in questions.examples
    ]


def _row(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        _, _, _ = row["place"]
        _ = row["key"], row["turn"] + 1
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{where}: not an answer of vlm3 eval; delete the file to ask its questions again") from None
    return row


def _cut_torn_row(file) -> None:
    """A file that does not end with a line feed ends with what a kill has left of a row."""
    size = file.seek(0, os.SEEK_END)
    step, end = 1 << 16, size
    while end:
        start = max(0, end - step)
        file.seek(start)
        cut = file.read(end - start).rfind(b"\n")
        if cut >= 0:
            end = start + cut + 1
            break
        end = start
    if end < size:
        file.truncate(end)
    file.seek(0, os.SEEK_END)
