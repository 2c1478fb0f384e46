"""A user's photo: whatever it comes as, its pixels as they are seen and the camera that is known of it.

Pixels are upright: EXIF orientation is applied, as by transformers' `load_image`, and points asked about are pixels of
the upright image. Without a camera from whoever asks, one is looked for beside the file, then in its EXIF data.
"""

import base64
import binascii
import dataclasses
import io
import logging
import os
import pathlib
import urllib.parse

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vlm3_jax import storage
from vlm3_jax.camera import Camera, as_camera
from vlm3_jax.errors import UserError
from vlm3_jax.formats import optional
from vlm3_jax.processor import intrinsics
from vlm3_jax.records import FORMATS, MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS, as_rgb, orientation

# What iPhones write; the module that reads it comes with an extra.
HEIC = (".heic", ".heif")
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
# Without a camera a photo is taken to see this much: a guess, and metric depth is as wrong as the guess.
ASSUMED_FOV_DEG = 60.0
# Of the size: lenses and rectified pairs have less, cameras of a turned or of a smaller image more.
MOST_OFF_CENTRE = 0.15
ASSUMED = f"assumed {ASSUMED_FOV_DEG:g} degrees"

_log = logging.getLogger(__name__)
_told: set[Camera] = set()


@dataclasses.dataclass(frozen=True, eq=False)
class Photo:
    """`pixels` uint8 [H, W, 3], upright; the camera of that image, and where it is from.

    `source`: "given", the name of a file beside the photo, "EXIF", or "assumed 60 degrees".
    """

    name: str
    pixels: np.ndarray
    camera: Camera
    source: str

    @property
    def assumed(self) -> bool:
        """Whether nothing told the camera: metric depth is then as wrong as the guess."""
        return self.source == ASSUMED

    def __str__(self):
        c = self.camera
        return f"{self.name}: {c.width} x {c.height}, focal length {c.fx:.0f} px ({self.source})"


def open_photo(image, camera=None) -> Photo:
    """The photo of a path, `file://` or `data:` URL, PIL image or array; UserError names what is wrong with it.

    Arrays: uint8 [H, W, 3] (or [H, W], [H, W, 4], [3, H, W]), or floats from 0 to 1 of these shapes. `camera`: a
    `Camera` or K of the upright image, or what makes one of its width and height (`intrinsics.rule`); without one,
    `photo.camera.json` beside `photo.jpg` (K, or the fields of `Camera`), then EXIF, then an assumed field of view.
    """
    if isinstance(image, Photo):
        return image if camera is None else open_photo(image.pixels, camera)
    if isinstance(image, str | os.PathLike):
        name, path, data = _read(os.fspath(image))
        opened = _decoded(name, io.BytesIO(data))
    elif isinstance(image, Image.Image):
        name, path, opened = _short(getattr(image, "filename", "") or "image"), None, image
    else:
        name, path, opened = "image", None, None
    pixels, exif = (_from_array(image), None) if opened is None else _upright(name, opened)
    height, width = pixels.shape[:2]
    if callable(camera):
        camera = camera(width, height)
    if camera is not None:
        return Photo(name, pixels, _centred(as_camera(camera, width, height, f"{name}: camera"), name), "given")
    beside = path and intrinsics.sidecar(path)
    if beside and beside.is_file():
        return Photo(name, pixels, _centred(intrinsics.read_sidecar(beside, width, height), str(beside)), beside.name)
    if exif is not None:
        return Photo(name, pixels, exif, "EXIF")
    assumed = Camera.from_fov(width, height, ASSUMED_FOV_DEG)
    return Photo(name, pixels, assumed, ASSUMED)


def _centred(camera: Camera, name: str) -> Camera:
    """The camera; says, once of each, that its principal point is so far off that it may be of another image."""
    if camera not in _told and (
        abs(camera.cx / camera.width - 0.5) > MOST_OFF_CENTRE or abs(camera.cy / camera.height - 0.5) > MOST_OFF_CENTRE
    ):
        _told.add(camera)
        _log.warning(
            "%s: the principal point (%g, %g) is far from the middle of the image of %d x %d; is the camera of the "
            "upright image, and of this size?",
            name,
            camera.cx,
            camera.cy,
            camera.width,
            camera.height,
        )
    return camera


def _read(text: str) -> tuple[str, storage.AnyPath | None, bytes]:
    """Name, path (None for a data URL) and bytes of what a text names."""
    if text[:5].lower() == "data:" and "," in text:
        return "data: URL", None, _data_url(text)
    name, path = _short(text), located(text)
    try:
        if path.stat().st_size > MAX_IMAGE_BYTES:
            raise UserError(f"{name}: {path.stat().st_size} bytes is above the limit of {MAX_IMAGE_BYTES}")
        return name, path, path.read_bytes()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{name}: cannot be read as an image ({why})") from None


def located(text: str) -> storage.AnyPath:
    """The path that a text names, a path or a `file://` URL. UserError for other URLs: nothing is fetched."""
    if not text:
        # It would be the folder where one is.
        raise UserError("the name of an image is empty")
    scheme = text.partition(":")[0].lower()
    if scheme in ("http", "https"):
        raise UserError(f"{_short(text)}: images are not fetched from the net; download it and give the file")
    if scheme == "data" and "," in text:
        raise UserError("data: URL: give a file here")
    if scheme != "file":
        return storage.path(text)
    url = urllib.parse.urlsplit(text)
    if url.netloc not in ("", "localhost"):
        raise UserError(f"{_short(text)}: a file of another machine; write file:///PATH")
    return pathlib.Path(urllib.parse.unquote(url.path))


def _data_url(text: str) -> bytes:
    head, _, body = text.partition(",")
    if not head.lower().endswith(";base64"):
        raise UserError("data: URL: expected data:image/...;base64,...")
    if len(body) > MAX_IMAGE_BYTES * 4 // 3 + 4:
        raise UserError(f"data: URL: its image is above the limit of {MAX_IMAGE_BYTES} bytes")
    try:
        return base64.b64decode(urllib.parse.unquote(body), validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"data: URL: not base64 ({error})") from None


def _decoded(name: str, file) -> Image.Image:
    head = file.getvalue()[:12]
    formats = FORMATS
    if head[4:8] == b"ftyp" and head[8:] in _HEIC_BRANDS:
        try:
            optional.module("pillow_heif", "heic").register_heif_opener()
        except UserError as error:
            raise UserError(f"{name}: a HEIC file; {error}, or convert it to JPEG") from None
        formats = ("HEIF",)
    try:
        return Image.open(file, formats=formats)
    except UnidentifiedImageError:
        raise UserError(f"{name}: cannot be read as an image (no {', '.join(formats)} file)") from None
    # Damaged bytes make Pillow raise all kinds of errors.
    except Exception as error:
        raise UserError(f"{name}: cannot be read as an image ({error})") from None


def _upright(name: str, image: Image.Image) -> tuple[np.ndarray, Camera | None]:
    """Pixels uint8 [H, W, 3] as they are seen, and the camera that EXIF tells, if it does."""
    if image.mode[0] in "IF":
        # Converting would clip nearly all of them to white.
        raise UserError(f"{name}: {image.mode} has more than 8 bits a pixel; convert it to 8 bits")
    if image.width * image.height > MAX_IMAGE_PIXELS:
        raise UserError(f"{name}: {image.width} x {image.height} pixels is above {MAX_IMAGE_PIXELS}")
    try:
        image.load()
        turn = orientation(image)
        upright = image if turn == 1 else ImageOps.exif_transpose(image)
        return np.asarray(as_rgb(upright)), intrinsics.of_exif(image)
    except MemoryError:
        raise
    except Exception as error:
        raise UserError(f"{name}: cannot be read as an image ({error})") from None


def _from_array(image) -> np.ndarray:
    """uint8 [H, W, 3] of an array whose meaning is plain."""
    wanted = "expected a path, a PIL image or one image as an array, uint8 [height, width, 3] or floats from 0 to 1"
    if not hasattr(image, "__array__"):
        raise UserError(f"image: {wanted}; got {type(image).__name__}")
    pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4) and pixels.shape[0] in (1, 3, 4):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or not pixels.size:
        batch = "; ask about one image at a time" if pixels.ndim == 4 else ""
        raise UserError(f"image: {wanted}; got shape {list(pixels.shape)}{batch}")
    if pixels.dtype.kind == "f":
        # NaN compares false.
        if not ((pixels >= 0) & (pixels <= 1)).all():
            raise UserError(f"image: {wanted}; got floats from {pixels.min():g} to {pixels.max():g}")
        pixels = np.rint(pixels.astype(np.float32) * 255).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise UserError(f"image: {wanted}; got {pixels.dtype}")
    # As Pillow does, alpha is left away.
    return np.ascontiguousarray(
        np.broadcast_to(pixels, (*pixels.shape[:2], 3)) if pixels.shape[2] == 1 else pixels[..., :3]
    )


def _short(text: str) -> str:
    """A name for errors and files: not all of what may be a megabyte of base64, and text, which names of files need
    not be.
    """
    text = text if len(text) <= 200 else text[:60] + "..."
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
