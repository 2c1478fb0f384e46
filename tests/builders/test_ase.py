import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tests.builders import files, pairs, world
from vlm3_jax.builders.ase import DEVICE_T_CAMERA, Ase

SIZE = 64
SCALE = SIZE / 704
FOCAL = 297.6375381033778 * SCALE
CENTRE = (np.array([357.6599197217746, 349.1922497127481]) + 0.5) * SCALE - 0.5
RADIAL = (
    0.3650890375644368,
    -0.1738082418112771,
    -0.7534945484033189,
    2.434788882752295,
    -2.57786220300886,
    0.8788483538598834,
)
TANGENTIAL = np.array([0.0008005198595407136, -0.000294237814554143])
SQUARE = {"fx": FOCAL, "fy": FOCAL, "cx": (SIZE - 1) / 2, "cy": (SIZE - 1) / 2}
FRAMES = {f"{n:07d}": frame for n, frame in enumerate(pairs.walk(SIZE, SIZE, own_cameras=False, **SQUARE))}


def bent(chart):
    """Aria's Fisheye624, of theta times the direction in the image, without its thin prism (which is 0)."""
    theta2 = (chart**2).sum(-1, keepdims=True)
    xy = chart * (1 + sum(k * theta2 ** (n + 1) for n, k in enumerate(RADIAL)))
    return xy + 2 * (xy * TANGENTIAL).sum(-1, keepdims=True) * xy + (xy**2).sum(-1, keepdims=True) * TANGENTIAL


def fisheye_rays():
    """The rays of the stored image [H, W, 3]; NaN outside of the valid circle."""
    places = (world.pixels(SIZE, SIZE) - CENTRE) / FOCAL
    valid = np.linalg.norm(places, axis=-1) * FOCAL < 353.75 * SCALE
    rays = np.full((SIZE, SIZE, 3), np.nan)
    chart = world.invert(bent, places[valid])
    theta = np.linalg.norm(chart, axis=-1, keepdims=True)
    rays[valid] = np.concatenate([chart * np.sinc(theta / np.pi), np.cos(theta)], -1)
    return rays


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ase") / "1"
    rays, lines = fisheye_rays(), ["#graph_uid, tracking_timestamp_us, utc, tx_world_device, ty, tz, qx, qy, qz, qw"]
    for n, (key, frame) in enumerate(FRAMES.items()):
        # The camera lies on its left side: what is up is on the left of its image.
        stored = frame.world_T_cam @ world.pose(roll=90)
        seen = world.render(rays, stored)
        files.jpeg(folder / f"rgb/vignette{key}.jpg", seen.rgb)
        files.png(folder / f"depth/depth{key}.png", files.steps(seen.distance, 1000, open_sky=65535 * (n % 2)))
        device = stored @ np.linalg.inv(DEVICE_T_CAMERA)
        values = (*device[:3, 3], *Rotation.from_matrix(device[:3, :3]).as_quat())
        lines.append(f"{n},{50000 * n},-1," + ",".join(f"{v:.10g}" for v in values))
    files.text(folder / "trajectory.csv", "\n".join(lines) + "\n")
    return folder.parent


def test_gives_back_distance_cameras_and_poses(raw):
    split = "train" if Ase().frames(raw, "train") else "val"
    records, skipped = pairs.build(Ase(), raw, split)
    assert not skipped
    assert len(records) == 3
    assert all(label.kind == "distance" for record in records.values() for label in record.depth_maps)
    # Between stored pixels, a fortieth of a radian apart, distances are interpolated.
    pairs.check(records, FRAMES, tolerance_m=0.01, covered=0.3, share=0.96)


def test_the_calibration_is_that_of_the_tools():
    np.testing.assert_allclose(DEVICE_T_CAMERA[:3, 3], [-0.0075301, -0.0109085, -0.0035981], atol=1e-7)
    expected = Rotation.from_quat([0.32640934382849085, 0.029274992008313648, 0.033361059956531547, 0.9441858687689326])
    np.testing.assert_allclose(DEVICE_T_CAMERA[:3, :3], expected.as_matrix(), atol=1e-9)
