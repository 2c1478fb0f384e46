"""Masks: where labels are drawn, and the objects that they show."""

import dataclasses

import msgpack
import numpy as np
import pytest

from tests.builders import world
from vlm3_jax import records
from vlm3_jax.camera import Camera, Focal
from vlm3_jax.errors import BadRecord
from vlm3_jax.records.mask_objects import levelled

WIDTH, HEIGHT = 80, 60
CAMERA = Camera(70.0, 71.0, 38.5, 30.25, WIDTH, HEIGHT)


def record(pose, *masks, kind="z"):
    seen = world.render(world.pinhole(70, 71, 38.5, 30.25, WIDTH, HEIGHT), pose)
    view = records.View(records.encode_image(seen.rgb, "a.png"), CAMERA, pose)
    depth = records.encode_depth(seen.z if kind == "z" else seen.distance, kind, 1e-3)
    return records.Record("r", (view,), depth_maps=(depth,), masks=masks)


def drawn(item, count=400):
    return records.draw_labels(item, np.random.default_rng(0), count)


@pytest.mark.parametrize(("use", "inside"), [("keep", True), ("drop", False)])
@pytest.mark.parametrize("size", [(60, 80), (30, 40), (120, 160)])
def test_labels_are_drawn_where_a_mask_says(use, inside, size):
    mask = np.zeros(size, bool)
    mask[size[0] // 3 :, size[1] // 2 :] = True
    labels = drawn(record(np.eye(4), records.encode_mask(mask, use)))
    x, y = labels.depth[0].points_px.T
    assert labels.masks == ()
    assert (((x >= WIDTH // 2) & (y >= HEIGHT // 3)) == inside).all()


@pytest.mark.parametrize("kind", ["z", "distance"])
def test_objects_of_a_mask_stand_level(kind):
    """The camera looks down and is banked; in the level frame the ground is flat and the heights are the world's."""
    pose = world.pose(pitch=-20, roll=8)
    rays = world.pinhole(70, 71, 38.5, 30.25, WIDTH, HEIGHT)
    points = rays * world.render(rays, pose).z[..., None] @ pose[:3, :3].T
    ground = np.abs(points[..., 1] - 1.5) < 1e-6
    ids = np.where(ground, 2, 0)
    # A wall of the first box, and too few pixels of a third thing.
    ids[(points[..., 2] < 4) & ~ground & (points[..., 0] > 0)] = 1
    ids[0, :5] = 3
    down = pose[:3, :3].T @ [0, 1, 0]
    mask = records.encode_mask(ids, "objects", names=("box", "ground", "speck"), down=down)
    (objects,) = drawn(record(pose, mask, kind=kind)).objects
    assert objects.names == ("box", "ground")
    for number, box in enumerate(objects.boxes_px.tolist(), 1):
        rows, columns = np.nonzero(ids == number)
        assert box == [columns.min(), rows.min(), columns.max(), rows.max()]
    np.testing.assert_allclose(objects.points_m[1][:, 1], 1.5, atol=0.01)
    seen = points[ids == 1]
    # The camera of this pose looks along the world's z but for tilt and bank: level, its axes are the world's.
    assert objects.points_m[0].min(0) == pytest.approx(seen.min(0), abs=0.1)
    assert objects.points_m[0].max(0) == pytest.approx(seen.max(0), abs=0.1)


def test_a_level_frame_has_gravity_below_and_the_camera_ahead(rng):
    for down in (*rng.normal(size=(20, 3)), (0, 0, 1), (0, 0, -1), (0, 1, 0)):
        R = levelled(down)
        np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-9)
        assert np.linalg.det(R) == pytest.approx(1)
        np.testing.assert_allclose(R @ down / np.linalg.norm(down), [0, 1, 0], atol=1e-9)
        assert (R @ [0, 0, 1])[0] == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(levelled((0, 2, 0)), np.eye(3), atol=1e-12)


def test_masks_are_stored_and_checked():
    ids = np.arange(12).reshape(3, 4)
    for values, use in ((ids, "objects"), (ids * 1000, "objects"), (ids > 3, "keep")):
        mask = records.encode_mask(values, use, names=("ü",), down=(0, 1, 1))
        np.testing.assert_array_equal(mask.load(), values)
        back = records.from_bytes(records.to_bytes(record(np.eye(4), mask))).masks[0]
        assert (back.use, back.names, back.down) == (use, ("ü",), (0, 1, 1))
        np.testing.assert_array_equal(back.load(), values)
    data = records.to_bytes(record(np.eye(4), mask))
    wrong = {
        "use": ("hide", "masks[0].use: expected one of keep, drop, objects"),
        "names": ([1], "masks[0].names: expected texts"),
        "down": ([0, 0, 0], "masks[0].down: expected a direction"),
        "height": (0, "masks[0]: expected whole numbers as its size"),
        "view": (2, "masks[0].view: is 2"),
    }
    for field, (value, why) in wrong.items():
        tree = msgpack.unpackb(data)
        tree["masks"][0][field] = value
        with pytest.raises(BadRecord) as error:
            records.from_bytes(msgpack.packb(tree))
        assert why in str(error.value)
    with pytest.raises(ValueError, match="expected a mask"):
        records.encode_mask(-ids, "keep")
    lost = dataclasses.replace(record(np.eye(4), mask), depth_maps=())
    with pytest.raises(ValueError, match="draw_labels comes before"):
        records.unify(lost, Focal(50))
    assert drawn(lost).objects == ()
