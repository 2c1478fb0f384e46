"""Samples: tokens, positions, targets and image plans of one record's questions; no pixels.

A sample is a function of its record, its examples and the model directory alone, so it can be planned long before its
images are decoded. All indices that the model needs are computed here, in numpy, before packing.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from vlm3_jax.data.chat import ChatFormat, Encoding, Frames
from vlm3_jax.data.image import ImagePlan, Patches, VisionSpec, plan_image
from vlm3_jax.data.records import Record
from vlm3_jax.errors import UserError
from vlm3_jax.tasks.base import Example

MODES = ("turns", "independent")


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """One record's questions and answers as the decoder reads them: n tokens, t supervised ones, v visual ones.

    tokens int32 [n]; positions int32 [3, n] (time, row, column of M-RoPE); questions int32 [n]: 0 for the shared
    prefix, k > 0 for the k-th independent question (all 0 in "turns"); visual_slot int32 [v]: visual tokens.
    target_slot int32 [t]: the token whose hidden state predicts; target_tokens int32 [t]; target_weight float32 [t];
    target_later bool [t]: True for turns after the first. group: the mixture component it comes from. views: which of
    the record's views `images` are.
    """

    id: str
    group: int
    tokens: np.ndarray
    positions: np.ndarray
    questions: np.ndarray
    visual_slot: np.ndarray
    images: tuple[ImagePlan, ...]
    target_slot: np.ndarray
    target_tokens: np.ndarray
    target_weight: np.ndarray
    target_later: np.ndarray
    views: tuple[int, ...] = ()

    @property
    def n_patches(self) -> int:
        """Patches of all images."""
        return sum(plan.n_patches for plan in self.images)


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


def unsupervised(
    tokens: np.ndarray, axes: np.ndarray, visual_slot: np.ndarray, images: Sequence[Patches], questions=None
) -> Sample:
    """A sample without answers, for running the model on it; `axes` int32 [3, n] are its positions."""
    none = np.zeros(0, np.int32)
    questions = np.zeros_like(tokens) if questions is None else questions
    return Sample(
        "", 0, tokens, axes, questions, visual_slot, tuple(images), none, none, none.astype(np.float32),
        none.astype(bool),
    )  # fmt: skip


def build_sample(
    record: Record,
    examples: Sequence[Example],
    chat: ChatFormat,
    spec: VisionSpec,
    mode: str = "turns",
    first_answer_weight: float = 1.0,
    id: str = "",
    group: int = 0,
) -> Sample:
    """The sample of a unified record and its examples, in their order; all examples show the same views.

    `mode`: "turns" (one conversation) or "independent" (every question sees the images and itself only, and its
    positions go on right after them). The first token of every answer weighs `first_answer_weight`, all others 1.
    """
    if mode not in MODES:
        raise UserError(f"unknown question mode {mode!r}; choose one of {MODES}")
    plans = tuple(plan_image(record.views[v], spec) for v in examples[0].views)
    encode = chat.encode_turns if mode == "turns" else chat.encode_independent
    encoding = encode([plan.n_visual for plan in plans], [(e.question, e.answer) for e in examples])
    lengths = [stop - first for first, stop in encoding.answers]
    targets = _ranges(encoding.answers)
    weight = np.ones(len(targets), np.float32)
    weight[np.cumsum([0, *lengths[:-1]])] = first_answer_weight
    later = np.repeat(np.arange(len(lengths)) > 0, lengths) if mode == "turns" else np.zeros(len(targets), bool)
    return Sample(
        id=id,
        group=group,
        tokens=encoding.tokens,
        positions=positions(encoding, plans),
        questions=encoding.questions,
        visual_slot=_ranges((first, first + count) for first, count in encoding.images),
        images=plans,
        target_slot=targets - 1,
        target_tokens=encoding.tokens[targets],
        target_weight=weight,
        target_later=later,
        views=tuple(examples[0].views),
    )


def prompt_sample(plans: Sequence[ImagePlan], questions: str | Sequence[str], chat: ChatFormat) -> Prompt:
    """The prompt of one or more questions about the images of `plans`, each asked as if it were the only one."""
    return make_prompt([plan.n_visual for plan in plans], plans, questions, chat)


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
        visual_slot=_ranges((first, first + count) for first, count in prefix.images),
        suffix_tokens=suffixes,
        suffix_positions=tuple(
            np.broadcast_to(np.arange(start, start + len(s), dtype=np.int32), (3, len(s))) for s in suffixes
        ),
    )


def positions(encoding: Encoding, plans: Sequence[Patches]) -> np.ndarray:
    """M-RoPE positions (time, row, column), int32 [3, n], as transformers' `get_rope_index` counts them.

    Text counts by one on all three axes. An image starts at the next position p: all its tokens have time p, row p + y
    and column p + x of the merged grid, and the text after it goes on at p + max(rows, columns). Every group of frames
    of a video counts as an image. Independent questions all go on right after the prefix.
    """
    n = len(encoding.tokens)
    n_prefix = int(np.searchsorted(encoding.questions, 1))
    result = np.empty((3, n), np.int32)
    done = position = 0
    for (first, count), plan in zip(encoding.images, plans, strict=True):
        position = _count_on(result[:, done:first], position)
        rows, columns = (side // plan.merge_size for side in plan.grid)
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


def _ranges(spans) -> np.ndarray:
    """The indices of all spans (first, stop), int32."""
    parts = [np.arange(first, stop, dtype=np.int32) for first, stop in spans]
    return np.concatenate(parts) if parts else np.zeros(0, np.int32)
