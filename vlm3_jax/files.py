"""Small JSON files read with clear errors; files and folders that appear whole or not at all."""

import contextlib
import json
import math
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

from vlm3_jax import storage
from vlm3_jax.errors import UserError

# The index of the largest released model has a tenth of it.
JSON_LIMIT = 100_000_000
# Beyond it a number is no size, id or count of anything here.
LARGEST = 2**31 - 1
_REQUIRED: Any = object()


def read_json(path) -> Any:
    """Parsed JSON of a small file; UserError names the file if it is missing or not JSON."""
    path = storage.path(path)
    try:
        if (size := path.stat().st_size) > JSON_LIMIT:
            raise UserError(f"{path}: {size:,} bytes, at most {JSON_LIMIT:,} are read")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; a model directory holds config.json, safetensors, tokenizer") from None
    except storage.StorageError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from None


class Fields:
    """A JSON object whose missing or mistyped fields raise a UserError that names file and field.

    Every method takes what stands in for a field that is missing; without it the field must be there. `null`: whether
    a field that is null counts as missing, as in the files in which transformers writes every setting.
    """

    def __init__(self, tree: Any, name: str, null: bool = False):
        if not isinstance(tree, dict):
            raise UserError(f"{name}: expected a JSON object, got {_shown(tree)}")
        self.tree, self.name, self.null = tree, name, null

    @classmethod
    def read(cls, path, null: bool = False) -> "Fields":
        """The object in a file."""
        return cls(read_json(path), str(path), null)

    def __contains__(self, key: str) -> bool:
        return key in self.tree and not (self.null and self.tree[key] is None)

    def child(self, key: str, default: dict = _REQUIRED) -> "Fields":
        """An object in this one."""
        value = self._value(key, default, lambda v: isinstance(v, dict), "a JSON object")
        return Fields(value, f"{self.name}: {key}", self.null)

    def text(self, key: str, default: str | None = _REQUIRED) -> str:
        """A string."""
        return self._value(key, default, lambda v: isinstance(v, str), "text")

    def flag(self, key: str, default: bool = _REQUIRED) -> bool:
        """True or false."""
        return self._value(key, default, lambda v: isinstance(v, bool), "true or false")

    def integer(self, key: str, minimum: int = 1, default: int | None = _REQUIRED, maximum: int = LARGEST) -> int:
        """A whole number from `minimum` to `maximum`."""
        what = f"a whole number of at least {minimum}"
        value = self._value(key, default, lambda v: _is_whole(v, minimum), what)
        if key in self and value > maximum:
            raise UserError(f"{self.name}: {key} is {_shown(value)}, but must be at most {maximum}")
        return value

    def integers(self, key: str, count: int | None = None, default=_REQUIRED, maximum: int = LARGEST) -> tuple:
        """A list of (`count`) whole numbers from 0 to `maximum`."""
        what = f"whole numbers from 0 to {maximum}"
        return self._list(key, count, default, what, lambda v: _is_whole(v, 0) and v <= maximum)

    def number(self, key: str, default: float | None = _REQUIRED, above: float = -math.inf) -> float:
        """A finite number above `above`."""
        what = "a number" if above == -math.inf else f"a number above {above:g}"
        return self._value(key, default, lambda v: _is_number(v) and v > above, what)

    def numbers(self, key: str, count: int | None = None, default=_REQUIRED, above: float = -math.inf) -> tuple:
        """A list of (`count`) finite numbers above `above`."""
        what = "numbers" if above == -math.inf else f"numbers above {above:g}"
        return self._list(key, count, default, what, lambda v: _is_number(v) and v > above)

    def texts(self, key: str, default=_REQUIRED) -> tuple:
        """A list of strings."""
        return self._list(key, None, default, "texts", lambda v: isinstance(v, str))

    def require(self, key: str, expected: Any, default: Any) -> None:
        """UserError unless the field, or its `default`, has the only value that is supported."""
        value = self.tree[key] if key in self else default
        if value != expected:
            raise UserError(f"{self.name}: {key} = {_shown(value)} is not supported, only {expected!r}")

    def _list(self, key, count, default, what, holds) -> tuple:
        def is_list(value):
            return isinstance(value, list) and count in (None, len(value)) and all(map(holds, value))

        value = self._value(key, default, is_list, f"a list of {'' if count is None else f'{count} '}{what}")
        return value if value is default else tuple(value)

    def _value(self, key, default, holds, what):
        if key not in self and default is not _REQUIRED:
            return default
        value = self.tree.get(key)
        if not holds(value):
            got = _shown(value) if key in self.tree else "nothing"
            raise UserError(f"{self.name}: {key} must be {what}, got {got}")
        return value


def _is_whole(value, minimum) -> bool:
    return type(value) is int and value >= minimum


def _is_number(value) -> bool:
    # An integer of thousands of digits has no float.
    return math.isfinite(value) if type(value) is float else type(value) is int and abs(value) < 2**1000


def _shown(value) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@contextlib.contextmanager
def writing(place) -> Iterator[None]:
    """What keeps files at `place` from being written (a full disk, missing rights) as a UserError of one line.

    ArrayRecord's writer tells it by a RuntimeError. Nothing but the writing belongs inside.
    """
    try:
        yield
    except UserError:
        raise
    except (OSError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or str(error).partition(";")[0]
        raise UserError(f"{place}: cannot be written ({why}); mend that and run the same command again") from None


def write_text(path, text: str, errors: str = "strict") -> None:
    """Writes a file in UTF-8 under another name first, which it loses only when it is whole; `errors`: as of `open`."""
    path = storage.path(path)
    if storage.is_remote(path):
        path.write_text(text, errors=errors)
        return
    with _aside(path) as tmp:
        tmp.write_text(text, encoding="utf-8", errors=errors)


def write_bytes(path, data: bytes) -> None:
    """Writes a file as `write_text` does."""
    path = storage.path(path)
    if storage.is_remote(path):
        path.write_bytes(data)
        return
    with _aside(path) as tmp:
        tmp.write_bytes(data)


@contextlib.contextmanager
def _aside(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Another name for a file while it is written; nothing is left of it if that fails."""
    tmp = path.with_name(path.name + ".part")
    with naming(path):
        try:
            yield tmp
            tmp.rename(path)
        except OSError:
            with contextlib.suppress(OSError):
                tmp.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def naming(path) -> Iterator[None]:
    """Errors of the system inside name the file: those of a full disk come without."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def replace_dir(tmp: pathlib.Path, target: pathlib.Path) -> None:
    """Puts a finished directory in its place; the old one goes only when the new one stands."""
    old = target.with_name(target.name + ".old")
    if old.exists():
        shutil.rmtree(old)
    if target.exists():
        target.rename(old)
    tmp.rename(target)
    if old.exists():
        shutil.rmtree(old)
