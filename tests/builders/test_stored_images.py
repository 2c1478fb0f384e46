"""Images that builders store resized: what the loader then sees, and that it resizes them no more."""

import numpy as np
import pytest
from PIL import Image

from tests.builders import streets
from vlm3_jax import records
from vlm3_jax.builders.common import Item
from vlm3_jax.builders.running.plan import Images
from vlm3_jax.builders.running.prepare import prepare
from vlm3_jax.builders.street_scenes import StreetScenes
from vlm3_jax.camera import Camera, resize_rule
from vlm3_jax.processor import image
from vlm3_jax.processor.image import VisionSpec
from vlm3_jax.records import DepthPoints, ImageRef, Record, View

SPEC = VisionSpec(16, 2, 2, 1024, 16_777_216, (0.5,) * 3, (0.5,) * 3, 48)
RULES = ("focal:73", "focal:31.7", "focal:60:per_axis")


@pytest.fixture
def record(tmp_path, rng):
    """Odd sizes and focal lengths that differ, with points in every corner."""
    pixels = np.asarray(Image.fromarray(rng.integers(0, 255, (12, 17, 3), np.uint8)).resize((123, 87), 2))
    camera = Camera(53.3, 55.7, 60.2, 43.9, 123, 87)
    points = np.concatenate([[[0, 0], [122, 86], [122, 0]], rng.integers(0, (123, 87), (50, 2))])
    label = DepthPoints(points, rng.uniform(1, 9, len(points)), "z")
    return Record("r", (View(records.encode_image(pixels, "i"), camera),), (label,), scene="s")


def kept(record, images):
    data, removed = prepare(record, Item(record.id, record.scene, {}), images)
    assert not removed
    return records.from_bytes(data)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("final", [False, True])
def test_the_loader_sees_what_it_would_have_made_itself(record, rule, final):
    resize = resize_rule(rule)
    wanted = records.unify(record, resize)
    found = records.unify(kept(record, Images(rule, SPEC if final else None, None)), resize)
    for one, other in zip(found.cameras, wanted.cameras, strict=True):
        assert (one.width, one.height) == (other.width, other.height)
        np.testing.assert_allclose([one.fx, one.fy, one.cx, one.cy], [other.fx, other.fy, other.cx, other.cy])
    np.testing.assert_array_equal(found.depth[0].points_px, wanted.depth[0].points_px)
    layouts = [image.image_layout(one.views[0], SPEC) for one in (found, wanted)]
    assert layouts[0].final == layouts[1].final
    np.testing.assert_array_equal(layouts[0].load(SPEC), layouts[1].load(SPEC))


@pytest.mark.parametrize("rule", RULES)
def test_what_is_stored_is_resized_no_more(record, rule, monkeypatch):
    stored = kept(record, Images(rule, SPEC, None))
    unified = records.unify(stored, resize_rule(rule))
    assert unified.cameras == stored.cameras
    layout = image.image_layout(unified.views[0], SPEC)
    assert (stored.views[0].image.width, stored.views[0].image.height) == layout.final
    assert layout.final != layout.size
    # Whatever resizes.
    if code := image.compiled():
        monkeypatch.setattr(code, "resize", None)
    monkeypatch.setattr(Image.Image, "resize", None)
    layout.load(SPEC)
    # The same without the second resize has it still to do.
    once = image.image_layout(records.unify(stored_once(record, rule), resize_rule(rule)).views[0], SPEC)
    with pytest.raises(TypeError):
        once.load(SPEC)


def stored_once(record, rule):
    """Grey, at the unified size."""
    camera = records.unify(record, resize_rule(rule)).cameras[0]
    pixels = np.full((camera.height, camera.width, 3), 128, np.uint8)
    return Record("r", (View(ImageRef(camera.width, camera.height, "i", pixels=pixels), camera),), ())


def test_mirrored_and_cropped_ones_are_right_too(record):
    rule = resize_rule("focal:73")
    stored = records.unify(records.flip(kept(record, Images("focal:73", SPEC, None))), rule)
    whole = records.unify(records.flip(record), rule)
    layouts = [image.image_layout(one.views[0], SPEC) for one in (stored, whole)]
    difference = np.abs(layouts[0].load(SPEC).astype(int) - layouts[1].load(SPEC))
    assert difference.max() <= 2
    cameras = [image.fit_camera(one.cameras[0], SPEC, 16) for one in (stored, whole)]
    assert cameras[0].width < whole.cameras[0].width
    cropped = [records.with_cameras(one, [camera]) for one, camera in zip((stored, whole), cameras, strict=True)]
    layouts = [image.image_layout(one.views[0], SPEC) for one in cropped]
    difference = np.abs(layouts[0].load(SPEC).astype(int) - layouts[1].load(SPEC))
    # Resized back from the final size: blurred, at the same place.
    assert difference.mean() < 8


def test_a_jpeg_differs_a_little_and_its_size_is_small(record):
    exact = kept(record, Images("focal:73", SPEC, None)).views[0].image
    lossy = kept(record, Images("focal:73", SPEC, 95)).views[0].image
    assert len(lossy.data) < len(exact.data)
    difference = np.abs(exact.load().astype(int) - lossy.load())
    assert 0 < difference.mean() < 2


def test_depth_maps_and_scenes_stay(tmp_path):
    raw = streets.write(tmp_path, 1)
    item = StreetScenes().frames(raw, "train")[0]
    record = StreetScenes().record(raw, item)
    data, _ = prepare(record, item, Images("focal:73", SPEC, 95))
    stored = records.from_bytes(data)
    assert stored.depth_maps[0].data == record.depth_maps[0].data
    assert stored.scene == "scene0"
    drawn = records.draw_labels(stored, np.random.default_rng(0), 20)
    assert len(drawn.depth[0].points_px) == 20
    assert drawn.depth[0].sound(drawn.cameras).all()
