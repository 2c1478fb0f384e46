"""The loader's machine code gives Pillow's values bit for bit: resizing, decoding, cutting, and all of it together."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from vlm3_jax.camera import Camera
from vlm3_jax.errors import BadRecord
from vlm3_jax.processor import image as images
from vlm3_jax.records import ImageRef, View

compiled = pytest.importorskip("vlm3_jax.processor.compiled", reason="needs the extra fast")
SPEC = images.VisionSpec(16, 2, 2, 1024, 16_777_216, (0.5,) * 3, (0.5,) * 3, 48)


def photograph(rng, width, height) -> np.ndarray:
    """Blocks, edges and noise, uint8 [height, width, 3]."""
    blocks = np.kron(rng.integers(0, 256, (height // 7 + 1, width // 5 + 1, 3)), np.ones((7, 5, 1)))[:height, :width]
    return np.clip(blocks + rng.normal(0, 25, blocks.shape), 0, 255).astype(np.uint8)


def encoded(pixels, form="JPEG", **fields) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **fields)
    return buffer.getvalue()


def test_resizing_is_pillows(rng):
    """Random sizes, both orders of the passes among them, and values whose sums leave 0 to 255."""
    columns_first = 0
    for number in range(250):
        (w, h), (width, height) = rng.integers(1, 180, (2, 2)).tolist()
        pixels = photograph(rng, w, h) if number % 2 else rng.choice(np.array([0, 255], np.uint8), (h, w, 3))
        picture = Image.fromarray(pixels)
        found = compiled.resize(compiled.pixels_of(picture), width, height)[..., :3]
        theirs = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(found, theirs, err_msg=f"{w} x {h} -> {width} x {height}")
        columns_first += height < h and h - height > 2 * (w - width)
    assert 50 < columns_first < 200


def test_another_order_of_the_passes_is_noticed(monkeypatch):
    """With a Pillow that goes by neither rule the machine code is not used."""
    compiled._columns_first.cache_clear()
    monkeypatch.setattr(compiled, "ORDERS", (lambda *_: True,))
    with pytest.raises(ImportError, match="in an order that is not known here"):
        compiled.check()
    monkeypatch.undo()
    compiled.check()


def test_decoding_is_pillows(rng):
    for number in range(60):
        width, height = rng.integers(1, 120, 2)
        fields = {"quality": int(rng.integers(5, 100)), "subsampling": number % 3, "progressive": bool(number % 2)}
        data = encoded(photograph(rng, width, height), **fields)
        np.testing.assert_array_equal(compiled.decode_jpeg(data)[..., :3], Image.open(io.BytesIO(data)))


def layouts(rng, data, width, height):
    """Layouts of an image: resized, mirrored, cropped, with an arrow, shown as large as it is stored."""
    for focal, changes in ((70.0, {}), (131.0, {"flip": True}), (100.0, {}), (40.0, {"flip": True})):
        old = Camera(100.0, 100.0, width / 2, height / 2, width, height)
        new = Camera(focal, focal, width * focal / 200, height * focal / 200, int(width * focal / 100), 
                     int(height * focal / 100))  # fmt: skip
        view = View(ImageRef(width, height, "x", data=data), old).seen_by(new)
        layout = dataclasses.replace(images.image_layout(view, SPEC, (12, 9)), **changes)
        yield layout
        yield dataclasses.replace(layout, marker=None)
        crop = view.seen_by(new.crop(3, 2, new.width - 9, new.height - 5))
        yield dataclasses.replace(images.image_layout(crop, SPEC), **changes)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "grey JPEG"])
def test_patches_are_those_without_it(rng, monkeypatch, form):
    for width, height in ((150, 110), (97, 140)):
        pixels = photograph(rng, width, height)
        data = encoded(pixels[..., 0] if form == "grey JPEG" else pixels, form.split()[-1])
        for layout in layouts(rng, data, width, height):
            assert images.compiled() is compiled
            fast = layout.load(SPEC)
            with monkeypatch.context() as without:
                without.setattr(images, "compiled", lambda: None)
                np.testing.assert_array_equal(fast, layout.load(SPEC))
    # An image that somebody handed over decoded.
    layout = dataclasses.replace(layout, ref=ImageRef(width, height, "x", pixels=pixels))
    fast = layout.load(SPEC)
    monkeypatch.setattr(images, "compiled", lambda: None)
    np.testing.assert_array_equal(fast, layout.load(SPEC))


def test_what_is_wrong_with_an_image_is_told_alike(rng, monkeypatch):
    good = encoded(photograph(rng, 90, 60))
    turned = Image.Exif()
    turned[274] = 6
    cases = [good[:-300], good[: len(good) // 2], encoded(photograph(rng, 80, 60)),
             encoded(photograph(rng, 90, 60), exif=turned), b"no image"]  # fmt: skip
    for data in cases:
        view = View(ImageRef(90, 60, "x.jpg", data=data), Camera(100.0, 100.0, 45.0, 30.0, 90, 60))
        layout, told = images.image_layout(view, SPEC), []
        for module in (compiled, None):
            monkeypatch.setattr(images, "compiled", lambda module=module: module)
            with pytest.raises(BadRecord) as error:
                layout.load(SPEC)
            told.append(str(error.value))
        assert told[0] == told[1]
