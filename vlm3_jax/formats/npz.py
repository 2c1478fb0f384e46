"""Arrays of npz files, and lists of texts and whole numbers that numpy has stored as object arrays, which are pickles.

Nothing is unpickled: the instructions are walked through one by one, and only those that build texts, numbers, None and
lists of them are obeyed. A name that a pickle refers to is never looked up.
"""

import io
import pickletools
import zipfile

import numpy as np

from vlm3_jax.errors import BadRecord
from vlm3_jax.records.map_files import read_npy

MAX_BYTES = 2**30
_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TEXTS = ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE")
_NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1", "INT", "LONG", "BINFLOAT")
_BYTES = ("BINBYTES", "SHORT_BINBYTES", "SHORT_BINSTRING", "BINSTRING")
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_ARRAY, _NDARRAY, _DTYPE, _SCALAR, _BYTES_OF = "_reconstruct", "ndarray", "dtype", "scalar", "encode"
_NAMES = {
    f"{module} {name}": name
    for module in ("numpy.core.multiarray", "numpy._core.multiarray")
    for name in (_ARRAY, _SCALAR)
} | {"numpy ndarray": _NDARRAY, "numpy dtype": _DTYPE, "_codecs encode": _BYTES_OF}


class _Name(str):
    """A name of `_NAMES` on the stack."""


class _Array:
    """An array that is being built, or a dtype (`code`)."""

    def __init__(self, code: str = ""):
        self.code, self.items = code, None


def read_npz(data: bytes, name: str, key: str) -> np.ndarray:
    """One array of numbers of an npz file; BadRecord if it is not there or holds anything else."""
    return read_npy(_member(data, name, key), f"{name}: {key}")


def _member(data: bytes, name: str, key: str) -> bytes:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if archive.getinfo(f"{key}.npy").file_size > MAX_BYTES:
                raise BadRecord(f"{name}: {key} is above {MAX_BYTES:,} bytes")
            return archive.read(f"{key}.npy")
    except (KeyError, zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
        raise BadRecord(f"{name}: cannot read {key} ({error})") from None


def read_objects(data: bytes, name: str, key: str) -> list:
    """An array of an npz file as nested lists, whether it holds numbers or objects (texts, whole numbers, None).

    BadRecord if it is not there or holds anything else.
    """
    return read_object_npy(_member(data, name, key), f"{name}: {key}")


def read_object_npy(member: bytes, name: str) -> list:
    """The same for an npy file."""
    file = io.BytesIO(member)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    except ValueError as error:
        raise BadRecord(f"{name}: no npy file ({error})") from None
    if dtype.kind in "US" or dtype.names:
        body = member[file.tell() :]
        if len(body) < dtype.itemsize * int(np.prod(shape)) or dtype.hasobject:
            raise BadRecord(f"{name}: shorter than its header says, or of objects inside of fields")
        return [
            list(row) if dtype.names else row
            for row in np.frombuffer(body, dtype, int(np.prod(shape))).reshape(shape).tolist()
        ]
    if dtype.kind != "O":
        return read_npy(member, name).tolist()
    try:
        items = _walk(member[file.tell() :])
    # The instructions of a damaged file may do all kinds of things to the stack.
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise BadRecord(f"{name}: its pickle holds more than texts and numbers, or is damaged ({error})") from None
    if len(items) != int(np.prod(shape)):
        raise BadRecord(f"{name}: {len(items)} values, its header says {list(shape)}")
    for size in reversed(shape[1:]):
        items = [items[at : at + size] for at in range(0, len(items), size)]
    return items


def _walk(pickle: bytes) -> list:
    """The values of the one object array that a pickle builds. ValueError for any other instruction."""
    stack: list = []
    memo: dict = {}
    for opcode, arg, _ in pickletools.genops(pickle):
        op = opcode.name
        if op in ("PROTO", "FRAME"):
            continue
        if op in _TEXTS or op in _NUMBERS or op in _BYTES:
            stack.append(arg)
        elif op in _CONSTANTS:
            stack.append(_CONSTANTS[op])
        elif op == "MARK":
            stack.append(_MARK)
        elif op == "EMPTY_LIST":
            stack.append([])
        elif op in _TUPLES:
            count = _TUPLES[op]
            stack[len(stack) - count :] = [tuple(stack[len(stack) - count :])]
        elif op in ("TUPLE", "LIST"):
            stack.append(tuple(_marked(stack)))
        elif op == "APPENDS":
            values = _marked(stack)
            stack[-1].extend(values)
        elif op == "APPEND":
            value = stack.pop()
            stack[-1].append(value)
        elif op in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[int(arg)] = stack[-1]
        elif op == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif op in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[int(arg)])
        elif op == "GLOBAL":
            stack.append(_name(arg))
        elif op == "STACK_GLOBAL":
            module, name = stack[-2:]
            stack[-2:] = [_name(f"{module} {name}")]
        elif op == "REDUCE":
            called, args = stack[-2:]
            stack[-2:] = [_called(called, args)]
        elif op == "BUILD":
            state = stack.pop()
            _built(stack[-1], state)
        elif op == "STOP":
            break
        else:
            raise ValueError(f"the instruction {op}")
    (result,) = stack
    return list(result.items)


def _marked(stack: list) -> list:
    at = len(stack) - 1 - stack[::-1].index(_MARK)
    values = stack[at + 1 :]
    del stack[at:]
    return values


def _name(text: str) -> _Name:
    if text not in _NAMES:
        raise ValueError(f"it refers to {text[:60]!r}")
    return _Name(_NAMES[text])


def _called(called, args):
    if type(called) is not _Name:
        raise ValueError("it calls what is no name")
    if called == _ARRAY:
        return _Array()
    if called == _DTYPE and isinstance(args[0], str):
        return _Array(args[0])
    if called == _BYTES_OF and isinstance(args[0], str) and args[1] == "latin1":
        # How older protocols write bytes.
        return args[0].encode("latin1")
    known = called == _SCALAR and isinstance(args[0], _Array) and isinstance(args[1], bytes)
    if known and args[0].code.lstrip("<>=")[:1] in ("i", "u", "f", "U"):
        return np.frombuffer(args[1], args[0].code, 1)[0].item()
    raise ValueError(f"it calls {called}")


def _built(target, state) -> None:
    if not isinstance(target, _Array):
        raise ValueError("it sets the state of what is no array")
    if target.code:
        # Of a dtype: version, byte order, ...
        target.code = (state[1] if state[1] in "<>=" else "") + target.code.lstrip("<>=|")
        return
    if not isinstance(state[-1], list) or not all(type(v) in (str, int, float, bool, type(None)) for v in state[-1]):
        raise ValueError("its values are no texts and numbers")
    target.items = state[-1]
