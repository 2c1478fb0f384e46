"""Cameras for images that come without: `vlm3 data calibrate` as plain functions.

Every image gets a file beside it (`processor/intrinsics.py`), which later runs keep; so one that was stopped goes on.
"""

import collections
import os
import pathlib
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps

from vlm3_jax import storage
from vlm3_jax.camera import Camera
from vlm3_jax.data.progress import Progress
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.processor import intrinsics
from vlm3_jax.records import FORMATS, MAX_IMAGE_PIXELS, orientation

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class AnyCalib:
    """A calibrator (`intrinsics.Calibrator`): AnyCalib (Tirado-Garin and Civera 2025) by its authors' own package.

    It fits a pinhole to one image, on a GPU where torch finds one. UserError if the package is not installed.
    """

    def __init__(self, weights: str = "anycalib_pinhole"):
        try:
            import anycalib
            import torch
        except ImportError as error:
            raise UserError(
                f"AnyCalib is not installed ({error}); clone javrtg/AnyCalib from GitHub and `pip install` the clone, "
                "or give the cameras with --camera"
            ) from None
        self.name = f"AnyCalib {weights}"
        self._torch, self._device = torch, "cuda" if torch.cuda.is_available() else "cpu"
        self._model = anycalib.AnyCalib(model_id=weights).to(self._device).eval()

    def __call__(self, image: Image.Image) -> Camera:
        """The camera of the upright image. BadRecord if what was fitted is implausible."""
        pixels = np.array(ImageOps.exif_transpose(image).convert("RGB"))
        height, width = pixels.shape[:2]
        values = self._torch.from_numpy(pixels).to(self._device).permute(2, 0, 1).float() / 255
        fx, fy, cx, cy = self._model.predict(values, cam_id="pinhole")["intrinsics"].tolist()
        # It counts from the corner of the first pixel.
        return Camera(fx, fy, cx - 0.5, cy - 0.5, width, height).plausible(self.name)


def calibrate(
    folder: str | os.PathLike,
    flag: intrinsics.Rule | None = None,
    calibrator: Callable[[], intrinsics.Calibrator] | None = None,
    say: Callable[[str], None] = print,
    progress: bool = True,
) -> collections.Counter:
    """Writes the camera of every image below `folder` beside it, and says of each what was used; counts by source.

    `flag` and what `calibrator` makes (when it is first needed): as of `intrinsics.find`, whose order decides. A file
    that is there is kept. An image that cannot be read, or of which nothing is known, is said and counted as "none".
    UserError if there is no image, two would share a file, or a file that is there is no camera of its image.
    """
    root = storage.local_path(folder)
    if not root.is_dir():
        raise UserError(f"{folder}: {'it is a file; give its folder' if root.exists() else 'no such folder'}")
    paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not paths:
        raise UserError(f"{folder}: no images ({', '.join(SUFFIXES)}) in this folder or below it")
    _check_names(paths)
    counts, made = collections.Counter(), []

    def calibrated(image):
        if not made:
            made.append(calibrator())
        return made[0](image), made[0].name

    with Progress("calibrating", len(paths), progress) as bar:
        for path in paths:
            camera, source = _one(path, flag, calibrated if calibrator else None)
            counts["none" if camera is None else source] += 1
            size = camera and f"{camera.width} x {camera.height}, focal length {camera.fx:.1f} px "
            bar.say(f"{path}: {size}({source})" if camera else f"{path}: {source}", say)
            bar.advance()
    return counts


def _check_names(paths: list[pathlib.Path]) -> None:
    beside = collections.Counter(map(intrinsics.sidecar, paths))
    if shared := [path for path in paths if beside[intrinsics.sidecar(path)] > 1]:
        raise UserError(f"{shared[0]}, {shared[1].name}: their cameras would share a file; rename one of the images")


def _one(path: pathlib.Path, flag, calibrated) -> tuple[Camera | None, str]:
    """The camera of an image and where it is known from, or None and why there is none."""
    beside = intrinsics.sidecar(path)
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size if orientation(image) < 5 else image.size[::-1]
            if width * height > MAX_IMAGE_PIXELS:
                return None, f"set aside: {width} x {height} pixels is above {MAX_IMAGE_PIXELS}"
            if beside.is_file():
                return intrinsics.read_sidecar(beside, width, height), "kept"
            found = intrinsics.find(image, path, flag, calibrated)
    except BadRecord as error:
        return None, f"set aside: {error}"
    except (UserError, MemoryError):
        raise
    # Damaged bytes make Pillow raise all kinds of errors.
    except Exception as error:
        return None, f"set aside: cannot be read as an image ({error})"
    if found is None:
        return None, "nothing tells its camera; give --camera, or install AnyCalib and give --calibrator"
    try:
        intrinsics.write_sidecar(path, *found)
    except OSError as error:
        raise UserError(f"{beside}: cannot be written ({error.strerror})") from None
    return found
