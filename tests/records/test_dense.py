"""Dense depth maps: encoded and read back, in place, damaged, of other sizes than their image."""

import dataclasses
import io

import msgpack
import numpy as np
import pytest
from PIL import Image

from vlm3_jax import records
from vlm3_jax.camera import Camera
from vlm3_jax.errors import BadRecord, UserError


def view(width=8, height=6):
    pixels = np.zeros((height, width, 3), np.uint8)
    return records.View(records.encode_image(pixels, "a.png"), Camera(7.0, 7.5, 3.5, 2.5, width, height))


def test_what_is_encoded_is_read_back_to_half_a_step(rng):
    depth = rng.uniform(0.4, 60, (6, 8))
    depth[0, :5] = [0, np.nan, np.inf, -1, 1e-5]
    found = records.encode_depth(depth, "distance", view=1, name="a")
    assert (found.kind, found.view, found.name, found.scale) == ("distance", 1, "a", 1e-3)
    metres = found.load()
    assert metres.dtype == np.float32
    assert np.isnan(metres[0, :4]).all()
    # It is there, though nearer than a step.
    assert metres[0, 4] == np.float32(1e-3)
    np.testing.assert_allclose(metres[1:], depth[1:], atol=0.5e-3 + 1e-5)


def test_the_scale_grows_with_the_depth_unless_it_is_given():
    far = records.encode_depth(np.full((2, 2), 300.0), "z")
    assert far.scale == 300 / 65535
    np.testing.assert_allclose(far.load(), 300, rtol=1e-6)
    assert records.encode_depth(np.full((2, 2), 300.0), "z", 0.01).scale == 0.01
    with pytest.raises(ValueError, match="300 m is above what 16 bits hold"):
        records.encode_depth(np.full((2, 2), 300.0), "z", 1e-3)
    assert np.isnan(records.encode_depth(np.zeros((2, 3)), "z").load()).all()
    with pytest.raises(ValueError, match="of kind"):
        records.encode_depth(np.ones((2, 2)), "euclid")


def test_pillow_reads_the_png_as_16_bits(rng):
    steps = rng.integers(1, 65536, (6, 8))
    found = records.encode_depth(steps * 0.001, "z", 0.001)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(found.data))), steps)


def test_maps_in_place(tmp_path, rng):
    metres = rng.uniform(0.5, 9, (6, 8)).astype(np.float32)
    metres[2, 3] = 0
    np.save(tmp_path / "a.npy", metres[..., None])
    Image.fromarray(np.rint(metres * 512).astype(np.uint16)).save(tmp_path / "a.png")
    for name, scale, error in (("a.npy", 1.0, 0), ("a.png", 1 / 512, 0.5 / 512 + 1e-6)):
        found = records.DepthMap(8, 6, scale, "z", name=name, path=tmp_path / name).load()
        assert np.isnan(found[2, 3])
        np.testing.assert_allclose(np.nan_to_num(found), metres, atol=error)
    other = records.DepthMap(6, 8, 1.0, "z", path=tmp_path / "a.npy", name="a")
    with pytest.raises(BadRecord, match="a: the map is 8 x 6, expected 6 x 8"):
        other.load()


def test_exr_in_place(tmp_path, rng):
    OpenEXR = pytest.importorskip("OpenEXR")
    metres = rng.uniform(0.5, 9, (6, 8)).astype(np.float16)
    metres[0, 0] = np.inf
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with OpenEXR.File(header, {"Y": metres}) as file:
        file.write(str(tmp_path / "a.exr"))
    found = records.DepthMap(8, 6, 1.0, "z", path=tmp_path / "a.exr").load()
    assert np.isnan(found[0, 0])
    np.testing.assert_array_equal(np.nan_to_num(found), np.where(np.isinf(metres), 0, metres))


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("a.npy", b"\x93NUMPY\x01\x00", "not a readable npy file"),
        ("a.npy", b"", "not a readable npy file"),
        ("a.png", b"\x89PNG\r\n\x1a\n", "cannot decode the map"),
        ("a.exr", b"v/1\x01", "a.exr: "),
        ("a.tiff", b"", "a map is a file that ends in .png, .npy, .exr"),
        ("gone.png", None, "no such file"),
    ],
)
def test_damaged_maps_say_what_is_wrong(tmp_path, name, data, why):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(BadRecord) as error:
        records.DepthMap(8, 6, 1.0, "z", name=name, path=tmp_path / name).load()
    assert why in str(error.value)


def test_a_pickle_and_a_colour_image_are_no_depth(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("unpickled",)

    np.save(tmp_path / "a.npy", np.array([[Evil()]], object), allow_pickle=True)
    with pytest.raises(BadRecord, match="not a readable npy file of numbers"):
        records.DepthMap(1, 1, 1.0, "z", path=tmp_path / "a.npy").load()
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(BadRecord, match="one channel of 16 bits, this one is RGB"):
        records.DepthMap(8, 6, 1.0, "z", path=tmp_path / "a.png").load()


def test_bytes_round_trip_and_every_field_is_checked():
    depth = records.encode_depth(np.full((3, 4), 2.0), "z", name="m")
    record = records.Record("r", (view(),), scene="house 7", depth_maps=(depth,))
    data = records.to_bytes(record)
    back = records.from_bytes(data)
    assert back.scene == "house 7"
    assert back.depth_maps == (depth,) or vars(back.depth_maps[0]) == vars(depth)
    wrong = {
        "scale": (0, "depth_maps[0].scale: expected a number above 0, got 0"),
        "kind": ("euclid", 'depth_maps[0].kind: expected "distance" or "z"'),
        "view": (1, "depth_maps[0].view: is 1, and the record has 1 views"),
        "width": (4.5, "depth_maps[0]: expected whole numbers as its size"),
        "data": ("text", "depth_maps[0].data: expected the bytes"),
        "name": (3, "depth_maps[0].name: expected text"),
    }
    for field, (value, why) in wrong.items():
        tree = msgpack.unpackb(data)
        tree["depth_maps"][0][field] = value
        with pytest.raises(BadRecord) as error:
            records.from_bytes(msgpack.packb(tree))
        assert why in str(error.value)
    # A path among the bytes is not followed.
    tree = msgpack.unpackb(data)
    tree["depth_maps"][0]["path"] = "/etc/passwd"
    assert records.from_bytes(msgpack.packb(tree)).depth_maps[0].path is None
    placed = dataclasses.replace(record, depth_maps=(dataclasses.replace(depth, data=None, path="m.png"),))
    with pytest.raises(ValueError, match="m: only a depth map with its bytes"):
        records.to_bytes(placed)


def test_a_record_of_maps_alone_is_sound_and_must_be_drawn_before_its_images_change(rng):
    depth = records.encode_depth(np.full((3, 4), 2.0), "z")
    record = records.Record("r", (view(),), depth_maps=(depth,))
    assert records.keep_sound(record) == (record, ())
    bad = records.DepthPoints(np.array([[1, 1]]), np.array([np.nan]), "z")
    left, removed = records.keep_sound(dataclasses.replace(record, depth=(bad,)))
    assert (len(left.depth[0].points_px), left.depth_maps) == (0, (depth,))
    assert [(one.count, one.label) for one in removed] == [(1, "depth[0][0] (1, 1) nan m")]
    for change in (records.flip, lambda r: records.with_cameras(r, r.cameras)):
        with pytest.raises(ValueError, match="r: draw_labels comes before"):
            change(record)
    drawn = records.draw_labels(record, rng, 5)
    assert drawn.depth_maps == ()
    # A map of 4 x 3 has so many pixels.
    assert len(records.flip(drawn).depth[0].points_px) == 5
    assert len(records.draw_labels(record, rng, 100).depth[0].points_px) == 12


def test_errors_are_those_that_set_a_record_aside():
    assert issubclass(BadRecord, UserError)
