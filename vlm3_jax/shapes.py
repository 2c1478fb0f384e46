"""The dimension letters of all signatures, and the types that arrays with shapes are written with.

B rows of a batch, S tokens of a row, P patches, X values of a patch, V visual tokens, T supervised positions, N points,
images or items, D width, F hidden width, H heads, K kv heads, C head size, E experts, L layers, R rows of a table.
Locals whose shape is not plain to see carry their letters as a suffix (x_BSD). Shapes and types are checked while the
tests run (tests/conftest.py) and cost nothing elsewhere.
"""

from typing import Any

from jaxtyping import Bool, Float, Float32, Int, Num, UInt8

# Of jax or numpy: what a function takes is decided by shape and dtype.
Array = Any

__all__ = ["Array", "Bool", "Float", "Float32", "Int", "Num", "UInt8"]
