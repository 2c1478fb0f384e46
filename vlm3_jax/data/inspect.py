"""Looking at data before training on them: `vlm3 data show` and `check` as plain functions."""

import collections
import dataclasses
import itertools
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from vlm3_jax.data.component import Component
from vlm3_jax.data.mixture import Mixture
from vlm3_jax.data.quarantine import Quarantine, bad_lines
from vlm3_jax.data.samples import Bad, PassedOver, Sample
from vlm3_jax.errors import BadRecord
from vlm3_jax.processor.image import ImageLayout, VisionSpec
from vlm3_jax.records import LABELS, Record

RED = (230, 40, 40)
# Few photos show labels farther away, and those in millimetres nearly always come out above it.
FAR_M = 500


def show(mixture: Mixture, index: int, picture: pathlib.Path | str | None = None) -> str:
    """Sample `index` of a mixture as text; with `picture`, a PNG of its images and labels as the model sees them."""
    sample, draw = mixture.sample(index), mixture.draw(index)
    component = mixture.components[draw.component]
    if isinstance(sample, PassedOver | Bad):
        return f"index {index}: record {draw.record} of {component.name} gives no sample: {sample.reason}"
    record = sample.record
    lines = [f"{sample.id}: record {record.id}, task {component.task.name}"]
    for number, layout in zip(sample.views, sample.images, strict=True):
        view, camera = record.views[number], record.views[number].camera
        lines.append(
            f"image {view.image.name}: stored {view.image.width} x {view.image.height}, unified {camera.width} x "
            f"{camera.height} (fx {camera.fx:.1f}, fy {camera.fy:.1f}), seen {layout.final[0]} x {layout.final[1]}, "
            f"{layout.n_patches} patches, {layout.n_visual} visual tokens"
            + (", mirrored" if layout.flip else "")
            + (f", cropped to {layout.crop}" if layout.crop else "")
        )
    lines.append(f"{len(sample.tokens)} tokens, {len(sample.target_tokens)} supervised; answers in [brackets]:")
    lines.append(conversation(sample, component))
    if picture is not None:
        draw_sample(sample, component.settings.vision).save(picture)
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


def draw_sample(sample: Sample, spec: VisionSpec) -> Image.Image:
    """The sample's images side by side with their labels: points, boxes, and lines between matches.

    Small images are enlarged by a whole number, so that the labels stay legible.
    """
    pictures = [Image.fromarray(pixels(layout, spec)) for layout in sample.images]
    zoom = max(1, 1024 // max(max(picture.size) for picture in pictures))
    pictures = [picture.resize((picture.width * zoom, picture.height * zoom), 0) for picture in pictures]
    lefts = np.cumsum([0, *(picture.width for picture in pictures)])
    sheet = Image.new("RGB", (int(lefts[-1]), max(picture.height for picture in pictures)))
    for picture, left in zip(pictures, lefts[:-1], strict=True):
        sheet.paste(picture, (int(left), 0))
    canvas = ImageDraw.Draw(sheet)

    def place(view: int, points) -> np.ndarray:
        camera, slot = sample.record.views[view].camera, sample.views.index(view)
        scale = zoom * np.divide(sample.images[slot].final, (camera.width, camera.height))
        return np.reshape(points, (-1, 2)) * scale + [lefts[slot], 0]

    for label in sample.record.labels:
        if set(label.views) <= set(sample.views):
            label.draw(canvas, place, RED)
    return sheet


def pixels(layout: ImageLayout, spec: VisionSpec) -> np.ndarray:
    """The image as the vision tower sees it, uint8 [H, W, 3]: `image.patchify` undone."""
    rows, columns = layout.grid[0] // spec.merge_size, layout.grid[1] // spec.merge_size
    shape = rows, columns, spec.merge_size, spec.merge_size, 3, spec.patch_size, spec.patch_size
    blocks = layout.load(spec).reshape(shape)
    return blocks.transpose(0, 2, 5, 1, 3, 6, 4).reshape(layout.final[1], layout.final[0], 3)


@dataclasses.dataclass(frozen=True, eq=False)
class CheckReport:
    """What walking through components found; `quarantine.check(final=True)` raises if it is too much."""

    counts: dict[str, collections.Counter]
    # By component and kind of label: smallest, median and largest length in metres.
    metres: dict[str, dict[str, tuple[float, float, float]]]
    bad: list[Bad]
    quarantine: Quarantine

    def text(self, most: int = 20) -> str:
        """Counts a component, its lengths and the first `most` reasons."""
        lines = []
        for name, count in self.counts.items():
            lines.append(
                f"{name}: {count['records']} records, {count['passed_over']} passed over, {count['bad']} bad, "
                f"{count['points_removed']} labels removed"
            )
            for kind, (low, middle, high) in self.metres[name].items():
                lines.append(f"  {kind}: {low:.4g} to {high:.4g} m, median {middle:.4g} m")
                if high > FAR_M:
                    lines.append(f"  warning: {kind} above {FAR_M} m; are these millimetres? Lengths must be in metres")
        lines += [f"  {item.id}: {item.reason}" for item in self.bad[:most]]
        return "\n".join(lines + ([f"  and {len(self.bad) - most} more"] if len(self.bad) > most else []))


def check(components: Sequence[Component], quarantine: Quarantine, decode: bool = True) -> CheckReport:
    """Reads every record of every component, makes its sample and (`decode`) reads its images.

    Build the components with `max_bad_fraction = 1`, so that all lines are listed and the quarantine judges at the end.
    """
    counts, metres, bad = {}, {}, []
    for component in components:
        count = counts[component.name] = collections.Counter()
        found, lengths = bad_lines(component), collections.defaultdict(list)
        for index in range(len(component)):
            id = f"{component.name}/{index}"
            sample = component.sample(index, (0, index), id)
            if isinstance(sample, Bad):
                found.append(sample)
            elif isinstance(sample, PassedOver):
                count["passed_over"] += 1
            else:
                for kind, values in _lengths(sample.record).items():
                    lengths[kind].append(values)
                found += _unreadable(sample, component) if decode else []
        # Those that the source has set aside are passed over too.
        count["passed_over"] -= len(component.source.bad)
        count["records"], count["bad"] = len(component), len(found)
        count["points_removed"] = component.source.points_removed
        together = {kind: np.concatenate(values) for kind, values in lengths.items()}
        metres[component.name] = {
            kind: (float(v.min()), float(np.median(v)), float(v.max())) for kind, v in together.items() if len(v)
        }
        quarantine.add(count["records"], found)
        bad += found
    return CheckReport(counts, metres, bad, quarantine)


def _unreadable(sample: Sample, component: Component) -> list[Bad]:
    """The first image of a sample that cannot be read."""
    for layout in sample.images:
        try:
            layout.ref.load()
        except BadRecord as error:
            return [Bad(sample.id, component.name, layout.ref.name, str(error))]
    return []


def _lengths(record: Record) -> dict[str, np.ndarray]:
    """What a record measures in metres, float32 [N] each: its labels' lengths and how far its cameras are apart."""
    found = {}
    for name in LABELS:
        values = [label.metres() for label in record.labels if isinstance(label, LABELS[name])]
        found[name] = np.concatenate([np.zeros(0), *values]).astype(np.float32)
    poses = [view.world_T_cam for view in record.views[:2] if view.world_T_cam is not None]
    if record.metric and len(poses) == 2:
        found["baseline"] = np.linalg.norm(poses[1][:3, 3] - poses[0][:3, 3], keepdims=True).astype(np.float32)
    return found
