"""Where a camera is known from, in which order."""

import io
import json

import numpy as np
import pytest
from PIL import ExifTags, Image

from vlm3_jax.camera import Camera
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.processor import intrinsics

TAGS = ExifTags.Base


def exif_of(**fields) -> Image.Exif:
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif).update({getattr(TAGS, name): value for name, value in fields.items()})
    return exif


def saved(path, exif=None, size=(360, 240)):
    Image.new("RGB", size, (9, 99, 200)).save(path, **({"exif": exif} if exif is not None else {}))
    return Image.open(io.BytesIO(path.read_bytes()))


def found_by_calibrator(image):
    return Camera(222.0, 222.0, *(n / 2 for n in image.size), *image.size), "a calibrator"


def test_the_order_is_exif_flag_file_calibrator(tmp_path):
    plain, tagged = tmp_path / "plain.jpg", tmp_path / "tagged.jpg"
    image = saved(plain)
    with_exif = saved(tagged, exif_of(FocalLengthIn35mmFilm=50))
    flag = intrinsics.rule("fov:90")
    camera, source = intrinsics.find(with_exif, tagged, flag, found_by_calibrator)
    assert source == "EXIF"
    # 360 x 240 is to 36 x 24 mm as 10 px to 1 mm.
    assert camera.fx == pytest.approx(500)
    for path in (plain, tagged):
        intrinsics.write_sidecar(path, Camera(333.0, 333.0, 180.0, 120.0, 360, 240), "somebody")
    camera, source = intrinsics.find(image, plain, flag, found_by_calibrator)
    assert (camera.fx, source) == (pytest.approx(180), "flag")
    camera, source = intrinsics.find(image, plain, None, found_by_calibrator)
    assert (camera.fx, source) == (333.0, "plain.camera.json")
    (tmp_path / "plain.camera.json").unlink()
    assert intrinsics.find(image, plain, None, found_by_calibrator)[1] == "a calibrator"
    assert intrinsics.find(image, plain) is None


def test_a_turned_image_has_the_camera_of_the_upright_one(tmp_path):
    exif = exif_of(FocalLengthIn35mmFilm=50)
    exif[TAGS.Orientation] = 6
    image = saved(tmp_path / "a.jpg", exif)
    camera, _ = intrinsics.find(image, tmp_path / "a.jpg")
    assert (camera.width, camera.height) == (240, 360)
    # Nothing but the orientation: the flag is asked for the upright size.
    bare = Image.Exif()
    bare[TAGS.Orientation] = 6
    image = saved(tmp_path / "b.jpg", bare)
    camera, source = intrinsics.find(image, tmp_path / "b.jpg", intrinsics.rule("fov:90"))
    assert (camera.fx, camera.width, source) == (pytest.approx(120), 240, "flag")


def test_rules():
    assert intrinsics.rule("500,510,320,240")(640, 480) == Camera(500.0, 510.0, 320.0, 240.0, 640, 480)
    assert intrinsics.rule("fov:90")(640, 480).fx == pytest.approx(320)
    # A full-frame image at 36 mm sees half its width to either side at half its focal length.
    assert intrinsics.rule("35mm:18")(3600, 2400).fx == pytest.approx(1800)
    for text in ("fov:0", "fov:x", "35mm:-1", "35mm:inf", "1,2,3", "zoom:3", ""):
        with pytest.raises(UserError, match="is no camera; write FX,FY,CX,CY"):
            intrinsics.rule(text)


def test_what_is_implausible_is_refused(tmp_path):
    image = saved(tmp_path / "a.png")
    with pytest.raises(BadRecord, match=r"a\.png: camera: implausible field of view"):
        intrinsics.find(image, tmp_path / "a.png", intrinsics.rule("0.9,1.2,0.5,0.5"))
    (tmp_path / "a.camera.json").write_text(json.dumps({"K": np.eye(3).tolist()}))
    with pytest.raises(UserError, match=r"a\.camera\.json"):
        intrinsics.find(image, tmp_path / "a.png")


def test_a_panorama_has_no_focal_length(tmp_path):
    """EXIF tells the lens, of which a panorama shows many views; a long strip cut from a photo shows a part of one."""
    lens = {"FocalLengthIn35mmFilm": 26}
    assert intrinsics.of_exif(saved(tmp_path / "a.jpg", exif_of(**lens), (600, 250))) is not None
    assert intrinsics.of_exif(saved(tmp_path / "a.jpg", exif_of(**lens), (600, 230))) is None
    assert intrinsics.of_exif(saved(tmp_path / "a.jpg", exif_of(**lens), (230, 600))) is None
    assert intrinsics.of_exif(saved(tmp_path / "a.jpg", exif_of(**lens, CustomRendered=6))) is None
    assert intrinsics.of_exif(saved(tmp_path / "a.jpg", exif_of(**lens, CustomRendered=8))) is not None
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d GPano:ProjectionType="equirectangular"/></x:xmpmeta>'
    Image.new("RGB", (600, 300)).save(tmp_path / "b.jpg", exif=exif_of(**lens), xmp=xmp)
    with Image.open(tmp_path / "b.jpg") as sphere:
        assert intrinsics.of_exif(sphere) is None


def test_zoom_and_a_pitch_that_means_nothing(tmp_path):
    """ExifTool's rule: digital zoom multiplies what the sensor tells, not the equivalent focal length."""
    sensor = {"FocalLength": 10.0, "FocalPlaneXResolution": 300.0, "FocalPlaneResolutionUnit": 3}
    assert intrinsics.of_exif(saved(tmp_path / "a.jpg", exif_of(**sensor))).fx == pytest.approx(300)
    zoomed = exif_of(**sensor, DigitalZoomRatio=2.0)
    assert intrinsics.of_exif(saved(tmp_path / "a.jpg", zoomed)).fx == pytest.approx(600)
    zoomed = exif_of(FocalLengthIn35mmFilm=50, DigitalZoomRatio=2.0)
    assert intrinsics.of_exif(saved(tmp_path / "a.jpg", zoomed)).fx == pytest.approx(500)
    dots = exif_of(FocalLength=4.0, FocalPlaneXResolution=72.0, FocalPlaneResolutionUnit=2, FocalLengthIn35mmFilm=50)
    assert intrinsics.of_exif(saved(tmp_path / "a.jpg", dots)).fx == pytest.approx(500)


def test_the_camera_of_an_image_of_another_size():
    with pytest.raises(
        BadRecord, match=r"its principal point \(900, 240\) is not in the image of 640 x 480; it is the"
    ):
        intrinsics.rule("500,500,900,240")(640, 480)
