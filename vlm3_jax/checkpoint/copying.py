"""Copies between memory layouts at the speed of memory: casts, and transposes in tiles that stay in the cache."""

import ml_dtypes
import numpy as np

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
# Of a transposed matrix: rows and columns of the source that are copied into the cache, and columns that are turned
# from there at once. Of the sizes tried these are the fastest for items of two bytes.
_ROWS, _COLUMNS, _TURNED = 256, 128, 64


def copy_into(target: np.ndarray, source: np.ndarray) -> None:
    """`target[...] = source`, with a cast; `target` is contiguous, `source` a view with any strides.

    FloatingPointError if a value is too large for the target's dtype.
    """
    shape, strides = _merged(source)
    with np.errstate(over="raise"):
        _copy(target.reshape(shape), np.lib.stride_tricks.as_strided(source, shape, strides, writeable=False))


def _copy(target, source):
    if source.ndim < 2 or source.strides[-1] == source.itemsize:
        np.copyto(target, source, casting="unsafe")
    elif source.ndim > 2:
        for one, other in zip(target, source):
            _copy(one, other)
    else:
        for i in range(0, source.shape[1], _ROWS):
            for j in range(0, source.shape[0], _COLUMNS):
                block = source[j : j + _COLUMNS, i : i + _ROWS].T.copy()
                part = target[j : j + _COLUMNS, i : i + _ROWS]
                for k in range(0, len(part), _TURNED):
                    np.copyto(part[k : k + _TURNED], block[:, k : k + _TURNED].T, casting="unsafe")


def _merged(source: np.ndarray) -> tuple[list[int], list[int]]:
    """Shape and strides with axes that lie one behind the other joined, and axes of size 1 dropped."""
    shape, strides = [], []
    for size, stride in zip(source.shape, source.strides):
        if size == 1:
            continue
        if shape and strides[-1] == size * stride:
            shape[-1] *= size
            strides[-1] = stride
        else:
            shape.append(size)
            strides.append(stride)
    return shape, strides
