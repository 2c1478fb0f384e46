"""ETH3D: headerless depth on the distorted photo's pixels, all eight parameters of the lens, a photo on its side."""

import numpy as np
import pytest

from tests.builders import files, pairs, truth, vehicle, world
from vlm3_jax.builders import common
from vlm3_jax.builders.eth3d import Eth3d
from vlm3_jax.builders.eth3d_pairs import Eth3dPairs
from vlm3_jax.errors import BadRecord, UserError

WIDTH, HEIGHT = 96, 64
K = (62.0, 61.5, 47.9, 32.6)
LENS = (-0.05, 0.02, 0.012, -0.015, 0.004, 0.002, 0.02, -0.015)
# The second was taken in portrait: the camera is rolled, and the file is stored as the sensor saw it.
PHOTOS = {"DSC_0219": world.pose(0.1, 0, 0, 6, 4, -3), "DSC_0711": world.pose(-0.2, 0.1, 0.2, -15, 2, 90)}


def _rays() -> np.ndarray:
    # COLMAP's pixels: the first one's centre is 0.5.
    fx, fy, cx, cy = K
    return world.pinhole(fx, fy, cx - 0.5, cy - 0.5, WIDTH, HEIGHT, world.thin_prism_fisheye(*LENS))


def write(root, kind="z", lens=LENS, invert=False):
    """Two photos of delivery_area and one without depth; cameras.txt has another camera first."""
    scene = root / "delivery_area"
    cameras = ["# Camera list", "1 PINHOLE 10 10 5 5 5 5"]
    cameras.append(f"7 THIN_PRISM_FISHEYE {WIDTH} {HEIGHT} {' '.join(map(str, (*K, *lens)))}")
    images = ["# Image list with two lines of data per image:"]
    for number, (name, world_T_cam) in enumerate([*PHOTOS.items(), ("DSC_0220", np.eye(4))]):
        seen = world.render(_rays(), world_T_cam)
        files.jpeg(scene / "images" / "dslr_images" / f"{name}.JPG", seen.rgb)
        if name != "DSC_0220":
            path = scene / "ground_truth_depth" / "dslr_images" / f"{name}.JPG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(getattr(seen, kind).astype("<f4").tobytes())
        stored = world_T_cam if invert else np.linalg.inv(world_T_cam)
        numbers = " ".join(map(repr, [*vehicle.quaternion(stored).tolist(), *stored[:3, 3].tolist()]))
        images += [f"{9 - number} {numbers} 7 dslr_images/{name}.JPG", "1.5 2.5 -1" if number else ""]
    files.text(scene / "dslr_calibration_jpg" / "cameras.txt", "\n".join(cameras) + "\n")
    files.text(scene / "dslr_calibration_jpg" / "images.txt", "\n".join(images) + "\n")
    return root


def _built(root, **options) -> dict:
    builder, found = Eth3d(common.Options(**options)), {}
    for item in builder.frames(root, "train"):
        try:
            found[item.key] = builder.record(root, item)
        except common.Skip as skip:
            found[item.key] = skip
    return found


def _frame(record, name: str) -> truth.Frame:
    camera, (fx, fy, cx, cy) = record.views[0].camera, K
    shift = np.array([cx - 0.5 - camera.cx, cy - 0.5 - camera.cy])
    np.testing.assert_allclose(shift, np.rint(shift), atol=1e-6)
    assert camera.width > 60
    return truth.Frame(fx, fy, camera.cx, camera.cy, camera.width, camera.height, PHOTOS[name])


def _check(record, name: str, tolerance_m: float = 1e-3) -> None:
    # A nearest pixel of the photo is up to half a pixel away, and pixels spread towards the corners.
    truth.check_depth(record, _frame(record, name), tolerance_m, spread_px=1.0, share=0.98, least=0.3)


def _check_both(record, name: str) -> None:
    _check(record, name)
    truth.check_pose(record, [_frame(record, name)], world_T_own=np.eye(4))


@pytest.mark.parametrize("name", list(PHOTOS))
@pytest.mark.parametrize("depthlm", [False, True])
def test_gives_back_the_world(tmp_path, name, depthlm):
    record = _built(write(tmp_path), depthlm=depthlm)[f"delivery_area/{name}"]
    frame = _frame(record, name)
    # A distance is made of the z of the nearest pixel of the photo and the ray of the new one.
    _check(record, name, 0.05 if depthlm else 1e-3)
    assert record.depth_maps[0].kind == ("distance" if depthlm else "z")
    truth.check_image(record, frame, tolerance=5)
    truth.check_pose(record, [frame], world_T_own=np.eye(4))
    truth.all_fail(lambda one: truth.check_pose(one, [frame], world_T_own=np.eye(4)), truth.wrong_poses(record))
    with pytest.raises(AssertionError):
        _check(record, next(other for other in PHOTOS if other != name))


@pytest.mark.parametrize(
    "wrong",
    [{"kind": "distance"}, {"lens": (*LENS[:2], 0, 0, *LENS[4:6], 0, 0)}, {"invert": True}],
    ids=["distances", "a lens without its tangential and prism terms", "inverted poses"],
)
def test_files_that_mean_something_else_would_fail(tmp_path, wrong):
    record = _built(write(tmp_path, **wrong))["delivery_area/DSC_0219"]
    with pytest.raises(AssertionError):
        _check_both(record, "DSC_0219")


def test_photos_without_depth_are_counted_and_damage_is_named(tmp_path):
    found = _built(write(tmp_path))
    assert list(found) == sorted(found)
    assert isinstance(found["delivery_area/DSC_0220"], common.Skip)
    (tmp_path / "delivery_area" / "ground_truth_depth" / "dslr_images" / "DSC_0711.JPG").write_bytes(b"1234")
    with pytest.raises(BadRecord, match="depth of 4 bytes"):
        _built(tmp_path)
    with pytest.raises(UserError, match="courtyard"):
        Eth3d().frames(tmp_path / "delivery_area", "train")


def test_pairs_are_of_the_same_photos(tmp_path):
    records, skipped = pairs.build(Eth3dPairs(), write(tmp_path), "test")
    singles = _built(tmp_path)
    # The two photos do not look the same way (one is rolled), yet share enough; the third has no depth.
    assert list(records) == ["delivery_area/DSC_0219-DSC_0711"] or list(records) == ["delivery_area/DSC_0711-DSC_0219"]
    assert all("no depth" in reason for reason in skipped.values())
    (record,) = records.values()
    for name, view, depth in zip(record.id.split("/")[1].split("-"), record.views, record.depth_maps, strict=True):
        single = singles[f"delivery_area/{name}"]
        np.testing.assert_array_equal(view.world_T_cam, single.views[0].world_T_cam)
        assert view.camera == single.views[0].camera
        np.testing.assert_allclose(depth.load(), single.depth_maps[0].load(), atol=1.1e-3)
    assert record.covisibility > 0.025
