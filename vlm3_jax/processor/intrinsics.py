"""Where the camera of an image is known from if its labels do not say: EXIF, a flag, a file beside it, a calibrator.

Cameras are those of the upright image, as it is seen.
"""

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Callable
from typing import Protocol

from PIL import ExifTags, Image

from vlm3_jax import storage
from vlm3_jax.camera import Camera, as_camera
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.files import read_json, write_text
from vlm3_jax.records import orientation
from vlm3_jax.storage import AnyPath

# What a camera's file is called: photo.jpg has photo.camera.json.
SIDECAR = ".camera.json"
# The diagonal of 35 mm film, to which equivalent focal lengths refer (CIPA DCG-001).
FILM_DIAGONAL_MM = math.hypot(36, 24)
# No lens sees so much more across than down; what does is a panorama, or a strip cut from a photo.
LONGEST_ASPECT = 2.5
# What iPhones say of panoramas in EXIF's CustomRendered.
APPLE_PANORAMA = 6
# Millimetres of EXIF's units of resolution: inch, cm, mm, um.
UNITS_MM = {2: 25.4, 3: 10.0, 4: 1.0, 5: 1e-3}

# (width, height) of the upright image in pixels -> its camera.
Rule = Callable[[int, int], Camera]


class Calibrator(Protocol):
    """Estimates the camera of an upright image from its pixels."""

    name: str

    def __call__(self, image: Image.Image) -> Camera:
        """The camera of the image, of any orientation, as it is seen. BadRecord if it is implausible."""


def find(
    image: Image.Image,
    path: str | os.PathLike | AnyPath,
    flag: Rule | None = None,
    calibrated: Callable[[Image.Image], tuple[Camera, str]] | None = None,
) -> tuple[Camera, str] | None:
    """The camera of an image file opened as `image`, and where it is known from; None if nothing tells.

    In this order: its EXIF data ("EXIF"), what the user says of all images ("flag"), the file beside it (its name),
    what a calibrator finds (as that calls itself). UserError if that file is no camera of the image; BadRecord if the
    flag's is implausible for it.
    """
    width, height = image.size if orientation(image) < 5 else image.size[::-1]
    if (camera := of_exif(image)) is not None:
        return camera, "EXIF"
    if flag is not None:
        return flag(width, height).plausible(f"{path}: camera"), "flag"
    if (beside := sidecar(path)).is_file():
        return read_sidecar(beside, width, height), beside.name
    return calibrated and calibrated(image)


def rule(text: str) -> Rule:
    """The cameras of "FX,FY,CX,CY" (px), "fov:DEGREES" (across) or "35mm:FOCAL" (equivalent). UserError if it is none.

    The last two do for images of any size: square pixels, the principal point in the middle.
    """
    kind, _, value = text.rpartition(":")
    try:
        if kind == "fov" and 0 < (degrees := float(value)) < 180:
            return lambda width, height: Camera.from_fov(width, height, degrees)
        if kind == "35mm" and 0 < (film_mm := float(value)) < math.inf:
            return lambda width, height: square(focal_px(film_mm, width, height))(width, height)
        if not kind:
            return _fixed(*map(float, value.split(",")))
    except (TypeError, ValueError):
        pass
    raise UserError(f"{text!r} is no camera; write FX,FY,CX,CY in pixels of the upright image, fov:60 or 35mm:26")


def _fixed(fx: float, fy: float, cx: float, cy: float) -> Rule:
    """One camera, in pixels. BadRecord for an image of which it cannot be."""

    def camera(width: int, height: int) -> Camera:
        if not (0 <= cx <= width and 0 <= cy <= height):
            raise BadRecord(
                f"camera: its principal point ({cx:g}, {cy:g}) is not in the image of {width} x {height}; it is the "
                "camera of an image of another size"
            )
        return Camera(fx, fy, cx, cy, width, height)

    return camera


def focal_px(film_mm: float, width: int, height: int) -> float:
    """The focal length in pixels of a 35 mm equivalent one, by the diagonals."""
    return film_mm * math.hypot(width, height) / FILM_DIAGONAL_MM


def square(focal: float) -> Rule:
    """Cameras of this focal length (px), for images of any size: square pixels, the principal point in the middle."""
    return lambda width, height: Camera(focal, focal, width / 2, height / 2, width, height)


def sidecar(path: str | os.PathLike | AnyPath) -> AnyPath:
    """The file beside an image that holds its camera."""
    path = storage.path(path)
    return path.with_name(path.stem + SIDECAR)


def write_sidecar(path: str | os.PathLike | AnyPath, camera: Camera, source: str) -> AnyPath:
    """Writes the file beside the image at `path`: the fields of `Camera`, and `source`, where it is known from."""
    target = sidecar(path)
    write_text(target, json.dumps({**dataclasses.asdict(camera), "source": source}, indent=1) + "\n")
    return target


def read_sidecar(path: AnyPath, width: int, height: int) -> Camera:
    """The camera in a file, of an image of this size: the matrix K, or the fields of `Camera`. UserError if not.

    A file with anything else in it but `source` is refused: who writes down a distortion means it.
    """
    fields, names = read_json(path), [field.name for field in dataclasses.fields(Camera)]
    given = set(fields) - {"source"} if isinstance(fields, dict) else set()
    try:
        camera = fields["K"] if given == {"K"} else Camera.from_fields(fields)
    except BadRecord as error:
        raise UserError(f"{path}: {error}") from None
    if camera is None:
        raise UserError(f"{path}: expected a JSON object with the matrix K, or with the numbers {', '.join(names)}")
    if other := sorted(given - {"K"} - set(names)):
        raise UserError(f"{path}: {', '.join(other)}: a camera here is a pinhole and no more; undistort the image")
    try:
        return as_camera(camera, width, height, str(path))
    except BadRecord as error:
        raise UserError(str(error)) from None


def of_exif(image: Image.Image) -> Camera | None:
    """The upright image's camera by the EXIF of the stored one: focal length and pixel pitch, else 35 mm equivalent.

    None if it tells neither, the image is a part of what the camera took or put together from several, or the field of
    view is implausible.
    """
    if _panorama(image):
        return None
    try:
        fields = image.getexif().get_ifd(ExifTags.IFD.Exif)
    # Damaged EXIF makes Pillow raise all kinds of errors.
    except Exception:
        return None

    def number(tag) -> float:
        try:
            value = float(fields.get(tag, 0))
        except (TypeError, ValueError, ZeroDivisionError):
            return 0.0
        return value if 0 < value < math.inf else 0.0

    tags, size = ExifTags.Base, sorted(image.size)
    # The pitch is that of the image as it was taken, which may have been resized since.
    taken = sorted((number(tags.ExifImageWidth), number(tags.ExifImageHeight)))
    shrink = [now / before for now, before in zip(size, taken)] if taken[0] else [1.0, 1.0]
    if abs(shrink[0] / shrink[1] - 1) > 0.02:
        return None
    if number(tags.CustomRendered) == APPLE_PANORAMA:
        return None
    focal_mm, film_mm = number(tags.FocalLength), number(tags.FocalLengthIn35mmFilm)
    pitch_mm = UNITS_MM.get(number(tags.FocalPlaneResolutionUnit) or 2, 0.0)
    across, down = number(tags.FocalPlaneXResolution), number(tags.FocalPlaneYResolution)
    found = []
    if focal_mm and pitch_mm and across:
        # Enlarging the middle of the picture leaves the pitch alone; the equivalent focal length has it in it.
        zoom = max(1.0, number(tags.DigitalZoomRatio)) * shrink[1]
        found.append([focal_mm * n / pitch_mm * zoom for n in (across, down or across)])
    if film_mm:
        found.append([focal_px(film_mm, *size)] * 2)
    width, height = image.size
    # From 5 on, orientations swap the axes.
    turned = orientation(image) >= 5
    for fx, fy in found:
        lens = (
            (fy, fx, height / 2, width / 2, height, width) if turned else (fx, fy, width / 2, height / 2, width, height)
        )
        # Some programs write a pitch that means nothing.
        with contextlib.suppress(UserError):
            return Camera(*lens).plausible()
    return None


def _panorama(image: Image.Image) -> bool:
    """Whether an image is no view through one lens, by its shape or by Google's tags of photo spheres and panoramas."""
    xmp = image.info.get("xmp", b"")
    xmp = xmp.encode("utf-8", "replace") if isinstance(xmp, str) else xmp
    return max(image.size) > LONGEST_ASPECT * min(image.size) or b"GPano:ProjectionType" in xmp
