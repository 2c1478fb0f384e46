"""Questions about videos: the second entry point, for inference only (training reads still images)."""

from collections.abc import Sequence

import numpy as np

from vlm3_jax.infer.engine import Engine
from vlm3_jax.infer.sampling import GREEDY, Sampling
from vlm3_jax.processor.image import ImageLayout
from vlm3_jax.processor.video import VideoLayout, VideoSpec, video_layout, video_patches, video_prompt


def ask_video(
    engine: Engine,
    frames,
    question: str,
    fps: float | None = None,
    times_s: Sequence[float] | np.ndarray | None = None,
    images: Sequence[ImageLayout] = (),
    sampling: Sampling = GREEDY,
) -> str:
    """The answer to a question about a video, and about still `images` shown before it.

    `frames`: uint8 [F, H, W, 3], or a sequence of such frames or PIL images. Give their frames per second as `fps`; the
    checkpoint's video processor says how many per second are looked at (2 for the released ones). Or give
    the time of every frame as `times_s`; then all are. UserError if the frames cannot be shown.
    """
    spec = VideoSpec.from_dir(engine.chat.model_dir)
    return ask_media(engine, [*images, video_layout(frames, spec, fps, times_s)], [question], spec, sampling)[0]


def ask_media(
    engine: Engine,
    media: Sequence[VideoLayout | ImageLayout],
    questions: Sequence[str],
    spec: VideoSpec,
    sampling: Sampling = GREEDY,
) -> list[str]:
    """Answers to questions about videos and images in any order, each asked as if it were the only one."""
    prompt = video_prompt(media, questions, engine.chat)
    tokens = engine.generate([prompt], [video_patches(media, spec)], sampling)[0]
    return [engine.chat.decode(row) for row in tokens]
