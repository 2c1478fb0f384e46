"""What is kept from call to call: up to so many bytes of arrays; what was not used for longest goes first."""

import collections
from collections.abc import Callable

import jax


class Kept:
    """Trees of arrays by key, of `limit` bytes together at most (0: nothing is kept)."""

    def __init__(self, limit: int):
        self.limit = limit
        self._trees: collections.OrderedDict = collections.OrderedDict()
        self.held = 0

    def get(self, key, make: Callable):
        """What is kept under the key, else what `make` makes, which is then kept if it fits."""
        if key in self._trees:
            self._trees.move_to_end(key)
            return self._trees[key]
        made = make()
        size = _size(made)
        if size <= self.limit:
            while self.held + size > self.limit:
                self.held -= _size(self._trees.popitem(last=False)[1])
            self._trees[key] = made
            self.held += size
        return made


def _size(tree) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
