import io

import numpy as np
import pytest
from PIL import Image

from vlm3_jax.builders import posed
from vlm3_jax.builders.readers import mvsnet, numbers, opensfm, pytorch3d, raster
from vlm3_jax.errors import BadRecord


def test_pairs_of_a_window_depend_on_the_scene_alone():
    found = list(posed.window_pairs("scene", 50, 6, 3))
    assert found == list(posed.window_pairs("scene", 50, 6, 3))
    assert found != list(posed.window_pairs("other", 50, 6, 3))
    assert all(1 <= abs(a - b) <= 6 for a, b in found)
    assert len({frozenset(pair) for pair in found}) == len(found) == 3 * 47 + 2 + 1
    # Either frame may be the reference.
    assert 0.3 < np.mean([a < b for a, b in found]) < 0.7
    assert set(posed.window_pairs("scene", 20, 6, 3)) & set(found)


def test_about_one_scene_in_twenty_is_held_out():
    assert 30 < sum(posed.one_in(f"scene {n}", 20) for n in range(1000)) < 75


@pytest.mark.parametrize("text", ["../a", "/etc/passwd", "a/../../b", ""])
def test_paths_of_annotations_stay_in_the_raw_folder(tmp_path, text):
    with pytest.raises(BadRecord, match="leads out of the raw folder"):
        posed.below(tmp_path, text)


def test_depth_without_a_unit_uses_all_of_16_bits():
    depth = np.array([[1e-4, 2e-4], [np.nan, 0.5]])
    kept = posed.storable(depth, metric=False)
    # Half a unit is beyond a hundred times the median.
    assert np.isfinite(kept).tolist() == [[True, True], [False, False]]
    found = posed.stored_depth(kept, "z", False, 0, "x").load()
    np.testing.assert_allclose(found[0], depth[0], rtol=1e-4)


def _png(values, mode=None) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values, mode).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("read", "data", "message"),
    [
        (raster.half, _png(np.zeros((2, 2), np.uint8)), r"^x: expected .* 16 bits, this one is L"),
        (
            raster.float_bgra,
            _png(np.zeros((2, 2, 3), np.uint8)),
            r"^x: expected a PNG of four channels, this one is RGB",
        ),
        (raster.uint16, _png(np.zeros((2, 2), np.uint16))[:40], r"^x: cannot decode the map"),
        (mvsnet.read_cam, b"extrinsic\n1 2 3", r"^x: no camera file of MVSNet"),
        (mvsnet.read_pairs, b"2\n0\n3 1 1.0", r"^x: no pair.txt of MVSNet"),
        (numbers.read_rows, b"1 2\n3\n", r"^x: expected lines of"),
        (numbers.read_json, b"\x1f\x8bgone", r"^x: cannot be read as JSON"),
        (opensfm.read_shots, [], r"^x: no reconstruction of OpenSfM"),
    ],
)
def test_damaged_files_are_named(read, data, message):
    with pytest.raises(BadRecord, match=message):
        read(data, "x")


def test_bits_of_halves_and_floats_are_read():
    depth = np.array([[0.0, 1.5, 8.25], [np.inf, 2.0, 60000]])
    np.testing.assert_array_equal(raster.half(_png(depth.astype(np.float16).view(np.uint16)), "x"), depth)


def test_other_units_of_pytorch3d():
    tree = {"R": np.eye(3).tolist(), "T": [0, 0, 0], "focal_length": [1.0, 2.0], "principal_point": [0.5, -0.25]}
    both = tree | {"intrinsics_format": "NDC_NORM_IMAGE_BOUNDS"}
    assert pytorch3d.read_viewpoint(both, 640, 480, "x").K == (320, 480, 160, 300)
    isotropic = tree | {"intrinsics_format": "ndc_isotropic"}
    assert pytorch3d.read_viewpoint(isotropic, 640, 480, "x").K == (240, 480, 200, 300)
    with pytest.raises(BadRecord, match="intrinsics_format 'pixels'"):
        pytorch3d.read_viewpoint(tree | {"intrinsics_format": "pixels"}, 640, 480, "x")
