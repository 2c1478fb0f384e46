"""Which question sits in which place: a place whose answer is done is taken by the next question that waits.

So no question waits for the slowest of those it began with, and 10,000 of them need no more room than 128.
"""

import collections
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Seated(NamedTuple):
    """Who is called next: int32 [B, R] each, the number of the question (-1: nobody) and the place that it takes."""

    question: np.ndarray
    place: np.ndarray


class Written(NamedTuple):
    """What stands in the places: tokens int32 [B, Q, N], their number int32 [B, Q], done bool [B, Q]; on the host."""

    tokens: np.ndarray
    count: np.ndarray
    done: np.ndarray

    @classmethod
    def of(cls, state) -> "Written":
        """Waits for the device's state, and copies it: the device writes on in its memory."""
        return cls(*(np.array(x) for x in (state.tokens, state.count, state.done)))

    def answer(self, b: int, place: int, first: int = 0) -> list[int]:
        """The answer in a place so far, from token `first` on."""
        return self.tokens[b, place, first : self.count[b, place]].tolist()


class Places:
    """Q places for each of B image sets, whose questions have the given `lengths` (fewer than B: the others have none).

    Longer questions come first, so that those called together are of similar length.
    """

    def __init__(self, lengths: Sequence[Sequence[int]], rows: int, places: int):
        order = [sorted(range(len(of_set)), key=lambda q: -of_set[q]) for of_set in lengths]
        self._waiting = [collections.deque(questions) for questions in order]
        self._waiting += [collections.deque() for _ in range(rows - len(order))]
        self._seated = np.full((rows, places), -1, np.int32)

    @property
    def waiting(self) -> np.ndarray:
        """bool [B]: for which image sets questions wait."""
        return np.array([bool(questions) for questions in self._waiting])

    @property
    def empty(self) -> bool:
        """Whether nobody sits or waits."""
        return not self.waiting.any() and (self._seated < 0).all()

    def seat(self, most: int) -> Seated | None:
        """Seats up to `most` questions about each image set; None if there are none, or no place for them."""
        called = Seated(*np.full((2, len(self._seated), most), -1, np.int32))
        for b, questions in enumerate(self._waiting):
            free = np.flatnonzero(self._seated[b] < 0)[:most]
            for r, place in enumerate(free[: len(questions)]):
                called.question[b, r], called.place[b, r] = questions.popleft(), place
                self._seated[b, place] = called.question[b, r]
        return called if (called.question >= 0).any() else None

    def leave(self, done: np.ndarray) -> list[tuple[int, int, int]]:
        """Frees the places that are `done`, bool [B, Q]: (image set, place, question) of each."""
        left = [(int(b), int(q), int(self._seated[b, q])) for b, q in zip(*np.nonzero(done & (self._seated >= 0)))]
        self._seated[done] = -1
        return left
