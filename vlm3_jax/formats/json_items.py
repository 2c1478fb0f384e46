"""The items of a large JSON list or jsonl file, found in one pass without parsing them or keeping them in memory."""

import array
import codecs
import json
import re
from collections.abc import Iterator

import numpy as np

from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.storage import AnyPath
from vlm3_jax.storage.folders import fetched_file

MAX_ITEM_BYTES = 16 * 2**20
CHUNK_BYTES = 4 * 2**20
# Where a text begins, and brackets. What lies between is of no interest.
_MARK = re.compile(rb'["\[\]{}]')
_OPENING = (b"[", b"{")
# What may lie between two items.
_BETWEEN = b" \t\r\n,"


def item_spans(path: AnyPath) -> np.ndarray:
    """(offset, length) int64 [N, 2] of the items of a JSON list, or of the lines of a jsonl file that are not empty.

    UserError if the file is neither, or an item is longer than 16 MiB.
    """
    spans = array.array("q")
    for offset, item in _items(path):
        spans.extend((offset, len(item)))
    if not spans:
        raise UserError(f"{path}: there are no items in it")
    return np.array(spans, np.int64).reshape(-1, 2)


def rows(path: AnyPath) -> Iterator[dict]:
    """The objects of a JSON list (or the lines of a jsonl file) in order, each parsed when it is asked for.

    UserError if the file is missing or neither.
    """
    for offset, item in _items(path):
        try:
            yield parsed(item)
        except BadRecord as error:
            raise UserError(f"{path}: the item at byte {offset} is {error}") from None


def parsed(item: bytes):
    """An item's JSON; BadRecord if it is none."""
    try:
        return json.loads(item.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"not JSON ({str(error).splitlines()[0]})") from None


def _items(path: AnyPath) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of each item; a file in a bucket is fetched."""
    try:
        file = fetched_file(path).open("rb")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    with file:
        start = len(codecs.BOM_UTF8) if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8 else 0
        file.seek(start)
        first = b""
        while not first.strip() and (block := file.read(CHUNK_BYTES)):
            start, first = start + len(block) - len(block.lstrip()), block.lstrip()
        file.seek(start)
        if first[:1] not in (b"[", b"{"):
            raise UserError(f"{path}: expected a JSON list, or a JSON object a line")
        yield from _elements(path, file, start) if first[:1] == b"[" else _lines(path, file, start)


def _lines(path: AnyPath, file, offset: int) -> Iterator[tuple[int, bytes]]:
    for line in iter(lambda: file.readline(MAX_ITEM_BYTES + 1), b""):
        if len(line) > MAX_ITEM_BYTES:
            raise _too_long(path, offset)
        if line.strip():
            yield offset, line
        offset += len(line)


def _elements(path: AnyPath, file, offset: int) -> Iterator[tuple[int, bytes]]:
    """The objects of a list; `depth` counts brackets, the list's own among them."""
    data, depth, start, place = b"", 0, -1, 0
    while chunk := file.read(CHUNK_BYTES):
        data += chunk
        last = len(data)
        while found := _MARK.search(data, place):
            here, mark = found.start(), found[0]
            if depth < 2 and (mark == b'"' or data[place:here].strip(_BETWEEN)):
                raise UserError(f"{path}: byte {offset + place}: expected a list of JSON objects")
            place = here + 1
            if mark == b'"':
                place = _text_end(data, here)
                if place < 0:
                    last = here
                    break
            elif mark in _OPENING:
                depth += 1
                if depth == 2:
                    start = here
            else:
                depth -= 1
                if depth == 1:
                    if place - start > MAX_ITEM_BYTES:
                        raise _too_long(path, offset + start)
                    yield offset + start, data[start:place]
                    start = -1
                elif depth == 0:
                    return
        if depth == 1 and data[place:].strip(_BETWEEN):
            raise UserError(f"{path}: byte {offset + place}: expected a list of JSON objects")
        # What was read is kept from the item on that is not complete.
        keep = start if start >= 0 else last
        if len(data) - keep > MAX_ITEM_BYTES + CHUNK_BYTES:
            raise _too_long(path, offset + keep)
        data, offset, place = data[keep:], offset + keep, last - keep
        start = 0 if start >= 0 else -1
    raise UserError(f"{path}: the list is cut off before its end")


def _text_end(data: bytes, start: int) -> int:
    """Behind the quote that ends the text whose first is at `start`; -1 if it is not there yet."""
    end = start
    while (end := data.find(b'"', end + 1)) >= 0:
        before = end - 1
        while data[before] == 0x5C:
            before -= 1
        # Of an even number of backslashes none takes the quote.
        if (end - before) % 2:
            return end + 1
    return -1


def _too_long(path: AnyPath, offset: int) -> UserError:
    return UserError(f"{path}: the item at byte {offset} is longer than {MAX_ITEM_BYTES} bytes")
