"""A component of a mixture: a source joined with the task it trains, up to the finished sample."""

import bisect
import dataclasses

import numpy as np

from vlm3_jax import records, tasks
from vlm3_jax.config import protocol_of
from vlm3_jax.config_rules import check_component
from vlm3_jax.data.packing import RowBudget, enough, excess, fits
from vlm3_jax.data.samples import Bad, PassedOver, Sample, build_sample
from vlm3_jax.data.sources import Source
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.processor import image
from vlm3_jax.processor.chat import ChatFormat
from vlm3_jax.records import MAX_IMAGE_PIXELS, Record

# Labels drawn from a record's depth maps, for each question: a crop leaves but a part of them.
SPARE = 16
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

    def __init__(self, name: str, fields, source: Source, settings: SampleSettings, number: int = 0):
        self.name = name
        self.fields = check_component(name, fields)
        self.source = source
        self.settings = settings
        self.number = number
        self.task = tasks.get(self.fields.task)
        self.protocol = protocol_of(self.fields)

    def __len__(self) -> int:
        return len(self.source)

    def sample(
        self, index: int, key: tuple[int, ...], id: str, training: bool = True, cropped: bool = True
    ) -> Sample | PassedOver | Bad:
        """What record `index` gives, as a function of (index, key) only; `key` seeds questions and mirroring.

        The one road from records to samples: training, held-out losses, evaluation, surveys and checks all take it.
        Passed over is a record that its source has set aside, whose views overlap too little, or that has nothing that
        the task could ask about, perhaps because a crop has left no labels. Bad is one with unusable labels. UserError
        if the sample is larger than a row and may not, or cannot, be cropped. Without `training` it is what evaluation
        asks: never mirrored, and always in the published words. `cropped`: to fit a row.
        """
        try:
            return self._sample(index, key, id, training, cropped)
        except BadRecord as error:
            return Bad(id, self.name, str(self.source.path), str(error), error)

    def _sample(self, index: int, key: tuple[int, ...], id: str, training: bool, cropped: bool) -> Sample | PassedOver:
        mirror = training and self.fields.flip > 0 and np.random.default_rng([*key, 1]).random() < self.fields.flip
        record = self._record(index, key, mirror)
        if isinstance(record, PassedOver):
            return record
        sample = self._build(record, key, id, training)
        if sample is None:
            return PassedOver(f"it has no labels that task {self.task.name} can ask about")
        for _ in range(4):
            if not cropped or fits([sample], self.settings.budget):
                return sample
            sample = self._build(self._cropped(sample), key, id, training)
            if sample is None:
                return PassedOver(f"cropped to fit a row it has no labels that task {self.task.name} can ask about")
        raise BadRecord(f"record {record.id}: the sample does not fit a row even when cropped")

    def _record(self, index: int, key: tuple[int, ...], mirror: bool) -> Record | PassedOver:
        """Record `index` resized by the component's protocol, if it can be used."""
        record, least = self.source[index], self.fields.covisibility_min
        if record is None:
            return PassedOver("its line was set aside when the file was opened (vlm3 data check says why)")
        if self.task.draws or (record.covisibility is None and least > 0):
            record = records.draw_labels(record, np.random.default_rng([*key, 2]), SPARE * self.protocol.questions)
        else:
            record = dataclasses.replace(record, depth_maps=(), masks=())
        if record.covisibility is not None and record.covisibility < least:
            return PassedOver(f"its covisibility, {record.covisibility:.3g}, is below covisibility_min = {least:g}")
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

    def _build(self, record: Record, key: tuple[int, ...], id: str, vary: bool) -> Sample | None:
        # Seeded anew, so that a cropped record asks what the whole one would, as far as the labels are left.
        examples = self.task.examples(record, np.random.default_rng(key), self.protocol, vary=vary)
        if not examples:
            return None
        s = self.settings
        return build_sample(record, examples, s.chat, s.vision, s.mode, s.first_answer_weight, id, self.number)

    def _cropped(self, sample: Sample) -> Record:
        """The sample's record with its images cut so that a sample with as much text fits; labels outside are removed.

        UserError, with numbers that would do for the whole sample, if it may not be cropped or no crop helps.
        """
        s, record = self.settings, sample.record
        if record.conversation is not None and (sample.examples[0].parts is not None or not sample.images):
            # Nothing of it can be left out: it is as long as somebody wrote it.
            raise BadRecord(f"record {record.id} is larger than a row ({'; '.join(excess([sample], s.budget))})")
        patches = self._room(sample)
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

    def _room(self, sample: Sample) -> int:
        """The most patches that every image may keep for a sample with as much text to fit; 0 if they are too few."""
        budget, area = self.settings.budget, self.settings.vision.merge_size**2
        text = len(sample.tokens) - sum(layout.n_visual for layout in sample.images)
        # Of tokens and patches every image gets the same part; of the lists of blocks it is tried out what is left.
        room = min(budget.tokens - text, budget.patches // area) // max(1, len(sample.images))

        def too_large(visual: int) -> bool:
            try:
                return not fits([_with_crops(sample, visual * area, self.settings.vision)], budget)
            except BadRecord:
                # So small an image would be enlarged again: who crops to it is told.
                return False

        if room >= LEAST and too_large(room):
            room = LEAST - 1 + bisect.bisect_left(range(LEAST, room), True, key=too_large)
        return room * area if room >= LEAST else 0


def _with_crops(sample: Sample, patches: int, spec: image.VisionSpec) -> Sample:
    """What a sample with images of at most so many patches takes of a row: its text with fewer visual tokens before it.

    (Not its positions.) BadRecord if an image cannot be cropped to so few patches.
    """
    views = [sample.record.views[number] for number in sample.views]
    views = [view.seen_by(image.fit_camera(view.camera, spec, patches)) for view in views]
    layouts = tuple(image.image_layout(view, spec) for view in views)
    # All images stand in the prefix, which is for all questions.
    cut = sum(layout.n_visual for layout in sample.images) - sum(layout.n_visual for layout in layouts)
    return dataclasses.replace(sample, images=layouts, tokens=sample.tokens[cut:], questions=sample.questions[cut:])
