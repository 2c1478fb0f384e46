"""Samples: tokens, positions, targets and image layouts of one record's questions; no pixels.

A sample is a function of its record, its examples and the model directory alone, so it can be scheduled long before its
images are decoded. All indices that the model needs are computed here, in numpy, before packing.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from vlm3_jax.errors import BadRecord
from vlm3_jax.processor.chat import ChatFormat
from vlm3_jax.processor.image import ImageLayout, Patches, VisionSpec, image_layout
from vlm3_jax.processor.prompt import positions, span_indices
from vlm3_jax.records import Record
from vlm3_jax.tasks.base import Example


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """One record's questions and answers as the decoder reads them: n tokens, t supervised ones, v visual ones.

    tokens int32 [n]; positions int32 [3, n] (time, row, column of M-RoPE); questions int32 [n]: 0 for the shared
    prefix, k > 0 for the k-th independent question (all 0 in "turns"); visual_slot int32 [v]: visual tokens.
    target_slot int32 [t]: the token whose hidden state predicts; target_tokens int32 [t]; target_weight float32 [t];
    target_later bool [t]: True for turns after the first. component: the number of the one it comes from. views: which
    of the record's views `images` are. record: as the model sees it (resized, perhaps mirrored and cropped); examples:
    what is asked about it.
    """

    id: str
    component: int
    tokens: np.ndarray
    positions: np.ndarray
    questions: np.ndarray
    visual_slot: np.ndarray
    images: tuple[ImageLayout, ...]
    target_slot: np.ndarray
    target_tokens: np.ndarray
    target_weight: np.ndarray
    target_later: np.ndarray
    views: tuple[int, ...] = ()
    record: Record | None = None
    examples: tuple[Example, ...] = ()

    @property
    def n_patches(self) -> int:
        """Patches of all images."""
        return sum(layout.n_patches for layout in self.images)


@dataclasses.dataclass(frozen=True)
class PassedOver:
    """A record that gives no sample, and why; no fault of its own."""

    reason: str


@dataclasses.dataclass(frozen=True)
class Bad:
    """A sample that was set aside: its `id`, component and file, and why; `error`: as it was raised.

    With `label` it is a part of the labels of `record` that was left out, and the rest is used.
    """

    id: str
    component: str
    file: str
    reason: str
    error: BadRecord | None = dataclasses.field(default=None, compare=False, repr=False)
    record: str = ""
    label: str = ""

    def row(self) -> dict[str, str]:
        """As files and reports have it."""
        more = {"record": self.record, "label": self.label} if self.label else {}
        return {"id": self.id, "component": self.component, "file": self.file, **more, "reason": self.reason}


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
    component: int = 0,
) -> Sample:
    """The sample of a unified record and its examples, in their order; all examples show the same views.

    An example with a marker is the only one of its sample: the arrow stands in the image.
    `mode`: "turns" (one conversation) or "independent" (every question sees the images and itself only, and its
    positions go on right after them); examples with `parts` are one conversation in either. The first token of every
    answer weighs `first_answer_weight`, all others 1.
    """
    layouts = tuple(image_layout(record.views[v], spec, examples[0].marker) for v in examples[0].views)
    shown = [layout.n_visual for layout in layouts]
    if examples[0].parts is not None:
        mode, turns = "turns", [(e.parts, e.answer) for e in examples]
        encoding = chat.encode_dialogue(shown, turns, examples[0].system)
    else:
        encode = chat.encode_turns if mode == "turns" else chat.encode_independent
        encoding = encode(shown, [(e.question, e.answer) for e in examples])
    lengths = [stop - first for first, stop in encoding.answers]
    targets = span_indices(encoding.answers)
    weight = np.ones(len(targets), np.float32)
    weight[np.cumsum([0, *lengths[:-1]])] = first_answer_weight
    later = np.repeat(np.arange(len(lengths)) > 0, lengths) if mode == "turns" else np.zeros(len(targets), bool)
    return Sample(
        id=id,
        component=component,
        tokens=encoding.tokens,
        positions=positions(encoding, layouts),
        questions=encoding.questions,
        visual_slot=span_indices((first, first + count) for first, count in encoding.images),
        images=layouts,
        target_slot=targets - 1,
        target_tokens=encoding.tokens[targets],
        target_weight=weight,
        target_later=later,
        views=tuple(examples[0].views),
        record=record,
        examples=tuple(examples),
    )
