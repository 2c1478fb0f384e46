"""Records: bytes and back, mirroring, crops."""

import dataclasses

import msgpack
import numpy as np
import pytest
from PIL import Image, ImageDraw

from vlm3_jax import records
from vlm3_jax.camera import Camera, Focal
from vlm3_jax.errors import BadRecord


def pose(rng):
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    rotation *= np.sign(np.linalg.det(rotation))
    result = np.eye(4)
    result[:3, :3], result[:3, 3] = rotation, rng.normal(size=3)
    return result


@pytest.fixture
def record(rng):
    views = tuple(
        records.View(
            records.encode_image(rng.integers(0, 256, (h, w, 3), dtype=np.uint8), f"{w}.png"),
            Camera(40.0 + w, 41.0 + w, w / 2 - 3.25, h / 2 + 1.5, w, h),
            pose(rng),
        )
        for w, h in [(40, 30), (50, 20)]
    )
    return records.Record(
        "r",
        views,
        (records.DepthPoints(np.array([[0, 0], [39, 29], [7, 5]]), np.array([1.0, 2.0, 3.5]), "distance"),),
        (
            records.Objects(
                np.array([[3, 4, 10, 12], [20, 1, 39, 29]]),
                ("a", "b"),
                (rng.normal(size=(5, 3)).astype(np.float32), rng.normal(size=(2, 3)).astype(np.float32)),
            ),
        ),
        records.Matches(np.array([[1, 2], [30, 20]]), np.array([[4.5, 3.25], [48.0, 19.0]])),
        0.5,
    )


def leaves(value):
    if dataclasses.is_dataclass(value):
        return [leaf for f in dataclasses.fields(value) for leaf in leaves(getattr(value, f.name))]
    if isinstance(value, tuple):
        return [leaf for v in value for leaf in leaves(v)]
    return [value]


def assert_same(a, b):
    for x, y in zip(leaves(a), leaves(b), strict=True):
        if isinstance(x, np.ndarray):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)
        else:
            assert x == y


def test_bytes_round_trip(record):
    assert_same(records.from_bytes(records.to_bytes(record)), record)
    assert_same(records.from_bytes(records.to_bytes(records.flip(record))), records.flip(record))
    cameras = [view.camera.crop(2, 3, 20, 10) for view in record.views]
    cropped = records.with_cameras(record, cameras)
    assert_same(records.from_bytes(records.to_bytes(cropped)), cropped)


def test_pixels_handed_over_are_given_back_and_never_written(record, rng):
    pixels = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    ref = records.ImageRef(40, 30, "mine", pixels=pixels)
    assert ref.load() is pixels
    view = dataclasses.replace(record.views[0], image=ref)
    with pytest.raises(ValueError, match="mine: only an image with its bytes"):
        records.to_bytes(dataclasses.replace(record, views=(view, record.views[1])))


def test_bytes_without_the_newer_fields_of_a_view(record):
    tree = msgpack.unpackb(records.to_bytes(record))
    for view in tree["views"]:
        del view["flip"], view["crop"]
    assert_same(records.from_bytes(msgpack.packb(tree)), record)


def test_foreign_bytes_are_refused():
    for data in (b"", b"\xc1", msgpack.packb({"id": 1}), msgpack.packb([1, 2])):
        with pytest.raises(BadRecord, match="not a record"):
            records.from_bytes(data)


def test_flip_twice_is_nothing(record):
    assert_same(records.flip(records.flip(record)), record)
    assert all(view.flip for view in records.flip(record).views)


def test_flip_mirrors_what_a_camera_sees(record, rng):
    """A mirrored world point projects to the mirrored pixel in both mirrored views, and depths are unchanged."""
    mirrored = records.flip(record)
    world = rng.normal(size=(50, 3)) * 3
    for view, other in zip(record.views, mirrored.views, strict=True):
        assert np.isclose(np.linalg.det(other.world_T_cam[:3, :3]), 1)
        local = (np.linalg.inv(view.world_T_cam) @ np.c_[world, np.ones(50)].T).T[:, :3]
        front = local[:, 2] > 0.1
        assert front.any()
        theirs = (np.linalg.inv(other.world_T_cam) @ np.c_[world * [-1, 1, 1], np.ones(50)].T).T[:, :3]
        expected = view.camera.project(local[front])
        expected[:, 0] = view.camera.width - 1 - expected[:, 0]
        np.testing.assert_allclose(other.camera.project(theirs[front]), expected, atol=1e-6)
        np.testing.assert_allclose(theirs[:, 2], local[:, 2], atol=1e-9)


def test_flip_moves_every_label_with_its_pixels(record):
    mirrored = records.flip(record)
    pixels, flipped = record.views[0].image.load(), record.views[0].image.load()[:, ::-1]
    (x, y), (u, v) = record.depth[0].points_px.T, mirrored.depth[0].points_px.T
    np.testing.assert_array_equal(flipped[v, u], pixels[y, x])
    camera, other = record.views[0].camera, mirrored.views[0].camera
    np.testing.assert_allclose(
        other.rays(mirrored.depth[0].points_px), camera.rays(record.depth[0].points_px) * [-1, 1, 1], atol=1e-12
    )
    for (x1, y1, x2, y2), (u1, v1, u2, v2) in zip(
        record.objects[0].boxes_px, mirrored.objects[0].boxes_px, strict=True
    ):
        assert u1 < u2
        np.testing.assert_array_equal(flipped[v1 : v2 + 1, u1 : u2 + 1], pixels[y1 : y2 + 1, x1 : x2 + 1][:, ::-1])
    for points, other_points in zip(record.objects[0].points_m, mirrored.objects[0].points_m, strict=True):
        np.testing.assert_array_equal(other_points, points * np.float32([-1, 1, 1]))
    np.testing.assert_array_equal(mirrored.matches.points0_px[:, 0], 39 - record.matches.points0_px[:, 0])
    np.testing.assert_array_equal(mirrored.matches.points1_px[:, 0], 49 - record.matches.points1_px[:, 0])


def test_crop_shifts_labels_and_is_remembered(record):
    whole = records.unify(record, Focal(80.0, "per_axis"))
    cameras = [view.camera.crop(4, 2, 16, 8) for view in whole.views]
    cropped = records.with_cameras(whole, cameras)
    for view, before in zip(cropped.views, whole.views, strict=True):
        assert view.crop == (4, 2, before.camera.width, before.camera.height)
    np.testing.assert_array_equal(cropped.depth[0].points_px, whole.depth[0].points_px - [4, 2])
    np.testing.assert_array_equal(cropped.objects[0].boxes_px, whole.objects[0].boxes_px - [4, 2, 4, 2])
    np.testing.assert_array_equal(cropped.matches.points0_px, whole.matches.points0_px - [4, 2])
    np.testing.assert_allclose(cropped.matches.points1_px, whole.matches.points1_px - [4, 2], atol=1e-9)


def test_what_a_crop_leaves_of_each_label(record):
    cropped = records.with_cameras(record, [view.camera.crop(2, 3, 20, 16) for view in record.views])
    left = records.keep_inside(cropped)
    assert left.depth[0].points_px.tolist() == [[5, 2]]
    assert left.depth[0].depth_m.tolist() == [3.5]
    assert (left.objects[0].names, left.objects[0].boxes_px.tolist()) == (("a",), [[1, 1, 8, 9]])
    np.testing.assert_array_equal(left.objects[0].points_m[0], record.objects[0].points_m[0])
    assert len(left.objects[0].points_m) == 1
    # Of both matches one end or the other is cut off.
    assert left.matches.points0_px.shape == left.matches.points1_px.shape == (0, 2)


def test_every_label_draws_in_its_views_only(record):
    lefts = np.array([[0, 0], [60, 0]])
    for label in record.labels:
        sheet = Image.new("RGB", (110, 30))
        label.draw(ImageDraw.Draw(sheet), lambda view, points: np.reshape(points, (-1, 2)) + lefts[view], "red")
        shown = np.asarray(sheet)[..., 0] > 0
        assert shown[:, :40].any()
        # Beyond what the text at the edge of the first image takes.
        assert shown[:, 75:].any() == (1 in label.views)
