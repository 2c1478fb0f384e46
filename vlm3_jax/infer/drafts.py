"""Drafts: what an answer will say next, guessed from how the answers before it went on.

Answers of a trained model have fixed words and say their number twice. The words are learnt as what has always followed
the last tokens; the second number as a copy, by the words before the first one. A draft is only a guess: the model
reads it in one pass and keeps what it would have said itself (`decode.Programs.verify`).
"""

import collections
from collections.abc import Iterator, Sequence

import numpy as np

from vlm3_jax.infer.places import Written

# The most recent tokens that a guess is made from, longest first.
_CONTEXTS = (4, 3, 2, 1)
# A copy is at least so long, and found again after so many tokens as stood before it.
_COPIED, _BEFORE, _LONGEST_COPY = 2, 2, 16
_BEGIN = -1
NO_LIMIT = 1 << 30
_FADE = 0.99
# Answers without a pattern fill the memory; then it begins again.
_MOST_LEARNT = 50_000
# Tokens of a place in one pass, of which the first is no draft.
WIDTHS = (4, 16)
# A pass costs as much as so many tokens, and each of its tokens once more: the weights have to be read anyway.
# (CPU: products of 32 and 128 rows by 512 x 1,536 take 0.82 and 2.22 ms; GPUs do some hundred FLOPs for a byte read.)
_PASS = {"cpu": 24}
_PASS_ELSEWHERE = 256


def best_width(rows: int, asking: int, lengths: Sequence[int], rate: float, platform: str) -> int:
    """How many tokens of each of `rows` places to give the model in one pass: 1 (no drafts) or one of `WIDTHS`.

    `asking` places have no whole answer yet, drafts of `lengths` are at hand, and a drafted token is right with
    probability `rate` if those before it are. The same drafts give the same width, whatever the clock says.
    """
    fixed = _PASS.get(platform, _PASS_ELSEWHERE)

    def tokens_a_cost(width: int) -> float:
        right = sum(rate * (1 - rate ** min(n, width - 1)) / (1 - rate) for n in lengths)
        return (asking + right) / (fixed + rows * width)

    return max((1, *WIDTHS), key=tokens_a_cost)


class Drafts:
    """Guesses from the answers that were learnt; `proposed` and `right` tokens are counted by `judge`."""

    def __init__(self):
        self.proposed = self.right = 0.0
        self._next: dict[tuple[int, ...], int | None] = {}
        # {tokens before a copy: (tokens before what is copied, tokens that may end it, token after the copy)}
        self._copies: dict[tuple[int, ...], tuple[tuple[int, ...], set[int], int]] = {}

    def learn(self, answer: Sequence[int]) -> None:
        """Takes in a whole answer, with its stop token."""
        if len(self._next) > _MOST_LEARNT:
            self._next, self._copies = {}, {}
        # What was long ago counts less: after a while drafts are tried again.
        self.proposed, self.right = self.proposed * _FADE, self.right * _FADE
        tokens = [_BEGIN] * max(_CONTEXTS) + list(answer)
        for i in range(max(_CONTEXTS), len(tokens)):
            for n in _CONTEXTS:
                before = tuple(tokens[i - n : i])
                # None: what follows varies.
                self._next[before] = tokens[i] if self._next.get(before, tokens[i]) == tokens[i] else None
        for source, begin, length in _repeats(tokens):
            if begin + length < len(tokens):
                before, of_source = (tuple(tokens[i - _BEFORE : i]) for i in (begin, source))
                ends = self._copies[before][1] if before in self._copies else set()
                self._copies[before] = of_source, ends | {tokens[source + length]}, tokens[begin + length]

    def guess(self, answer: Sequence[int], most: int) -> list[int]:
        """Up to `most` tokens that may follow the beginning of an answer."""
        tokens = [_BEGIN] * max(_CONTEXTS) + list(answer)
        first = len(tokens)
        while len(tokens) < first + most:
            copied = self._copy(tokens)
            if copied:
                tokens += copied
                continue
            follows = next((self._next[key] for key in _keys(tokens) if key in self._next), None)
            if follows is None:
                break
            tokens.append(follows)
        return tokens[first : first + most]

    def plan(self, written: Written, platform: str) -> tuple[np.ndarray | None, int]:
        """Drafts for all places, int32 [B, Q, D - 1] (-1: none), and after how many steps to plan again.

        None if drafts would not make answers come sooner.
        """
        asking = list(zip(*map(np.ndarray.tolist, np.nonzero(~written.done)), strict=True))
        rows, many = written.done.size, max(WIDTHS) - 1
        if not self._next or best_width(rows, len(asking), [many] * len(asking), self.rate, platform) == 1:
            return None, NO_LIMIT
        guesses = [self.guess(written.answer(*place), many) for place in asking]
        width = best_width(rows, len(asking), [*map(len, guesses)], self.rate, platform)
        if width == 1:
            return None, 1
        drafts = np.full((*written.done.shape, width - 1), -1, np.int32)
        for place, guess in zip(asking, guesses, strict=True):
            drafts[place][: len(guess)] = guess[: width - 1]
        return drafts, 1

    def judge(self, drafts: np.ndarray, before: Written, after: Written) -> None:
        """Counts how much of the drafts the model has said."""
        drafted, said = (drafts >= 0).sum(2), after.count - before.count - 1
        self.proposed += int(drafted.sum())
        self.right += int(np.minimum(drafted, np.maximum(said, 0)).sum())

    @property
    def rate(self) -> float:
        """The share of drafted tokens that were right; as long as few are known it is assumed to be high."""
        return (self.right + 12) / (self.proposed + 16)

    def _copy(self, tokens: list[int]) -> list[int]:
        """What the answer has said at the place from which, after such words, others copied; with the word after it."""
        # Only where plain words would not do.
        for key in _keys(tokens):
            if key in self._next:
                if self._next[key] is not None and len(key) > _BEFORE:
                    return []
                break
        for begun in range(min(_LONGEST_COPY, len(tokens) - _BEFORE)):
            here = len(tokens) - begun
            found = self._copies.get(tuple(tokens[here - _BEFORE : here]))
            if found is not None:
                copied = _copied(tokens[:here], *found)
                if len(copied) > begun and copied[:begun] == tokens[here:]:
                    return copied[begun:]
        return []


def _copied(tokens: list[int], before, ends: set[int], after: int) -> list[int]:
    """What stands after the last `before`, up to one of `ends`, and the token after such a copy."""
    for i in range(len(tokens) - 2 * _BEFORE, -1, -1):
        if tuple(tokens[i : i + _BEFORE]) == before:
            source = tokens[i + _BEFORE :]
            length = next((n for n, token in enumerate(source) if token in ends), 0)
            return [*source[:length], after] if length else []
    return []


def _keys(tokens: Sequence[int]) -> Iterator[tuple[int, ...]]:
    for n in _CONTEXTS:
        yield tuple(tokens[-n:])


def _repeats(tokens: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(first place, later place, length) of runs of tokens that occur twice, each as long as can be."""
    places = collections.defaultdict(list)
    i = _BEFORE
    while i < len(tokens) - _COPIED:
        best = (0, 0)
        for source in places[tuple(tokens[i : i + _COPIED])]:
            length = 0
            while source + length < i and i + length < len(tokens) and tokens[source + length] == tokens[i + length]:
                length += 1
            best = max(best, (length, source))
        for k in range(i, i + max(1, best[0])):
            places[tuple(tokens[k : k + _COPIED])].append(k)
        if best[0] >= _COPIED:
            yield best[1], i, best[0]
        i += max(1, best[0])
