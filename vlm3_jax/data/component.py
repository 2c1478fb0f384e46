"""A component of a mixture: a source joined with the task it trains, up to the finished sample."""

import bisect
import dataclasses

import numpy as np

from vlm3_jax import records, tasks
from vlm3_jax.config import check_entry, protocol_of
from vlm3_jax.data.packing import RowBudget, enough, excess, fits
from vlm3_jax.data.samples import Sample, build_sample
from vlm3_jax.data.sources import Source
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.processor import image
from vlm3_jax.processor.chat import ChatFormat
from vlm3_jax.records import MAX_IMAGE_PIXELS, Record

# What `Component.sample` gives None for.
PASSED_OVER = (
    "a record is passed over if its source has set it aside, its views overlap less than covisibility_min, or it has "
    "no labels that its task can ask about (a crop may leave none)"
)
# Visual tokens that a crop must leave of an image: a row that has room for fewer is too small for the text.
LEAST = 4


@dataclasses.dataclass(frozen=True)
class SampleSettings:
    """How records of every component become samples.

    `mode`: "turns" or "independent" (`build_sample`). `oversize`: what to do with a sample larger than a row of
    `budget`: "crop" (cut the centre out, keeping the focal length; points outside are drawn again) or "error".
    """

    chat: ChatFormat
    vision: image.VisionSpec
    budget: RowBudget
    mode: str = "turns"
    first_answer_weight: float = 1.0
    oversize: str = "crop"


class Component:
    """Records of one source as samples of one task; `number` is its place in the mixture table."""

    def __init__(self, name: str, entry, source: Source, settings: SampleSettings, number: int = 0):
        self.name = name
        self.entry = check_entry(name, entry)
        self.source = source
        self.settings = settings
        self.number = number
        self.task = tasks.get(self.entry.task)
        self.protocol = protocol_of(self.entry)

    def __len__(self) -> int:
        return len(self.source)

    def record(self, index: int, mirror: bool = False) -> Record | None:
        """Record `index` resized by the component's protocol; None if its views overlap too little to be used, or its
        source has set it aside.
        """
        record = self.source[index]
        if record is None:
            return None
        if record.covisibility is not None and record.covisibility < self.entry.covisibility_min:
            return None
        if mirror:
            record = records.flip(record)
        record = records.unify(record, self.protocol.resize)
        for view in record.views:
            if view.camera.width * view.camera.height > MAX_IMAGE_PIXELS:
                raise BadRecord(
                    f"{view.image.name}: resized by {self.protocol.resize} the image would have "
                    f"{view.camera.width} x {view.camera.height} pixels, above {MAX_IMAGE_PIXELS}"
                )
        return record

    def sample(self, index: int, key: tuple[int, ...], id: str) -> Sample | None:
        """The sample of record `index`: a function of (index, key) only.

        `key` seeds the choice of questions and the mirroring. None if the record is not to be used: its source has set
        it aside, its views overlap too little, or it has nothing that the task could ask about, perhaps because a crop
        has left no labels. BadRecord if the labels are unusable; UserError if the sample is larger than a row and may
        not, or cannot, be cropped.
        """
        made = self.make(index, key, id)
        return made and made[1]

    def make(self, index: int, key: tuple[int, ...], id: str) -> tuple[Record, Sample] | None:
        """As `sample`, with the record as the model sees it (unified, perhaps mirrored and cropped)."""
        mirror = self.entry.flip > 0 and np.random.default_rng([*key, 1]).random() < self.entry.flip
        record = self.record(index, mirror)
        if record is None:
            return None
        sample = self._build(record, key, id)
        for _ in range(4):
            if sample is None:
                return None
            if fits([sample], self.settings.budget):
                return record, sample
            record = self._cropped(record, sample)
            sample = self._build(record, key, id)
        raise BadRecord(f"record {record.id}: the sample does not fit a row even when cropped")

    def _build(self, record: Record, key: tuple[int, ...], id: str) -> Sample | None:
        # Seeded anew, so that a cropped record asks what the whole one would, as far as the labels are left.
        examples = self.task.examples(record, np.random.default_rng(key), self.protocol, vary=True)
        if not examples:
            return None
        s = self.settings
        return build_sample(record, examples, s.chat, s.vision, s.mode, s.first_answer_weight, id, self.number)

    def _cropped(self, record: Record, sample: Sample) -> Record:
        """The record with its images cut so that a sample with as much text fits; labels outside are removed.

        UserError, with numbers that would do for the whole sample, if it may not be cropped or no crop helps.
        """
        s = self.settings
        patches = self._room(record, sample)
        if s.oversize == "error" or not patches:
            wanted = enough([sample], s.budget, s.vision.merge_size)
            fields = ", ".join(f"data.{name} = {value}" for name, value in wanted.items())
            other = 'set data.oversize = "crop"' if patches else "ask fewer questions a record"
            raise UserError(
                f"{self.name}: record {record.id} is larger than a row ({'; '.join(excess([sample], s.budget))}); "
                f"set {fields}, or {other}"
            )
        cameras = [image.fit_camera(view.camera, s.vision, patches) for view in record.views]
        return records.keep_inside(records.with_cameras(record, cameras))

    def _room(self, record: Record, sample: Sample) -> int:
        """The most patches that every image may keep for a sample with as much text to fit; 0 if they are too few."""
        budget, area = self.settings.budget, self.settings.vision.merge_size**2
        text = len(sample.tokens) - sum(layout.n_visual for layout in sample.images)
        # Of tokens and patches every image gets the same part; of the lists of blocks it is tried out what is left.
        room = min(budget.tokens - budget.block + 1 - text, budget.patches // area) // max(1, len(sample.images))

        def too_large(visual: int) -> bool:
            try:
                return not fits([_with_crops(record, sample, visual * area, self.settings.vision)], budget)
            except BadRecord:
                # So small an image would be enlarged again: who crops to it is told.
                return False

        if room >= LEAST and too_large(room):
            room = LEAST - 1 + bisect.bisect_left(range(LEAST, room), True, key=too_large)
        return room * area if room >= LEAST else 0


def _with_crops(record: Record, sample: Sample, patches: int, spec: image.VisionSpec) -> Sample:
    """What a sample with images of at most so many patches takes of a row: its text with fewer visual tokens before it.

    (Not its positions.) BadRecord if an image cannot be cropped to so few patches.
    """
    views = [record.views[number] for number in sample.views]
    views = [view.seen_by(image.fit_camera(view.camera, spec, patches)) for view in views]
    layouts = tuple(image.image_layout(view, spec) for view in views)
    # All images stand in the prefix, which is for all questions.
    cut = sum(layout.n_visual for layout in sample.images) - sum(layout.n_visual for layout in layouts)
    return dataclasses.replace(sample, images=layouts, tokens=sample.tokens[cut:], questions=sample.questions[cut:])
