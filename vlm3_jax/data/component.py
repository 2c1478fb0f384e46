"""A component of a mixture: a source joined with the task it trains, up to the finished sample."""

import dataclasses

import numpy as np

from vlm3_jax import tasks
from vlm3_jax.data import image, records
from vlm3_jax.data.chat import ChatFormat
from vlm3_jax.data.packing import RowBudget, fits, needs
from vlm3_jax.data.records import MAX_IMAGE_PIXELS, Record
from vlm3_jax.data.samples import Sample, build_sample
from vlm3_jax.data.sources import Source, check_entry
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.tasks.base import PromptStyle

OVERSIZE = ("crop", "error")


@dataclasses.dataclass(frozen=True)
class SampleSettings:
    """How records of every component become samples.

    `mode`: "turns" or "independent" (design decision 8). `oversize`: what to do with a sample larger than a row of
    `budget`: "crop" (cut the centre out, keeping the focal length; points outside are drawn again) or "error".
    """

    chat: ChatFormat
    vision: image.VisionSpec
    budget: RowBudget
    mode: str = "turns"
    first_answer_weight: float = 1.0
    oversize: str = "crop"

    def __post_init__(self):
        if self.oversize not in OVERSIZE:
            raise UserError(f"data.oversize is {self.oversize!r}; choose one of {OVERSIZE}")


class Component:
    """Records of one source as samples of one task; `group` is its number in the mixture table."""

    def __init__(self, name: str, entry, source: Source, settings: SampleSettings, group: int = 0):
        self.name = name
        self.entry = check_entry(name, entry)
        self.source = source
        self.settings = settings
        self.group = group
        self.task = tasks.get(self.entry.task)
        self.style = PromptStyle(
            name=self.entry.style,
            coord_range=self.entry.coord_range or None,
            questions=self.entry.questions,
            vary=True,
            think=self.entry.think,
        )

    def __len__(self) -> int:
        return len(self.source)

    def record(self, index: int, mirror: bool = False) -> Record | None:
        """Record `index` at the component's focal length; None if its views overlap too little to be used, or its
        source has set it aside.
        """
        record = self.source[index]
        if record is None:
            return None
        if record.covisibility is not None and record.covisibility < self.entry.covisibility_min:
            return None
        if mirror:
            record = records.flip(record)
        record = records.unify(record, self.entry.focal, self.entry.policy)
        for view in record.views:
            if view.camera.width * view.camera.height > MAX_IMAGE_PIXELS:
                raise BadRecord(
                    f"{view.image.name}: at focal length {self.entry.focal:g} the image would have "
                    f"{view.camera.width} x {view.camera.height} pixels, above {MAX_IMAGE_PIXELS}"
                )
        return record

    def sample(self, index: int, key: tuple[int, ...], id: str) -> Sample | None:
        """The sample of record `index`: a function of (index, key) only.

        `key` seeds the choice of questions and the mirroring. None if the record is not to be used: its source has set
        it aside, its views overlap too little, or it has nothing that the task could ask about. BadRecord if the labels
        are unusable; UserError if the sample is larger than a row and may not, or cannot, be cropped.
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
        examples = self.task.examples(record, np.random.default_rng(key), self.style)
        if not examples:
            return None
        s = self.settings
        return build_sample(record, examples, s.chat, s.vision, s.mode, s.first_answer_weight, id, self.group)

    def _cropped(self, record: Record, sample: Sample) -> Record:
        """The record with its images cut so that a sample with as much text fits; labels outside are removed."""
        budget, merge = self.settings.budget, self.settings.vision.merge_size
        visual = sum(plan.n_visual for plan in sample.images)
        text = len(sample.tokens) - visual
        answers = len(sample.target_tokens)
        size = (
            f"{len(sample.tokens)} tokens, {visual * merge**2} patches and {answers} supervised tokens; "
            f"a row holds {budget.tokens}, {budget.patches} and {budget.targets}"
        )
        room = budget.tokens - budget.block + 1 - text
        patches = min(budget.patches, room * merge**2) // max(1, len(sample.images))
        taken = needs([sample], budget)
        for field in ("reach", "pairs", "patch_pairs"):
            if getattr(taken, field) > getattr(budget, field):
                raise UserError(
                    f"{self.name}: record {record.id} needs data.{field} = {getattr(taken, field)} and the "
                    f"configuration has {getattr(budget, field)}; raise it"
                )
        no_crop_helps = answers > budget.targets or patches < 4 * merge**2
        if self.settings.oversize == "error" or no_crop_helps:
            remedy = "ask fewer questions a record or raise the row" if no_crop_helps else 'raise the row or set "crop"'
            raise UserError(f"{self.name}: record {record.id} is larger than a row ({size}); {remedy}")
        cameras = [image.fit_camera(view.camera, self.settings.vision, patches) for view in record.views]
        return keep_inside(records.with_cameras(record, cameras))


def keep_inside(record: Record) -> Record:
    """The record without the labels that a crop has moved out of its images (boxes: not wholly inside)."""
    cameras = [view.camera for view in record.views]

    def depth(labels):
        keep = image.inside(labels.points_px, cameras[labels.view])
        return dataclasses.replace(labels, points_px=labels.points_px[keep], depth_m=labels.depth_m[keep])

    def objects(labels):
        corners = labels.boxes_px.reshape(-1, 2)
        keep = np.flatnonzero(image.inside(corners, cameras[labels.view]).reshape(-1, 2).all(1))
        return dataclasses.replace(
            labels,
            boxes_px=labels.boxes_px[keep],
            names=tuple(labels.names[k] for k in keep),
            points_m=tuple(labels.points_m[k] for k in keep),
        )

    matches = record.matches
    if matches is not None:
        keep = image.inside(matches.points0_px, cameras[0]) & image.inside(matches.points1_px, cameras[1])
        matches = records.Matches(matches.points0_px[keep], matches.points1_px[keep])
    return dataclasses.replace(
        record, depth=tuple(map(depth, record.depth)), objects=tuple(map(objects, record.objects)), matches=matches
    )
