"""Photos as users hand them over: upright pixels, the camera that is known of them, one line for the rest."""

import base64
import io
import json
import os
import re
import struct
import sys
import urllib.parse
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational

from vlm3_jax.camera import Camera
from vlm3_jax.errors import UserError
from vlm3_jax.processor.photo import open_photo
from vlm3_jax.records import ImageRef

TAGS = ExifTags.Base


def encoded(pixels, format="PNG", turn=None, **fields) -> bytes:
    exif = Image.Exif()
    if turn is not None:
        exif[TAGS.Orientation] = turn
    for name, value in fields.items():
        exif.get_ifd(ExifTags.IFD.Exif)[TAGS[name]] = value
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, exif=exif)
    return buffer.getvalue()


@pytest.fixture
def pixels(rng):
    return rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("turn", [None, *range(1, 10)])
def test_upright_as_transformers_shows_it(pixels, tmp_path, turn, format):
    from transformers.image_utils import load_image

    path = tmp_path / "photo"
    path.write_bytes(encoded(pixels, format, turn))
    photo = open_photo(path)
    np.testing.assert_array_equal(photo.pixels, np.asarray(load_image(str(path))))
    assert photo.pixels.shape[:2] == ((64, 48) if turn in (5, 6, 7, 8) else (48, 64))
    assert (photo.camera.height, photo.camera.width) == photo.pixels.shape[:2]
    with Image.open(path) as opened:
        np.testing.assert_array_equal(open_photo(opened).pixels, photo.pixels)


def test_every_form_gives_the_same_pixels(pixels, tmp_path):
    data = encoded(pixels)
    path = tmp_path / "my photo.png"
    path.write_bytes(data)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    forms = [path, str(path), path.as_uri(), f"file://{urllib.parse.quote(str(path))}", url, Image.open(path), pixels]
    forms += [
        pixels.transpose(2, 0, 1),
        pixels / 255,
        (pixels / 255).astype(np.float32),
        np.dstack([pixels, pixels])[..., :4],
    ]
    for form in forms:
        np.testing.assert_array_equal(open_photo(form).pixels, pixels)
    grey = pixels[..., 0]
    for form in (grey, grey[..., None], grey[None], grey / 255):
        np.testing.assert_array_equal(open_photo(form).pixels, np.repeat(grey[..., None], 3, -1))


def test_a_palette_with_transparency(pixels):
    """What programs that make PNGs small write: Pillow warns of the short way to its colours."""
    image = Image.fromarray(np.dstack([pixels, np.full(pixels.shape[:2], 200, np.uint8)])).quantize(64)
    assert isinstance(image.info.setdefault("transparency", bytes(range(64))), bytes)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    found = open_photo(Image.open(buffer)).pixels
    np.testing.assert_array_equal(found, np.asarray(image.convert("RGBA"))[..., :3])
    loaded = ImageRef.of_bytes(buffer.getvalue(), "a.png").load()
    np.testing.assert_array_equal(loaded, found)


def test_what_is_no_photo_is_one_line(pixels, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.png").write_bytes(encoded(pixels)[:300])
    Image.fromarray(np.full((9, 8), 40_000, np.uint16)).save(tmp_path / "deep.png")
    body = base64.b64encode(b"no image" * 1000).decode()
    for wrong, why in [
        (tmp_path / "none.png", "none.png: cannot be read as an image (No such file or directory)"),
        (tmp_path, "cannot be read as an image (Is a directory)"),
        (tmp_path / "text.png", "text.png: cannot be read as an image (no JPEG, PNG, WEBP file)"),
        (tmp_path / "cut.png", "cut.png: cannot be read as an image ("),
        (tmp_path / "deep.png", "deep.png: I;16 has more than 8 bits a pixel; convert it to 8 bits"),
        ("a\0b", "cannot be read as an image (embedded null byte)"),
        ("https://a.b/c.jpg", "https://a.b/c.jpg: images are not fetched from the net; download it and give the file"),
        ("ftp://lab/c.jpg", "ftp://lab/c.jpg: give a local path or one that begins with gs://, s3://"),
        ("file://other/c.jpg", "a file of another machine; write file:///PATH"),
        (f"data:image/png;base64,{body}", "data: URL: cannot be read as an image (no JPEG, PNG, WEBP file)"),
        (f"data:image/png;base64,{body}!", "data: URL: not base64"),
        (f"data:image/png,{body}", "data: URL: expected data:image/...;base64,..."),
        (os.fsdecode(b"gr\xfcn.png"), "gr\ufffdn.png: cannot be read as an image (No such file"),
        (body, "...: cannot be read as an image (File name too long)"),
        (None, "got NoneType"),
        (pixels.tolist(), "got list"),
        (pixels[None], "got shape [1, 48, 64, 3]; ask about one image at a time"),
        (pixels[:0], "got shape [0, 64, 3]"),
        (pixels[..., :2], "got shape [48, 64, 2]"),
        (pixels.astype(float), "got floats from 0 to 255"),
        (pixels * np.float32("nan"), "got floats from nan to nan"),
        (pixels.astype(np.uint16), "got uint16"),
        (pixels > 9, "got bool"),
    ]:
        with pytest.raises(UserError, match=re.escape(why)) as error:
            open_photo(wrong)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 300


def test_focal_length_and_pitch_of_exif(pixels):
    """A sensor of 22.3 mm with a lens of 18 mm, and the same picture resized, turned and cropped."""
    lens = {
        "FocalLength": IFDRational(18, 1),
        "FocalPlaneXResolution": IFDRational(640_000, 223),
        "FocalPlaneYResolution": IFDRational(640_000, 223),
        "FocalPlaneResolutionUnit": 3,
    }
    # 640,000 / 223 pixels a centimetre would be a sensor of 0.223 mm for 64 pixels; EXIF says it had 6400.
    lens |= {"ExifImageWidth": 6400, "ExifImageHeight": 4800}
    small = open_photo(Image.open(io.BytesIO(encoded(pixels, "JPEG", **lens))))
    assert small.source == "EXIF"
    assert small.camera.fx == small.camera.fy == pytest.approx(18 / 22.3 * 64)
    assert (small.camera.cx, small.camera.cy) == (32, 24)
    assert "photo" not in str(small)
    lens["FocalPlaneYResolution"] = IFDRational(1_280_000, 223)
    turned = open_photo(Image.open(io.BytesIO(encoded(pixels, "JPEG", 6, **lens)))).camera
    assert (turned.fy, turned.fx) == pytest.approx((18 / 22.3 * 64, 2 * 18 / 22.3 * 64))
    assert (turned.width, turned.height) == (48, 64)
    cropped = open_photo(Image.open(io.BytesIO(encoded(pixels[:, :50], "JPEG", **lens))))
    assert cropped.source == "assumed 60 degrees"


def test_equivalent_focal_length_of_exif(pixels):
    """What phones write: of the diagonal of 43.27 mm."""
    photo = open_photo(
        Image.open(io.BytesIO(encoded(pixels, "JPEG", FocalLength=IFDRational(4, 1), FocalLengthIn35mmFilm=28)))
    )
    assert (photo.camera.fx, photo.source) == (pytest.approx(28 / np.hypot(36, 24) * 80), "EXIF")
    for fields in (
        {"FocalLength": IFDRational(4, 1)},
        {"FocalLengthIn35mmFilm": 0},
        {"FocalLengthIn35mmFilm": 1},
        {"FocalLengthIn35mmFilm": 60_000},
        {"FocalLength": IFDRational(0, 0), "FocalPlaneXResolution": IFDRational(1, 0)},
    ):
        photo = open_photo(Image.open(io.BytesIO(encoded(pixels, "JPEG", **fields))))
        assert (photo.source, photo.camera) == ("assumed 60 degrees", Camera.from_fov(64, 48, 60))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", exif=b"Exif\0\0nonsense")
    assert open_photo(Image.open(buffer)).source == "assumed 60 degrees"


def test_which_camera_counts(pixels, tmp_path):
    """What is given goes before the file beside the photo, that before EXIF, and EXIF before a guess."""
    path, camera = tmp_path / "photo.jpg", Camera(50.0, 51.0, 30.0, 20.0, 64, 48)
    path.write_bytes(encoded(pixels, "JPEG", FocalLengthIn35mmFilm=28))
    assert open_photo(path).source == "EXIF"
    beside = tmp_path / "photo.camera.json"
    beside.write_text(json.dumps({"K": [[40, 0, 32], [0, 40, 24], [0, 0, 1]]}))
    assert str(open_photo(path)) == f"{path}: 64 x 48, focal length 40 px (photo.camera.json)"
    beside.write_text(json.dumps({"fx": 41, "fy": 42, "cx": 32, "cy": 24, "width": 64, "height": 48}))
    assert open_photo(path).camera == Camera(41, 42, 32, 24, 64, 48)
    given = open_photo(path, camera)
    assert (given.camera, given.source) == (camera, "given")
    assert open_photo(path, camera.matrix).camera == camera
    for fields, why in [
        ({"fx": 41}, "expected a JSON object with the matrix K, or with the numbers fx, fy, cx, cy, width, height"),
        ({"K": [[0.9, 0, 0.5], [0, 1.2, 0.5], [0, 0, 1]]}, "photo.camera.json: implausible field of view"),
        (dict.fromkeys(("fx", "fy", "cx", "cy", "width", "height"), 9), "it is for 9 x 9 px, the image has 64 x 48"),
        ([1], "expected a JSON object"),
    ]:
        beside.write_text(json.dumps(fields))
        with pytest.raises(UserError, match=re.escape(why)):
            open_photo(path)
    with pytest.raises(UserError, match=r"photo.jpg: camera: it is for 48 x 64 px, the image has 64 x 48"):
        open_photo(path, Camera(50.0, 51.0, 30.0, 20.0, 48, 64))


def test_heic(pixels, tmp_path, monkeypatch):
    """What iPhones write: upright and with its lens where the extra is installed, else a line that names it."""
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    image, path = Image.fromarray(pixels).resize((640, 480)), tmp_path / "IMG_0001.HEIC"
    exif = Image.Exif()
    exif[TAGS.Orientation] = 6
    exif.get_ifd(ExifTags.IFD.Exif)[TAGS.FocalLengthIn35mmFilm] = 26
    image.save(path, "HEIF", exif=exif.tobytes(), quality=95)
    photo = open_photo(path)
    assert photo.source == "EXIF"
    assert (photo.camera.width, photo.camera.height) == (480, 640)
    assert photo.camera.fx == pytest.approx(26 / np.hypot(36, 24) * 800)
    upright = np.asarray(image.transpose(Image.Transpose.ROTATE_270)).astype(float)
    assert np.abs(photo.pixels - upright).mean() < 10 < np.abs(photo.pixels - upright[::-1, ::-1]).mean()
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(UserError) as error:
        open_photo(path)
    assert str(error.value) == (
        f'{path}: a HEIC file; the module pillow_heif is missing: pip install "vlm3-jax[heic]", or convert it to JPEG'
    )


def test_phones_of_200_megapixels():
    """Our own limit is the only one: no warning of a bomb, no error of one."""
    header = struct.pack(">IIBBBBB", 16320, 12240, 1, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", b""), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    assert ImageRef.of_bytes(data, "a.png").width == 16320


def test_a_camera_of_another_image_is_told(pixels, caplog, monkeypatch):
    """K of the stored image where the upright one is meant, or of one of half the size; told once of each."""
    image, turned, half = np.zeros((64, 48, 3), np.uint8), [[60, 0, 32], [0, 60, 24], [0, 0, 1]], [30, 30, 12, 16]
    # Other tests of this process may have been told of the same cameras.
    monkeypatch.setattr("vlm3_jax.processor.photo._told", set())
    for _ in range(2):
        open_photo(image, turned)
        open_photo(image, Camera(*map(float, half), 48, 64))
    # As a rectified pair has it.
    open_photo(image, [[60, 0, 20], [0, 60, 32], [0, 0, 1]])
    end = "is far from the middle of the image of 48 x 64; is the camera of the upright image, and of this size?"
    assert caplog.messages == [f"image: the principal point ({point}) {end}" for point in ("32, 24", "12, 16")]
