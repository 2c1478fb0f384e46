"""Frames of a video file, as they are seen, by OpenCV."""

from collections.abc import Iterator

import numpy as np

from vlm3_jax.errors import UserError
from vlm3_jax.formats import optional
from vlm3_jax.storage import AnyPath
from vlm3_jax.storage.folders import fetched_file

SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")


def frames(path: AnyPath, per_second: float) -> Iterator[tuple[int, float, np.ndarray]]:
    """(number, seconds, uint8 [H, W, 3]) of about `per_second` frames a second (all, if it has fewer), the first first.

    Upright: the rotation in the file is applied. UserError if it cannot be read as a video.
    """
    video, rate = _opened(path)
    try:
        number, due = 0, 0.0
        while video.grab():
            # A hundredth of a frame, so that rounding skips none.
            if number / rate >= due - 0.01 / rate:
                good, pixels = video.retrieve()
                if not good:
                    raise UserError(f"{path}: frame {number} cannot be decoded")
                yield number, number / rate, np.ascontiguousarray(pixels[..., ::-1])
                due += 1 / per_second
            number += 1
        if not number:
            raise UserError(f"{path}: there is no frame in it")
    finally:
        video.release()


def expected(path: AnyPath, per_second: float) -> int:
    """About how many frames `frames` will give, by the file's header; 0 if it does not tell."""
    try:
        video, rate = _opened(path)
    except UserError:
        return 0
    count = max(0.0, video.get(optional.module("cv2", "video").CAP_PROP_FRAME_COUNT))
    video.release()
    return round(count * min(1.0, per_second / rate))


def _opened(path: AnyPath):
    """(OpenCV's reader, frames a second)."""
    cv2 = optional.module("cv2", "video")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        local = fetched_file(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read as a video ({error.strerror or error})") from None
    video = cv2.VideoCapture(str(local))
    if not video.isOpened():
        raise UserError(f"{path}: cannot be read as a video")
    rate = video.get(cv2.CAP_PROP_FPS)
    return video, rate if 0 < rate < 1000 else 25.0
