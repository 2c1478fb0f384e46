"""The fixtures' world and checks themselves: the truth passes, the usual mistakes do not."""

import dataclasses

import numpy as np
import pytest

from tests.builders import truth, world
from vlm3_jax import records
from vlm3_jax.camera import Camera

FRAMES = (
    truth.Frame(55, 57, 31, 24.5, 64, 48, world.pose(0.2, -0.1, 0.1, 8, -5, 3)),
    truth.Frame(55, 57, 31, 24.5, 64, 48, world.pose(0.5, 0.1, -0.2, -7, 2, -4)),
)


def _record(frames=FRAMES[:1], kind="z") -> records.Record:
    views, depth = [], []
    for k, frame in enumerate(frames):
        seen = frame.seen()
        camera = Camera(frame.fx, frame.fy, frame.cx, frame.cy, frame.width, frame.height)
        views.append(records.View(records.encode_image(seen.rgb, f"view {k}"), camera, frame.world_T_cam))
        rows, columns = np.nonzero(np.isfinite(seen.z))
        values = getattr(seen, kind)[rows, columns]
        depth.append(records.DepthPoints(np.stack([columns, rows], -1), values, kind, k))
    return records.Record("one", tuple(views), tuple(depth))


def _check(record):
    truth.check_depth(record, FRAMES[0], 1e-3)


@pytest.mark.parametrize("kind", ["z", "distance"])
def test_the_truth_passes_and_mistakes_fail(kind):
    record = _record(kind=kind)
    _check(record)
    truth.check_image(record, FRAMES[0], tolerance=0)
    truth.all_fail(_check, truth.wrong_depths(record))


def test_another_frames_labels_fail():
    with pytest.raises(AssertionError):
        truth.check_depth(_record(), FRAMES[1], 1e-3)
    with pytest.raises(AssertionError):
        truth.check_image(_record(), FRAMES[1])


@pytest.mark.parametrize("world_T_own", [None, np.eye(4)])
def test_poses_pass_and_mistakes_fail(world_T_own):
    def check(record):
        truth.check_pose(record, FRAMES, world_T_own=world_T_own)

    pair = _record(FRAMES)
    check(pair)
    swapped = dataclasses.replace(pair, views=pair.views[::-1])
    truth.all_fail(check, truth.wrong_poses(pair) | {"the neighbour's": swapped})


def test_the_same_point_has_the_same_colour_from_elsewhere():
    seen = FRAMES[0].seen()
    points = FRAMES[0].rays() * np.where(np.isfinite(seen.z), seen.z, 0)[..., None]
    there = points @ FRAMES[0].world_T_cam[:3, :3].T + FRAMES[0].world_T_cam[:3, 3] - FRAMES[1].world_T_cam[:3, 3]
    again = world.render(there @ FRAMES[1].world_T_cam[:3, :3], FRAMES[1].world_T_cam)
    visible = np.isfinite(seen.z) & (np.abs(again.distance - np.linalg.norm(there, axis=-1)) < 1e-6)
    assert visible.mean() > 0.4
    assert np.abs(again.rgb.astype(int) - seen.rgb)[visible].max() <= 1


def test_there_is_sky_and_depth_within_reach():
    z = FRAMES[0].seen().z
    assert 0.02 < (~np.isfinite(z)).mean() < 0.5
    assert np.nanmax(z[np.isfinite(z)]) < 25


@pytest.mark.parametrize(
    "distort",
    [
        world.opencv(-0.2, 0.05, 0.001, -0.002, 0.01),
        world.fisheye(-0.03, 0.004, -0.002, 0.001),
        world.thin_prism_fisheye(-0.03, 0.01, 0.001, -0.002, 0.002, 0.001, 0.003, -0.002),
    ],
)
def test_distorted_rays_project_to_their_pixels(distort):
    rays = world.pinhole(40, 41, 31, 24.5, 64, 48, distort)
    back = distort(rays[..., :2].reshape(-1, 2)) * [40, 41] + [31, 24.5]
    np.testing.assert_allclose(back, world.pixels(64, 48).reshape(-1, 2), atol=1e-6)
    assert np.abs(rays - world.pinhole(40, 41, 31, 24.5, 64, 48)).max() > 0.01


def test_a_lidar_sees_the_world_from_where_it_stands():
    world_T_lidar = world.pose(0, -0.4, 0, 20) @ world.FORWARD_LEFT_UP
    points = world.lidar_points(world_T_lidar, world.sweep())
    assert len(points) > 1000
    ground = (points @ world_T_lidar[:3, :3].T + world_T_lidar[:3, 3])[:, 1]
    assert ground.max() == pytest.approx(1.5, abs=1e-9)
