"""Which blocks of a row can see each other: the list that `model/block_pairs.py` works through."""

import numpy as np


def visible_blocks(segments: np.ndarray, block: int, questions: np.ndarray | None = None) -> np.ndarray:
    """bool [n, n]: whether some token of a block of queries may see some token of a block of keys.

    `segments` int [n * block]: samples or images of a row, rising, 0 where empty. With `questions` (0 for the prefix of
    a sample, then rising) the row is text, and no block sees a later one; without, it is images.
    """
    low, high = _ranges(segments, block)
    seen = (low[:, None] <= high) & (low <= high[:, None])
    if questions is None:
        return seen
    parts = questions.reshape(-1, block)
    # Of a block of one sample alone it is known which questions it holds: the prefix is for all, a question for itself.
    first = np.where(segments.reshape(-1, block) > 0, parts, np.iinfo(parts.dtype).max).min(1)
    last = parts.max(1)
    alone = (low == high)[:, None] & (low == high) & (low[:, None] == low)
    strangers = alone & (first > 0) & (last < first[:, None])
    return np.tril(seen & ~strangers)


def _ranges(segments: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """First and last segment of each block; an empty block has none (first above last)."""
    parts = segments.reshape(-1, block)
    high = parts.max(1)
    low = np.where(parts > 0, parts, np.iinfo(parts.dtype).max).min(1)
    return low, high


def sparse_rows(seen: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """The list of a row, int32: starts [n + 1] and key blocks [capacity] (-1 unused); `seen` has at most so many."""
    starts = np.concatenate([[0], seen.sum(1).cumsum()]).astype(np.int32)
    keys = np.full(capacity, -1, np.int32)
    keys[: starts[-1]] = np.nonzero(seen)[1]
    return starts, keys
