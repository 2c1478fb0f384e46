"""Prompts: questions about images that wait for answers, and the positions that the decoder gives their tokens."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from vlm3_jax.processor.chat import ChatFormat, Encoding, Frames
from vlm3_jax.processor.image import ImageLayout, Patches
from vlm3_jax.shapes import Int


@dataclasses.dataclass(frozen=True, eq=False)
class Prompt:
    """Questions about the same images (or groups of video frames), waiting for answers.

    prefix_tokens int32 [n], prefix_positions int32 [3, n] and visual_slot int32 [v] belong to all; each question has
    its suffix_tokens int32 [m] and suffix_positions int32 [3, m], after which the answer's positions count on by one.
    """

    images: tuple[Patches, ...]
    prefix_tokens: np.ndarray
    prefix_positions: np.ndarray
    visual_slot: np.ndarray
    suffix_tokens: tuple[np.ndarray, ...]
    suffix_positions: tuple[np.ndarray, ...]


def prompt_sample(layouts: Sequence[ImageLayout], questions: str | Sequence[str], chat: ChatFormat) -> Prompt:
    """The prompt of one or more questions about the images of `layouts`, each asked as if it were the only one."""
    return make_prompt([layout.n_visual for layout in layouts], layouts, questions, chat)


def make_prompt(
    shown: Sequence[int | Frames], images: Sequence[Patches], questions: str | Sequence[str], chat: ChatFormat
) -> Prompt:
    """As `prompt_sample`, of images and videos: `shown` in their order, `images` each image and group of frames."""
    questions = [questions] if isinstance(questions, str) else questions
    prefix = chat.prompt_prefix(shown)
    prefix_positions = positions(prefix, images)
    start = _next_position(prefix_positions)
    suffixes = tuple(chat.prompt_suffix(shown, question) for question in questions)
    return Prompt(
        images=tuple(images),
        prefix_tokens=prefix.tokens,
        prefix_positions=prefix_positions,
        visual_slot=span_indices((first, first + count) for first, count in prefix.images),
        suffix_tokens=suffixes,
        suffix_positions=tuple(
            np.broadcast_to(np.arange(start, start + len(s), dtype=np.int32), (3, len(s))) for s in suffixes
        ),
    )


def positions(encoding: Encoding, layouts: Sequence[Patches]) -> Int[np.ndarray, "3 S"]:
    """M-RoPE positions (time, row, column), int32 [3, n], as transformers' `get_rope_index` counts them.

    Text counts by one on all three axes. An image starts at the next position p: all its tokens have time p, row p + y
    and column p + x of the merged grid, and the text after it goes on at p + max(rows, columns). Every group of frames
    of a video counts as an image. Independent questions all go on right after the prefix.
    """
    n = len(encoding.tokens)
    n_prefix = int(np.searchsorted(encoding.questions, 1))
    result = np.empty((3, n), np.int32)
    done = position = 0
    for (first, count), layout in zip(encoding.images, layouts, strict=True):
        position = _count_on(result[:, done:first], position)
        rows, columns = (side // layout.merge_size for side in layout.grid)
        result[0, first : first + count] = position
        result[1, first : first + count] = np.repeat(np.arange(position, position + rows), columns)
        result[2, first : first + count] = np.tile(np.arange(position, position + columns), rows)
        position += max(rows, columns)
        done = first + count
    position = _count_on(result[:, done:n_prefix], position)
    own = encoding.questions[n_prefix:]
    starts = np.flatnonzero(np.diff(own, prepend=0))
    result[:, n_prefix:] = position + np.arange(n - n_prefix) - np.repeat(starts, np.diff(starts, append=len(own)))
    return result


def _count_on(axes: np.ndarray, position: int) -> int:
    """Fill text positions from `position` on; the next free position."""
    axes[:] = np.arange(position, position + axes.shape[1])
    return position + axes.shape[1]


def _next_position(prefix_positions: np.ndarray) -> int:
    return int(prefix_positions.max()) + 1


def span_indices(spans) -> Int[np.ndarray, " N"]:
    """The indices of all spans (first, stop), int32."""
    parts = [np.arange(first, stop, dtype=np.int32) for first, stop in spans]
    return np.concatenate(parts) if parts else np.zeros(0, np.int32)
