"""JSON, npz, 16-bit PNG and text: what is written is read back, with kind and camera."""

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

from vlm3_jax.answers import json_text, npz, png, table
from vlm3_jax.answers.values import Depth, Spread, ray_lengths
from vlm3_jax.camera import Camera
from vlm3_jax.errors import UserError


def test_json_of_depth(depth, photo):
    tree = json.loads(json_text.encode_depth(depth, photo))
    assert tree["image"] == "rooms/a photo.jpg"
    assert (tree["kind"], tree["map"], tree["unread"], tree["questions"]) == ("z", "z", 1, 3)
    assert tree["camera"] == dataclasses.asdict(depth.camera) | {"source": "EXIF"}
    first, second, third = tree["points"]
    assert (first["x"], first["y"], first["answer"], third["answer"]) == (2, 3, "a", "é")
    assert first["z_m"] == pytest.approx(4, abs=1e-5)
    assert first["distance_m"] == pytest.approx(float(depth.distance_m[0]), abs=1e-5)
    assert second["distance_m"] is None
    assert second["z_m"] is None


def test_json_of_pairs(match, pose, photo):
    tree = json.loads(json_text.encode_match(match, [photo, photo]))
    assert tree["points"][0] == {"x1": 1, "y1": 2, "x2": 4.5, "y2": 6.0, "outside": False, "answer": "x"}
    assert [row["outside"] for row in tree["points"]] == [False, True, False]
    assert (tree["points"][1]["x2"], tree["unread"]) == (None, 1)
    tree = json.loads(json_text.encode_pose(pose, [photo, photo]))
    np.testing.assert_allclose(tree["cam1_T_cam2"], pose.cam1_T_cam2(), atol=1e-6)
    assert [tree[f"{name}_deg"] for name in ("yaw", "pitch", "roll")] == pytest.approx([30, -10, 5], abs=1e-5)
    assert tree["unit"] == "metres"
    unknown = dataclasses.replace(pose, distance_m=np.nan, direction=np.full(3, np.nan))
    tree = json.loads(json_text.encode_pose(unknown, [photo, photo]))
    assert (tree["distance_m"], tree["direction"], tree["unit"]) == (None, [None] * 3, "the length of the motion")


def test_npz(depth, match, pose, photo):
    def read(data):
        return np.load(io.BytesIO(data), allow_pickle=False)

    arrays = read(npz.encode_depth(depth, photo))
    assert str(arrays["kind"]) == "z"
    np.testing.assert_array_equal(arrays["depth"], depth.map_m())
    np.testing.assert_array_equal(arrays["K"], depth.camera.matrix)
    assert arrays["answers"].tolist() == ["a", "?", "é"]
    facts = json.loads(str(arrays["facts"]))
    assert facts["camera"]["source"] == "EXIF"
    assert facts["map"] == "z"
    arrays = read(npz.encode_match(match, [photo, photo]))
    np.testing.assert_array_equal(arrays["matches_px"], match.matches_px)
    arrays = read(npz.encode_pose(pose, [photo, photo]))
    np.testing.assert_array_equal(arrays["cam1_T_cam2"][:3, :3], pose.rotation)
    assert np.linalg.norm(arrays["cam1_T_cam2"][:3, 3]) == pytest.approx(1.5)


def test_a_map_of_z_is_flat_where_the_wall_is(depth):
    """Distances grow towards the corners, z does not; the camera makes one of the other."""
    z = depth.map_m("z")
    np.testing.assert_allclose(z[1:10], 4, rtol=1e-6)
    np.testing.assert_allclose(z[10:20, 8:24], 2, rtol=1e-6)
    assert depth.map_m("distance")[29, 0] > 4.5
    rays = ray_lengths(depth.camera)
    assert rays[15, 20] == 1
    np.testing.assert_allclose(rays[3, 2], np.linalg.norm(depth.camera.rays([[2, 3]])))


@pytest.mark.parametrize("kind", ["distance", "z"])
def test_png_of_16_bits(depth, photo, kind):
    image = Image.open(io.BytesIO(png.encode_depth(dataclasses.replace(depth, kind=kind), photo)))
    facts = json.loads(image.text["vlm3"])
    assert (facts["scale_m"], facts["kind"]) == (0.001, kind)
    assert facts["camera"]["fx"] == 36
    units = np.asarray(image)
    assert units.dtype == np.uint16
    assert units[0, 0] == 0
    expected = depth.map_m(kind)
    np.testing.assert_allclose(units * facts["scale_m"], np.nan_to_num(expected), atol=0.0005001)


def test_far_depths_have_a_coarser_unit():
    assert png.scale_m(np.array([np.nan, 65.5])) == 0.001
    assert png.scale_m(np.array([65.6])) == 0.002
    assert png.scale_m(np.array([3000.0])) == 0.05
    assert png.scale_m(np.array([np.nan])) == 0.001


def test_tables(depth, match, pose):
    lines = table.of_depth(depth).splitlines()
    assert lines[0].split() == ["x", "y", "distance_m", "z_m"]
    assert lines[1].split()[:2] == ["2", "3"]
    assert lines[2].split() == ["20", "15", "-", "-"]
    assert table.of_dense(depth).startswith("map of 40 x 30 from 3 questions: z 2.00 to 4.00 m")
    assert table.of_match(match).splitlines()[2].split() == ["30", "20", "-", "-", "outside"]
    assert "yaw +30.0, pitch -10.0, roll +5.0 degrees" in table.of_pose(pose)
    assert "distance   1.50 m" in table.of_pose(pose)
    lost = dataclasses.replace(pose, rotation=np.full((3, 3), np.nan), distance_m=np.nan)
    assert table.of_pose(lost).count("cannot be read") == 2
    assert table.unread(0, 5) == ""
    assert table.unread(2, 1000) == "2 of 1,000 points have no readable answer"


def test_spread_is_told_everywhere(depth, photo):
    values = [np.array([1.0, np.nan, 3.0]) + k for k in range(6)]
    with_spread = dataclasses.replace(depth, spread=Spread(*values, 0.9))
    tree = json.loads(json_text.encode_depth(with_spread, photo))
    assert tree["level"] == 0.9
    assert (tree["points"][2]["expected_m"], tree["points"][2]["high_m"], tree["points"][1]["low_m"]) == (3, 8, None)
    assert np.load(io.BytesIO(npz.encode_depth(with_spread, photo)))["deviation_m"][0] == 3
    head, first, *_ = table.of_depth(with_spread).splitlines()
    assert "low_m (90%)" in head
    assert first.split()[-2:] == ["5.00", "6.00"]


def test_a_spread_of_a_map(depth, photo):
    """Of the kind that the map is of; the interval only where there is one."""
    values = depth.dense.distance_m
    maps = {"median_m": 0.8 * values, "deviation_m": 0.2 * values, "low_m": 0.5 * values, "high_m": 2 * values}
    wide = dataclasses.replace(depth.dense, **maps)
    found = np.load(io.BytesIO(npz.encode_depth(dataclasses.replace(depth, dense=wide), photo)))
    for name, factor in (("median", 0.8), ("deviation", 0.2), ("low", 0.5), ("high", 2.0)):
        np.testing.assert_allclose(found[f"depth_{name}"], factor * found["depth"], rtol=1e-5)
    assert "; deviation 25% to 25%, median 25%" in table.of_dense(dataclasses.replace(depth, dense=wide))
    unknown = dataclasses.replace(depth, dense=dataclasses.replace(wide, low_m=None, high_m=None))
    assert set(unknown.spread_maps()) == {"median", "deviation"}
    assert "depth_low" not in np.load(io.BytesIO(npz.encode_depth(unknown, photo)))
    assert "deviation" not in table.of_dense(depth)


def test_what_there_is_not(depth):
    alone = dataclasses.replace(depth, dense=None)
    with pytest.raises(UserError, match="there is no dense map"):
        alone.map_m()
    # It would be z as much as anything.
    with pytest.raises(UserError, match="kind: 'Distance' is unknown; choose z or distance"):
        depth.map_m("Distance")
    with pytest.raises(UserError, match="kind: 'depth' is unknown"):
        Depth(np.zeros((1, 2), int), np.ones(1), [""], Camera(1, 1, 1, 1, 2, 2), "given", "depth")
