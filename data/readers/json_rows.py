"""Large JSON lists read one element at a time, so that a table of gigabytes needs no more memory than its rows."""

import json
import pathlib
from collections.abc import Iterator

from vlm3_jax.errors import UserError

CHUNK = 1 << 22
# No row of a table is longer; without a bound a damaged file would be read into memory whole.
MAX_ROW = 1 << 26


def rows(path: pathlib.Path) -> Iterator[dict]:
    """The objects of a JSON list, in order. UserError if the file is missing or is no such list."""
    decoder, text, at, begun, ended = json.JSONDecoder(), "", 0, False, False
    try:
        file = path.open(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    with file:
        while True:
            text = text[at:].lstrip(" \t\r\n" + ("," if begun else ""))
            at = 0
            if not begun and text:
                if text[0] != "[":
                    raise UserError(f"{path}: expected a JSON list")
                begun, text = True, text[1:].lstrip()
            if begun and text.startswith("]"):
                return
            try:
                row, at = decoder.raw_decode(text) if text else (None, 0)
            except ValueError as error:
                if ended or len(text) > MAX_ROW:
                    raise UserError(f"{path}: not JSON ({error})") from None
                row = None
            # A number or word at the end of a chunk might go on; objects end where they end.
            if isinstance(row, dict):
                yield row
                continue
            if row is not None:
                raise UserError(f"{path}: expected a list of objects, got {str(row)[:40]!r} in it")
            more = file.read(CHUNK)
            if not more and ended:
                raise UserError(f"{path}: the JSON list has no end; the file is cut off")
            ended, text = not more, text + more
