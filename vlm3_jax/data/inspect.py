"""Looking at data before training on them: `vlm3 data mix`, `show` and `check` as plain functions."""

import collections
import dataclasses
import itertools
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from vlm3_jax.data.component import Component, SampleSettings
from vlm3_jax.data.image import ImagePlan, VisionSpec
from vlm3_jax.data.mixture import Mixture, build_components, first_phase
from vlm3_jax.data.packing import RowBudget, needs
from vlm3_jax.data.plan import BadSample
from vlm3_jax.data.quarantine import Quarantine, bad_lines
from vlm3_jax.data.records import Record
from vlm3_jax.data.samples import Sample
from vlm3_jax.errors import BadRecord, UserError

UNBOUNDED = RowBudget(2**30, 2**30, 2**30)
STREAMS = 8
PAIR_BLOCK = 128
RED = (230, 40, 40)


@dataclasses.dataclass(frozen=True)
class RowFill:
    """How full rows of `budget` get: shares of tokens and patches used, and samples a row.

    `dense_attention`: the work of attention over whole rows, relative to attention within each sample. `pairs` and
    `patch_pairs`: what data.pair_block = PAIR_BLOCK needs of data.pairs and data.patch_pairs (0: not counted).
    """

    budget: RowBudget
    token_fill: float
    patch_fill: float
    samples: float
    dense_attention: float
    pairs: int = 0
    patch_pairs: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class MixReport:
    """Sizes of the first samples of a mixture. `sizes` int64 [N, 4]: group, tokens, patches, supervised tokens."""

    components: list[Component]
    sizes: np.ndarray
    skipped: int
    bad: list[BadSample]
    configured: RowFill
    proposed: list[RowFill]

    def text(self) -> str:
        """The report as lines of text."""
        total = sum(component.entry.weight for component in self.components)
        lines = ["entry                  records   share   drawn   tokens mean/max   patches mean/max   answers"]
        for component in self.components:
            rows = self.sizes[self.sizes[:, 0] == component.group]
            line = f"{component.name:20} {len(component):9d} {component.entry.weight / total:7.1%} "
            line += f"{len(rows) / len(self.sizes):7.1%}"
            if len(rows):
                mean, top = rows.mean(0), rows.max(0)
                line += f"   {mean[1]:8.0f} {top[1]:7d}   {mean[2]:8.0f} {top[2]:8d}   {mean[3]:7.0f}"
            lines.append(line)
        lines.append(f"{len(self.sizes)} samples; {self.skipped} records skipped, {len(self.bad)} bad")
        lines += [f"  bad: {item.id}: {item.reason}" for item in self.bad[:5]]
        lines.append(
            "row: tokens patches answers | tokens filled, patches filled, samples, dense attention"
            + (f", pairs and patch_pairs for pair_block={PAIR_BLOCK}" if self.configured.pairs else "")
        )
        for fill, name in [(self.configured, "configured"), *((fill, "proposed") for fill in self.proposed)]:
            budget = fill.budget
            lines.append(
                f"  {name:10} {budget.tokens:6d} {budget.patches:6d} {budget.targets:5d} | {fill.token_fill:.0%}  "
                f"{fill.patch_fill:.0%}  {fill.samples:.2f}  {fill.dense_attention:.1f}x"
                + (f"  {fill.pairs} {fill.patch_pairs}" if fill.pairs else "")
            )
        return "\n".join(lines)


def mix_report(
    table: Mapping[str, Mapping], settings: SampleSettings, seed: int = 0, samples: int = 1000, max_bad_fraction=0.01
) -> MixReport:
    """Draws `samples` samples of a mixture table, uncropped, and proposes row sizes with few empty tokens."""
    components = build_components(table, dataclasses.replace(settings, budget=UNBOUNDED), max_bad_fraction)
    phase = first_phase({c.name: len(c) for c in components}, {c.name: c.entry.weight for c in components})
    mixture = Mixture(components, seed, [phase])
    sizes, drawn, bad, skipped, index = [], [], [], 0, 0
    while len(sizes) < samples and index < 2 * samples + 1000:
        try:
            sample = mixture.sample(index)
            skipped += sample is None
            if sample is not None:
                drawn.append(sample)
                sizes.append((sample.group, len(sample.tokens), sample.n_patches, len(sample.target_tokens)))
        except BadRecord as error:
            bad.append(BadSample(*mixture.describe(index), str(error)))
        index += 1
    quarantine = Quarantine(max_bad_fraction=max_bad_fraction)
    quarantine.add(index, bad)
    quarantine.check(final=True)
    if not sizes:
        raise UserError(f"none of {index} draws gave a sample; covisibility_min leaves every pair out")
    sizes = np.array(sizes, np.int64).reshape(-1, 4)
    fills = [row_fill(sizes[:, 1:], settings.budget), *propose(sizes[:, 1:], settings.vision.merge_size**2)]
    fills = [with_pairs(fill, drawn, sizes[:, 1:]) for fill in fills]
    return MixReport(components, sizes, skipped, bad, fills[0], fills[1:])


def propose(sizes: np.ndarray, merge_area: int, count: int = 3) -> list[RowFill]:
    """Row sizes for samples of (tokens, patches, answers) [N, 3], the best filled first.

    A row holds at least the largest sample and at most four of them; patches and answers are chosen so that they stop a
    row in one of 200 cases only.
    """
    largest = sizes.max(0)
    unit = max(16, 2 ** int(np.log2(max(1, largest[0])) - 3))
    fills = []
    for tokens in range(int(-(-largest[0] // unit) * unit), int(4 * largest[0]) + unit, unit):
        rows = _rows(sizes, np.array([tokens, 2**30, 2**30]))
        patches, targets = np.maximum(np.quantile(rows[:, 1:3], 0.995, axis=0), largest[1:]).astype(int)
        patch_unit = -(-4 * unit // merge_area) * merge_area
        budget = RowBudget(tokens, -(-patches // patch_unit) * patch_unit, -(-targets // 16) * 16)
        fills.append(row_fill(sizes, budget))
    return sorted(fills, key=lambda fill: -round(fill.token_fill, 2))[:count]


def row_fill(sizes: np.ndarray, budget: RowBudget) -> RowFill:
    """How full rows of `budget` get with samples of (tokens, patches, answers) [N, 3]; larger ones count as cropped."""
    limit = np.array([budget.tokens, budget.patches, budget.targets])
    rows = _rows(np.minimum(sizes, limit), limit)
    mean = rows.mean(0)
    return RowFill(
        budget,
        token_fill=mean[0] / budget.tokens,
        patch_fill=mean[1] / max(1, budget.patches),
        samples=mean[3],
        dense_attention=budget.tokens**2 / mean[4],
    )


def with_pairs(fill: RowFill, samples: Sequence[Sample], sizes: np.ndarray) -> RowFill:
    """The fill with the pairs of blocks that the fullest of its rows needs; unchanged where rows are short."""
    if fill.budget.tokens < 4 * PAIR_BLOCK:
        return fill
    limit = np.array([fill.budget.tokens, fill.budget.patches, fill.budget.targets])
    counting = RowBudget(fill.budget.tokens // PAIR_BLOCK * PAIR_BLOCK, 0, 0, pair_block=PAIR_BLOCK)
    taken = [needs([samples[i] for i in row], counting) for row in _members(np.minimum(sizes, limit), limit)]
    pairs, patch_pairs = (max(getattr(t, name) for t in taken) for name in ("pairs", "patch_pairs"))
    return dataclasses.replace(fill, pairs=pairs, patch_pairs=patch_pairs)


def _rows(sizes: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """Sums of full rows: tokens, patches, answers, samples, squared tokens, float64 [M, 5]."""
    parts = (np.array([[*sizes[i], 1, sizes[i, 0] ** 2] for i in row], float) for row in _members(sizes, limit))
    return np.array([part.sum(0) for part in parts])


def _members(sizes: np.ndarray, limit: np.ndarray) -> list[list[int]]:
    """Numbers of the samples (of sizes [N, 3]) in each full row, as the plan makes rows of streams."""
    full = []
    for stream in range(min(STREAMS, len(sizes))):
        row, since, taken = [], len(full), np.zeros(3)
        for number in range(stream, len(sizes), STREAMS):
            if row and (taken + sizes[number] > limit).any():
                full.append(row)
                row, taken = [], np.zeros(3)
            row.append(number)
            taken = taken + sizes[number]
        # Too few samples to fill one row: what there is stands for it.
        full += [row] if len(full) == since else []
    return full


def show(mixture: Mixture, index: int, picture: pathlib.Path | str | None = None) -> str:
    """Sample `index` of a mixture as text; with `picture`, a PNG of its images and labels as the model sees them."""
    made = mixture.make(index)
    component = mixture.components[mixture.draw(index).component]
    if made is None:
        return f"index {index}: a record of {component.name} that is skipped (covisibility)"
    record, sample = made
    lines = [f"{sample.id}: record {record.id}, task {component.task.name}"]
    for number, plan in zip(sample.views, sample.images, strict=True):
        view, camera = record.views[number], record.views[number].camera
        lines.append(
            f"image {view.image.name}: stored {view.image.width} x {view.image.height}, unified {camera.width} x "
            f"{camera.height} (fx {camera.fx:.1f}, fy {camera.fy:.1f}), seen {plan.final[0]} x {plan.final[1]}, "
            f"{plan.n_patches} patches, {plan.n_visual} visual tokens"
            + (", mirrored" if plan.flip else "")
            + (f", cropped to {plan.crop}" if plan.crop else "")
        )
    lines.append(f"{len(sample.tokens)} tokens, {len(sample.target_tokens)} supervised; answers in [brackets]:")
    lines.append(conversation(sample, component))
    if picture is not None:
        draw_sample(record, sample, component.settings.vision).save(picture)
    return "\n".join(lines)


def conversation(sample: Sample, component: Component) -> str:
    """The sample's tokens as text: visual tokens left out, supervised spans in [brackets]."""
    supervised = np.zeros(len(sample.tokens), bool)
    supervised[sample.target_slot + 1] = True
    visible = np.ones(len(sample.tokens), bool)
    visible[sample.visual_slot] = False
    ends = [0, *(np.flatnonzero(np.diff(supervised)) + 1), len(sample.tokens)]
    parts = []
    for start, end in itertools.pairwise(ends):
        text = component.settings.chat.decode(sample.tokens[start:end][visible[start:end]])
        parts.append(f"[{text.strip()}]\n" if supervised[start] else text)
    return "".join(parts)


def draw_sample(record: Record, sample: Sample, spec: VisionSpec) -> Image.Image:
    """The sample's images side by side with the record's labels: points, boxes, and lines between matches.

    Small images are enlarged by a whole number, so that the labels stay legible.
    """
    pictures = [Image.fromarray(pixels(plan, spec)) for plan in sample.images]
    zoom = max(1, 1024 // max(max(picture.size) for picture in pictures))
    pictures = [picture.resize((picture.width * zoom, picture.height * zoom), 0) for picture in pictures]
    lefts = np.cumsum([0, *(picture.width for picture in pictures)])
    sheet = Image.new("RGB", (int(lefts[-1]), max(picture.height for picture in pictures)))
    for picture, left in zip(pictures, lefts[:-1], strict=True):
        sheet.paste(picture, (int(left), 0))
    canvas = ImageDraw.Draw(sheet)

    def place(view: int, points) -> np.ndarray:
        camera, slot = record.views[view].camera, sample.views.index(view)
        scale = zoom * np.divide(sample.images[slot].final, (camera.width, camera.height))
        return np.reshape(points, (-1, 2)) * scale + [lefts[slot], 0]

    for labels in (labels for labels in record.depth if labels.view in sample.views):
        for (x, y), depth in zip(place(labels.view, labels.points_px), labels.depth_m, strict=True):
            canvas.ellipse((x - 2, y - 2, x + 2, y + 2), fill=RED)
            canvas.text((x + 3, y - 5), f"{depth:.1f}", fill=RED)
    for labels in (labels for labels in record.objects if labels.view in sample.views):
        for (x1, y1, x2, y2), name in zip(
            place(labels.view, labels.boxes_px).reshape(-1, 4), labels.names, strict=True
        ):
            canvas.rectangle((min(x1, x2), y1, max(x1, x2), y2), outline=RED)
            canvas.text((x1 + 2, y1 + 1), name, fill=RED)
    if record.matches is not None and {0, 1} <= set(sample.views):
        ends = zip(place(0, record.matches.points0_px), place(1, record.matches.points1_px), strict=True)
        for a, b in ends:
            canvas.line((*a, *b), fill=RED)
    return sheet


def pixels(plan: ImagePlan, spec: VisionSpec) -> np.ndarray:
    """The image as the vision tower sees it, uint8 [H, W, 3]: `image.patchify` undone."""
    rows, columns = plan.grid[0] // spec.merge_size, plan.grid[1] // spec.merge_size
    shape = rows, columns, spec.merge_size, spec.merge_size, 3, spec.patch_size, spec.patch_size
    blocks = plan.load(spec).reshape(shape)
    return blocks.transpose(0, 2, 5, 1, 3, 6, 4).reshape(plan.final[1], plan.final[0], 3)


@dataclasses.dataclass(frozen=True, eq=False)
class CheckReport:
    """What walking through components found; `quarantine.check(final=True)` raises if it is too much."""

    counts: dict[str, collections.Counter]
    bad: list[BadSample]
    quarantine: Quarantine

    def text(self, most: int = 20) -> str:
        """Counts a component and the first `most` reasons."""
        lines = [
            f"{name}: {count['records']} records, {count['skipped']} skipped, {count['bad']} bad, "
            f"{count['points_removed']} labels removed"
            for name, count in self.counts.items()
        ]
        lines += [f"  {item.id}: {item.reason}" for item in self.bad[:most]]
        return "\n".join(lines + ([f"  and {len(self.bad) - most} more"] if len(self.bad) > most else []))


def check(components: Sequence[Component], quarantine: Quarantine, decode: bool = True) -> CheckReport:
    """Reads every record of every component, makes its sample and (`decode`) reads its images.

    Build the components with `max_bad_fraction = 1`, so that all lines are listed and the quarantine judges at the end.
    """
    counts, bad = {}, []
    for component in components:
        count = counts[component.name] = collections.Counter(points_removed=component.source.points_removed)
        found = bad_lines(component)
        for index in range(len(component)):
            id = f"{component.name}/{index}"
            try:
                sample = component.sample(index, (0, index), id)
                count["skipped"] += sample is None
                for plan in sample.images if sample and decode else ():
                    plan.ref.load()
            except BadRecord as error:
                found.append(BadSample(id, component.name, str(component.source.path), str(error)))
        count["records"], count["bad"] = len(component) + len(component.source.bad), len(found)
        quarantine.add(count["records"], found)
        bad += found
    return CheckReport(counts, bad, quarantine)
