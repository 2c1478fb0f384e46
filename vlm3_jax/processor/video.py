"""Videos for inference: frames with times -> float32 patches and a prompt, as transformers' Qwen3-VL processor does it.

Frames are chosen at a rate, all resized to one size, and every `temporal_patch_size` of them share their patches: a
group, which the vision tower sees like an image of its own. The prompt gives each group's time in words. Two different
frames share a patch, so the two temporal slices of the patch weight cannot be summed: patches are C * T * p * p wide
and normalised here, on the host. Still images beside a video travel in the same form.
"""

import dataclasses
import math
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from vlm3_jax.errors import UserError
from vlm3_jax.model.config import normalisation, processor_fields
from vlm3_jax.processor.bicubic import resize
from vlm3_jax.processor.chat import ChatFormat, Frames
from vlm3_jax.processor.image import MAX_ASPECT, ImageLayout, Patches, VisionSpec, patchify, pixel_bounds
from vlm3_jax.processor.photo import open_photo
from vlm3_jax.processor.prompt import Prompt, make_prompt


@dataclasses.dataclass(frozen=True)
class VideoSpec:
    """What the vision tower and the checkpoint's video processor expect of a video.

    `min_pixels` and `max_pixels` bound the area of all frames together, `frame_pixels` that of one frame (None: no
    bound); `fps` frames per second are chosen, at least `min_frames` and at most `max_frames`.
    """

    vision: VisionSpec
    min_pixels: int
    max_pixels: int
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    fps: float = 2.0
    min_frames: int = 4
    max_frames: int = 768
    frame_pixels: int | None = None

    @classmethod
    def from_dir(cls, model_dir) -> "VideoSpec":
        """From the video processor settings of an HF directory; without any, those for images, as transformers does."""
        model_dir = pathlib.Path(model_dir)
        names = "video_preprocessor_config.json", "preprocessor_config.json"
        fields = processor_fields(model_dir, "video_processor", *names)
        vision = VisionSpec.from_dir(model_dir)
        low, high = pixel_bounds(fields, f"{model_dir}: the video processor config")
        mean, std = normalisation(fields, (0.5,) * 3)
        given = {name: fields.integer(name) for name in ("min_frames", "max_frames") if name in fields}
        if "fps" in fields:
            given["fps"] = fields.number("fps", above=0)
        if fields.flag("cap_pixels_per_frame", False):
            given["frame_pixels"] = fields.integer("max_video_tokens", default=768) * vision.factor**2
        return cls(vision, low, high, mean, std, **given)


@dataclasses.dataclass(frozen=True)
class FrameGroup(Patches):
    """The patches that `temporal_patch_size` frames share."""

    grid: tuple[int, int]
    merge_size: int


@dataclasses.dataclass(frozen=True, eq=False)
class VideoLayout:
    """The chosen frames (uint8 [H, W, 3] each), the time of each group of them, and the size they are resized to.

    `final` (w, h); all groups have the same `group` of patches.
    """

    frames: tuple[np.ndarray, ...]
    times_s: tuple[float, ...]
    final: tuple[int, int]
    group: FrameGroup

    @property
    def groups(self) -> tuple[FrameGroup, ...]:
        """One for each of `times_s`."""
        return (self.group,) * len(self.times_s)

    @property
    def shown(self) -> Frames:
        """The video in a prompt."""
        return Frames(self.times_s, self.group.n_visual)

    def load(self, spec: VideoSpec) -> list[np.ndarray]:
        """float32 [n_patches, C * T * p * p] of each group; the last frame fills up an incomplete group."""
        # transformers normalises a video in one step, a still image in two: the roundings differ.
        mean, std = (np.array(v, np.float32)[:, None] * np.float32(255) for v in (spec.mean, spec.std))
        values = (np.arange(256, dtype=np.float32) - mean) / std
        width, height = self.final
        cut = [patchify(resize(frame, height, width), spec.vision) for frame in self.frames]
        T = spec.vision.temporal_patch_size
        cut += cut[-1:] * (len(self.times_s) * T - len(cut))
        return [_look_up(values, cut[first : first + T]) for first in range(0, len(cut), T)]


def video_layout(
    frames,
    spec: VideoSpec,
    fps: float | None = None,
    times_s: Sequence[float] | np.ndarray | None = None,
    name: str = "video",
) -> VideoLayout:
    """The layout of a video: uint8 [F, H, W, 3], or a sequence of such frames or PIL images, all of one size.

    Give either `fps`, the frames per second of `frames`, from which `spec.fps` per second are chosen evenly; or
    `times_s`, the times of frames that are all shown. UserError (with `name`) if the frames cannot be shown.
    """
    chosen, times = _chosen(len(frames), spec, fps, times_s, name)
    pixels = tuple(_pixels(frames[index], name) for index in chosen)
    if len(sizes := {frame.shape for frame in pixels}) > 1:
        raise UserError(f"{name}: frames of different sizes ({', '.join(f'{w} x {h}' for h, w, _ in sorted(sizes))})")
    T = spec.vision.temporal_patch_size
    if len(pixels) < T:
        raise UserError(f"{name}: {len(pixels)} frame(s); a video needs at least {T}")
    height, width = smart_resize(len(pixels), *pixels[0].shape[:2], spec, name)
    times += times[-1:] * (-len(times) % T)
    grid = height // spec.vision.patch_size, width // spec.vision.patch_size
    return VideoLayout(
        frames=pixels,
        times_s=tuple((times[i] + times[i + T - 1]) / 2 for i in range(0, len(times), T)),
        final=(width, height),
        group=FrameGroup(grid, spec.vision.merge_size),
    )


def _chosen(count: int, spec: VideoSpec, fps, times_s, name: str) -> tuple[Sequence[int], list[float]]:
    """Which frames are shown, and their times in seconds."""
    if (fps is None) == (times_s is None):
        raise UserError(f"{name}: give either the frames per second (fps) or the time of every frame (times_s)")
    if times_s is not None:
        if len(times_s) != count:
            raise UserError(f"{name}: {len(times_s)} times for {count} frames; give one for each frame")
        return range(count), list(map(float, times_s))
    if not fps > 0:
        raise UserError(f"{name}: {fps} frames per second; expected a positive number")
    chosen = sample_frames(count, fps, spec)
    return chosen, [index / fps for index in chosen]


def sample_frames(count: int, fps: float, spec: VideoSpec) -> list[int]:
    """Which of `count` frames at `fps` per second are shown: evenly spread, first and last among them."""
    wanted = min(max(int(count / fps * spec.fps), spec.min_frames), spec.max_frames, count)
    return np.linspace(0, count - 1, wanted).round().astype(int).tolist()


def smart_resize(n_frames: int, height: int, width: int, spec: VideoSpec, name: str = "video") -> tuple[int, int]:
    """The (height, width) of every frame: multiples of the visual token's side, area of all frames within the bounds.

    Differs from the rule for images: frames smaller than a visual token are enlarged first. UserError above an aspect
    of 200.
    """
    factor, most, given = spec.vision.factor, spec.max_pixels, f"{width} x {height}"
    if spec.frame_pixels is not None:
        most = n_frames * max(min(spec.frame_pixels, most // n_frames), int(spec.min_pixels * 1.05))
    if min(height, width) < factor:
        enlarge = max(factor / height, factor / width)
        height, width = int(height * enlarge), int(width * enlarge)
    if max(height, width) / min(height, width) > MAX_ASPECT:
        raise UserError(f"{name}: {given} pixels has an aspect ratio above {MAX_ASPECT}")
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    T = spec.vision.temporal_patch_size
    area = round(n_frames / T) * T * new_height * new_width
    if area > most:
        shrink = math.sqrt(n_frames * height * width / most)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif area < spec.min_pixels:
        grow = math.sqrt(spec.min_pixels / (n_frames * height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width


def video_prompt(
    media: Sequence[VideoLayout | ImageLayout], questions: str | Sequence[str], chat: ChatFormat
) -> Prompt:
    """The prompt of one or more questions about videos and images, shown in the order given."""
    shown = [layout.shown if isinstance(layout, VideoLayout) else layout.n_visual for layout in media]
    looks = [look for layout in media for look in (layout.groups if isinstance(layout, VideoLayout) else (layout,))]
    return make_prompt(shown, looks, questions, chat)


def video_patches(media: Sequence[VideoLayout | ImageLayout], spec: VideoSpec) -> list[np.ndarray]:
    """float32 patches [n, C * T * p * p] of every image and group of frames, in the order of `video_prompt`."""
    arrays = []
    for layout in media:
        if isinstance(layout, VideoLayout):
            arrays += layout.load(spec)
        else:
            arrays.append(still_patches(layout.load(spec.vision), spec.vision))
    return arrays


def still_patches(patches: np.ndarray, spec: VisionSpec) -> np.ndarray:
    """uint8 patches of an image [n, C * p * p] -> float32 [n, C * T * p * p], the same at all moments of a group.

    These are the `pixel_values` of transformers' image processor.
    """
    mean, std = (np.array(v, np.float32)[:, None] for v in (spec.mean, spec.std))
    values = ((np.arange(256) * (1 / 255)).astype(np.float32) - mean) / std
    return _look_up(values, [patches] * spec.temporal_patch_size)


def _look_up(values: np.ndarray, cut: Sequence[np.ndarray]) -> np.ndarray:
    """T uint8 patches [n, C * p * p] -> float32 [n, C * T * p * p]; `values` float32 [C, 256] of each byte."""
    channels, n = len(values), len(cut[0])
    stacked = np.stack([patches.reshape(n, channels, -1) for patches in cut], 2)
    return values[np.arange(channels)[:, None, None], stacked].reshape(n, -1)


def _pixels(frame, name: str) -> np.ndarray:
    if isinstance(frame, Image.Image):
        return open_photo(frame).pixels
    if isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3:
        return frame
    what = f"{frame.dtype} {list(frame.shape)}" if isinstance(frame, np.ndarray) else type(frame).__name__
    raise UserError(f"{name}: a frame is {what}; expected uint8 [height, width, 3] or a PIL image")
