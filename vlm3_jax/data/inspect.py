"""Looking at samples before training on them: `vlm3 data show` as a plain function."""

import itertools
import pathlib

import numpy as np

from vlm3_jax.data.component import Component
from vlm3_jax.data.drawing import draw_sample
from vlm3_jax.data.mixture import Mixture
from vlm3_jax.data.samples import Bad, PassedOver, Sample


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
    if picture is not None and sample.images:
        maps = component.source[draw.record].depth_maps
        draw_sample(sample, component.settings.vision, maps).save(picture)
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
