"""Lenses and undistortion against OpenCV and COLMAP."""

import numpy as np
import pytest

from vlm3_jax.camera import Camera
from vlm3_jax.errors import BadRecord
from vlm3_jax.processor.lens import COLMAP
from vlm3_jax.processor.undistort import Distortion

cv2 = pytest.importorskip("cv2")

CAMERA = Camera(310.0, 300.0, 170.5, 110.25, 320, 240)
LENSES = {
    "opencv4": Distortion("opencv", (-0.28, 0.07, 0.001, -0.002)),
    "opencv5": Distortion("opencv", (-0.28, 0.07, 0.001, -0.002, 0.01)),
    "opencv8": Distortion("opencv", (0.5, -0.2, 0.001, -0.0005, 0.02, 0.8, -0.1, 0.03)),
    "opencv12": Distortion("opencv", (0.1, -0.2, 0.001, -0.0005, 0.02, 0.1, -0.1, 0.03, 0.002, -0.001, 0.003, 0.001)),
    "pincushion": Distortion("opencv", (0.2, 0.05, 0.0, 0.0)),
    "fisheye": Distortion("fisheye", (0.02, -0.01, 0.003, -0.0005)),
    "thin_prism": Distortion("thin_prism_fisheye", (-0.03, 0.01, 2e-4, -3e-4, -0.004, 0.001, 2e-4, 1e-4)),
}
every_lens = pytest.mark.parametrize("lens", LENSES.values(), ids=LENSES)


def random_points(rng, count=500, spread=0.6):
    return np.concatenate([rng.uniform(-spread, spread, (count, 2)), np.ones((count, 1))], -1) * rng.uniform(0.5, 9)


def grid_of(camera):
    return np.stack(np.meshgrid(np.arange(camera.width), np.arange(camera.height)), -1).reshape(-1, 2)


@every_lens
def test_projects_as_opencv(lens, rng):
    points, still = random_points(rng), np.zeros(3)
    if lens.model == "thin_prism_fisheye":
        pytest.skip("OpenCV has no such model; COLMAP is its oracle")
    project = cv2.fisheye.projectPoints if lens.model == "fisheye" else cv2.projectPoints
    wanted = project(points.reshape(-1, 1, 3), still, still, CAMERA.matrix, np.array(lens.params))[0].reshape(-1, 2)
    np.testing.assert_allclose(lens.project(points, CAMERA), wanted, atol=1e-9)


@pytest.mark.parametrize("model", COLMAP)
def test_projects_as_colmap(model, rng):
    pycolmap = pytest.importorskip("pycolmap")
    count, _, places = COLMAP[model]
    k = np.array([300.0, 171.0, 110.75]) if count == 3 else np.array([310.0, 300.0, 171.0, 110.75])
    params = np.concatenate([k, rng.uniform(-0.02, 0.02, len(places))])
    theirs = pycolmap.Camera(model=model, width=320, height=240, params=params)
    camera, lens = Distortion.from_colmap(model, params, 320, 240)
    points = random_points(rng)
    wanted = theirs.img_from_cam(points) - 0.5
    np.testing.assert_allclose(lens.project(points, camera), wanted, atol=1e-9)
    back = lens.unproject(wanted, camera)
    np.testing.assert_allclose(back[:, :2] / back[:, 2:], points[:, :2] / points[:, 2:], atol=1e-9)


@every_lens
def test_unproject_undoes_project(lens, rng):
    pixels = rng.uniform(0, [CAMERA.width - 1, CAMERA.height - 1], (2000, 2))
    rays = lens.unproject(pixels, CAMERA)
    assert np.isfinite(rays).all()
    np.testing.assert_allclose(np.linalg.norm(rays, axis=-1), 1)
    np.testing.assert_allclose(lens.project(rays * 7, CAMERA), pixels, atol=1e-9)
    new = lens.cropped(CAMERA)
    there = lens.undistort_points(pixels, CAMERA)
    np.testing.assert_allclose(lens.distort_points(there, CAMERA, new), pixels, atol=1e-8)


def test_the_axis_and_what_lies_behind():
    for lens in LENSES.values():
        np.testing.assert_allclose(lens.project([[0, 0, 5.0]], CAMERA), [[170.5, 110.25]])
    assert np.isnan(LENSES["opencv4"].project([[0.1, 0, -1.0], [1.0, 0, 0]], CAMERA)).all()
    # A fisheye sees sideways, and a little behind: theta 100 degrees.
    ray = np.array([[np.sin(np.radians(100)), 0, np.cos(np.radians(100))]])
    lens = Distortion("fisheye", (0.0, 0.0, 0.0, 0.0))
    pixel = lens.project(ray, CAMERA)
    np.testing.assert_allclose(pixel, [[170.5 + 310 * np.radians(100), 110.25]])
    np.testing.assert_allclose(lens.unproject(pixel, CAMERA), ray, atol=1e-12)
    assert np.isnan(lens.undistort_points(pixel, CAMERA)).all()


def test_points_beyond_the_fold_have_no_pixel_and_pixels_beyond_it_no_ray():
    lens = Distortion("opencv", (-0.3, 0.0, 0.0, 0.0))
    fold = np.sqrt(1 / 0.9)  # where r - 0.3 r^3 is largest
    out = np.array([[0.99 * fold, 0, 1], [1.01 * fold, 0, 1], [3, 0, 1.0]])
    assert np.isnan(lens.project(out, CAMERA)[:, 0]).tolist() == [False, True, True]
    largest = 170.5 + 310 * (fold - 0.3 * fold**3)
    rays = lens.unproject([[largest - 0.5, 110.25], [largest + 0.5, 110.25]], CAMERA)
    assert np.isnan(rays[:, 0]).tolist() == [False, True]


@pytest.mark.parametrize("name", ["opencv5", "opencv8", "pincushion"])
def test_images_as_opencv_undistorts_them(name, rng):
    lens = LENSES[name]
    small = rng.integers(0, 256, (30, 40, 3), np.uint8)
    image = cv2.resize(small, (320, 240), interpolation=cv2.INTER_CUBIC)
    wanted = cv2.undistort(image, CAMERA.matrix, np.array(lens.params))
    same, camera = lens.remove(image, CAMERA, CAMERA, "bilinear")
    assert camera == CAMERA
    seen = cv2.erode(lens.seen(CAMERA, CAMERA).astype(np.uint8), np.ones((5, 5))).astype(bool)
    assert seen.mean() > 0.8
    difference = np.abs(same.astype(int) - wanted)[seen]
    assert difference.max() <= 1


@every_lens
@pytest.mark.parametrize("sampling", ["bicubic", "bilinear"])
def test_a_smooth_image_has_the_values_of_the_mapped_pixels(lens, sampling):
    def wave(points):
        return 127.5 + 100 * np.sin(points[..., 0] / 17) * np.cos(points[..., 1] / 13)

    stored = np.rint(wave(grid_of(CAMERA))).astype(np.uint8).reshape(240, 320)
    image, new = lens.remove(stored, CAMERA, sampling=sampling)
    wanted = wave(lens.distort_points(grid_of(new), CAMERA, new)).reshape(image.shape)
    # Rounding of the values, and of the places to 1/32 px.
    difference = np.abs(image - wanted)[2:-2, 2:-2]
    assert difference.max() < 1.6
    assert difference.mean() < 0.4
    # Half a pixel would show.
    off = wave(lens.distort_points(grid_of(new), CAMERA, new) + 0.5).reshape(image.shape)
    assert np.abs(image - off).max() > 3


@every_lens
def test_depth_keeps_its_values_and_points_move_with_it(lens, rng):
    depth = rng.uniform(1, 9, (240, 320)).astype(np.float32)
    moved, new = lens.remove(depth, CAMERA, sampling="nearest")
    assert moved.dtype == np.float32
    assert np.isin(moved, depth).all()
    pixels = grid_of(CAMERA)[rng.choice(320 * 240, 400, replace=False)]
    there = np.rint(lens.undistort_points(pixels, CAMERA)).astype(int)
    kept = new.inside(there)
    back = np.rint(lens.distort_points(there, CAMERA, new)).astype(int)
    # Where the undistorted image is finer or coarser, neighbours may share a pixel.
    same = kept & (back == pixels).all(-1)
    assert same.sum() > 0.6 * kept.sum()
    np.testing.assert_array_equal(moved[there[same, 1], there[same, 0]], depth[pixels[same, 1], pixels[same, 0]])


@every_lens
@pytest.mark.parametrize("centred", [False, True])
def test_the_crop_has_no_empty_pixel_and_keeps_the_focal_lengths(lens, centred):
    new = lens.cropped(CAMERA, centred)
    assert (new.fx, new.fy) == (CAMERA.fx, CAMERA.fy)
    assert lens.seen(CAMERA, new).all()
    if centred:
        assert (new.cx, new.cy) == ((new.width - 1) / 2, (new.height - 1) / 2)
    else:
        # Whole pixels are cut, so the principal point keeps its fraction; its place in the image is off-centre.
        assert (new.cx % 1, new.cy % 1) == (0.5, 0.25)
        larger = Camera(new.fx, new.fy, new.cx + 2, new.cy + 2, new.width + 4, new.height + 4)
        seen = lens.seen(CAMERA, larger)
        assert not all(edge.all() for edge in (seen[0], seen[-1], seen[:, 0], seen[:, -1]))


def test_a_wide_fisheye_is_cut_at_the_widest_angle():
    wide = Camera(100.0, 100.0, 159.5, 119.5, 320, 240)
    new = Distortion("fisheye", (0.0, 0.0, 0.0, 0.0)).cropped(wide)
    corner = np.degrees(np.arctan(np.linalg.norm(new.rays([[0, 0]])[0, :2])))
    assert 55 < corner <= 60


@pytest.mark.parametrize("name", ["opencv5", "opencv8", "pincushion"])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_fitted_is_opencvs_optimal_matrix(name, centred, alpha):
    lens = LENSES[name]
    wanted, _ = cv2.getOptimalNewCameraMatrix(
        CAMERA.matrix, np.array(lens.params), (320, 240), alpha, (300, 200), centerPrincipalPoint=centred
    )
    found = lens.fitted(CAMERA, 300, 200, alpha, centred)
    assert (found.width, found.height) == (300, 200)
    np.testing.assert_allclose(found.matrix, wanted, rtol=1e-3)


def test_nothing_to_remove_leaves_the_pixels():
    image = np.zeros((240, 320, 3), np.uint8)
    for lens in (Distortion(), Distortion("opencv", (0.0,) * 5)):
        found, camera = lens.remove(image, CAMERA)
        assert found is image
        assert camera is CAMERA


def test_errors_say_what_is_wrong():
    with pytest.raises(BadRecord, match=r"model 'kb8' is none of pinhole, opencv"):
        Distortion("kb8", (0.1,))
    with pytest.raises(BadRecord, match="opencv: expected 4 or 5 or 8 or 12 finite numbers"):
        Distortion("opencv", (0.1, 0.2, 0.3))
    with pytest.raises(BadRecord, match="expected 4 or 5"):
        Distortion("opencv", (0.1, 0.2, 0.3, np.nan))
    with pytest.raises(BadRecord, match=r"FOV'? of COLMAP is none of"):
        Distortion.from_colmap("FOV", (1, 2, 3, 4, 5), 10, 10)
    with pytest.raises(BadRecord, match="OPENCV: expected 8 numbers, got 4"):
        Distortion.from_colmap("OPENCV", (1, 2, 3, 4), 10, 10)
    with pytest.raises(BadRecord, match="an image of 4 x 3 px, its camera is for 320 x 240"):
        Distortion().remove(np.zeros((3, 4), np.uint8), CAMERA)
    with pytest.raises(BadRecord, match="no part of the image"):
        Distortion("opencv", (-0.3, 0.0, 0.0, 0.0)).cropped(Camera(300.0, 300.0, 5000.0, 120.0, 320, 240))
