"""A number for every array of a training state, the same on any mesh: what was saved is what is restored.

Orbax and tensorstore notice missing and shortened files, but a flipped bit in the values of an array is read as it is.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def checksums(state) -> dict[str, int]:
    """{name of a leaf: 32-bit checksum} of a tree of jax arrays on a mesh; one pass over its bytes on the devices.

    A changed element always changes the checksum of its array, any other damage all but once in 2^32.
    """
    # Parameters and moments are alike: a dict at a time, one program serves them all.
    parts = map(jax.tree.leaves, jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, dict)))
    found = jax.device_get([_program(leaves[0].sharding.mesh)(leaves) for leaves in parts if leaves])
    return dict(zip(names(state), map(int, np.concatenate(found)), strict=True))


def described(state) -> dict[str, list]:
    """{name of a leaf: [dtype, shape]}, as JSON has it; takes shapes as well as arrays."""
    leaves = jax.tree.leaves(state)
    return {name: [str(leaf.dtype), list(leaf.shape)] for name, leaf in zip(names(state), leaves, strict=True)}


def names(state) -> list[str]:
    """Dotted names of all leaves, such as params.text.embed, in the order of jax.tree.leaves."""
    paths = jax.tree_util.tree_leaves_with_path(state)
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]


@functools.cache
def _program(mesh):
    """A jitted function from leaves to their checksums: as one vector, since fetching takes longer than computing."""

    def leaf_checksums(leaves):
        return jnp.stack([_sum(leaf) for leaf in leaves])

    return jax.jit(leaf_checksums, out_shardings=NamedSharding(mesh, PartitionSpec()))


def _sum(array: jax.Array) -> jax.Array:
    """The sum, modulo 2^32, of every element's bits mixed with its place: additions in any order agree exactly.

    The mixing is the finalizer of MurmurHash3, a permutation of 32-bit words. A product would be cheaper, but lets
    flipped signs of two elements cancel.
    """
    bits = jax.lax.bitcast_convert_type(array, _WORDS[array.dtype.itemsize]).astype(jnp.uint32)
    place = jnp.zeros(array.shape, jnp.uint32)
    for axis in range(array.ndim):
        stride = math.prod(array.shape[axis + 1 :]) * 0x9E3779B1 % 2**32
        place += jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis) * jnp.uint32(stride)
    word = bits ^ place
    word = (word ^ (word >> 16)) * jnp.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * jnp.uint32(0xC2B2AE35)
    return jnp.sum(word ^ (word >> 16), dtype=jnp.uint32)
