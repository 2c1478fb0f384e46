"""Labels drawn from depth maps: against planes, whose images are related by homographies, and an analytic occluder."""

import dataclasses

import numpy as np
import pytest

from vlm3_jax import records
from vlm3_jax.camera import Camera
from vlm3_jax.records import pairs

FAR, NEAR = 4.0, 2.5


def turned(yaw_deg, x=0.0, y=0.0, z=0.0):
    """A camera-to-world pose that looks to the right by an angle."""
    c, s = np.cos(np.radians(yaw_deg)), np.sin(np.radians(yaw_deg))
    pose = np.eye(4)
    pose[:3, :3] = [[c, 0, s], [0, 1, 0], [-s, 0, c]]
    pose[:3, 3] = x, y, z
    return pose


def cast(camera, pose, size, post):
    """z-depth [h, w] of the wall z = 4 and, with `post`, of a post at z = 2.5, |x| < 0.3; 0 beside both: by hand.

    One ray through the centre of each pixel of a map of `size` that covers the camera's image.
    """
    width, height = size
    u = (np.arange(width) + 0.5) * camera.width / width - 0.5
    v = (np.arange(height) + 0.5) * camera.height / height - 0.5
    rays = np.stack(np.broadcast_arrays((u - camera.cx) / camera.fx, ((v - camera.cy) / camera.fy)[:, None], 1.0), -1)
    world = rays @ pose[:3, :3].T
    z = (FAR - pose[2, 3]) / world[..., 2]
    if post:
        near = (NEAR - pose[2, 3]) / world[..., 2]
        z = np.where(np.abs(pose[0, 3] + near * world[..., 0]) < 0.3, near, z)
    return np.where(z > 0, z, 0)


@pytest.fixture(params=[(1, "z"), (2, "z"), (0.5, "distance")])
def pair(request):
    """Two posed views of a wall with a post, their maps as large as the images, half, or twice as large."""
    factor, kind = request.param
    cameras = [Camera(300.0, 310.0, 158.2, 121.7, 320, 240), Camera(260.0, 260.0, 140.0, 99.0, 288, 208)]
    poses = [turned(0), turned(-12, 0.8, 0.1, 0.3)]
    views, maps = [], []
    for number, (camera, pose) in enumerate(zip(cameras, poses)):
        image = records.encode_image(np.zeros((camera.height, camera.width, 3), np.uint8), f"{number}.png")
        size = int(camera.width / factor), int(camera.height / factor)
        z = cast(camera, pose, size, post=True)
        if kind == "distance":
            cells = np.stack(np.meshgrid(*map(np.arange, size)), -1).reshape(-1, 2)
            centres = (cells + 0.5) * [camera.width / size[0], camera.height / size[1]] - 0.5
            z = camera.distance_from_z(centres, z.ravel()).reshape(z.shape)
        views.append(records.View(image, camera, pose))
        maps.append(records.encode_depth(z, kind, 1e-4, number))
    return records.Record("r", tuple(views), depth_maps=tuple(maps))


def homography(record, plane_z):
    """Pixels of view 0 -> pixels of view 1 of what lies on the plane z = plane_z, since view 0 is the world's frame."""
    K0, K1 = (camera.matrix for camera in record.cameras)
    pose = record.views[1].world_T_cam
    R, t = pose[:3, :3].T, -pose[:3, :3].T @ pose[:3, 3]
    return K1 @ (R + np.outer(t, [0, 0, 1]) / plane_z) @ np.linalg.inv(K0)


def test_matches_lie_where_the_planes_put_them(pair, rng):
    drawn = records.draw_labels(pair, rng, 400)
    p0, p1 = drawn.matches.points0_px, drawn.matches.points1_px
    assert len(p0) > 150
    assert p0.dtype == np.int32
    assert drawn.cameras[1].inside(p1).all()
    errors = []
    for plane in (FAR, NEAR):
        mapped = np.c_[p0, np.ones(len(p0))] @ homography(pair, plane).T
        errors.append(np.linalg.norm(mapped[:, :2] / mapped[:, 2:] - p1, axis=1))
    # Of a coarser map the depth is that of the middle of four pixels, half a pixel off.
    assert (np.min(errors, 0) < 0.05 + 0.3 * (pair.depth_maps[0].width < 320)).all()
    assert (errors[0] > 2).any()
    assert (errors[1] > 2).any()


def test_what_the_post_hides_is_no_match(pair, rng):
    """The ray from view 1 to the wall point of a match does not meet the post."""
    drawn = records.draw_labels(pair, rng, 400)
    pose = pair.views[1].world_T_cam
    rays = pair.cameras[1].rays(drawn.matches.points1_px) @ pose[:3, :3].T
    at_post = pose[0, 3] + (NEAR - pose[2, 3]) / rays[:, 2] * rays[:, 0]
    wall = np.linalg.norm(
        (m := np.c_[drawn.matches.points0_px, np.ones(len(rays))] @ homography(pair, FAR).T)[:, :2] / m[:, 2:]
        - drawn.matches.points1_px,
        axis=1,
    )
    # At its very edge the nearest pixel may show either.
    assert not ((np.abs(at_post) < 0.28) & (wall < 0.4)).any()
    assert pairs.occlusion_tolerance_m(2.0) == pytest.approx(0.1 + 0.01 + 0.0693147, abs=1e-6)


def test_depth_points_are_those_of_the_surface(pair, rng):
    drawn = records.draw_labels(pair, rng, 300)
    assert [label.view for label in drawn.depth] == [0, 1]
    for label, view, stored in zip(drawn.depth, drawn.views, pair.depth_maps):
        camera = view.camera
        truth = cast(camera, view.world_T_cam, (camera.width, camera.height), post=True)
        x, y = label.points_px.T
        assert len(np.unique(label.points_px, axis=0)) == len(x)
        expected = truth[y, x]
        if label.kind == "distance":
            expected = camera.distance_from_z(label.points_px, expected)
        off = np.abs(label.depth_m / expected - 1)
        # A coarse or fine map shows the other surface at the post's edges.
        assert (off < 0.004).mean() > (0.999 if stored.width == camera.width else 0.97)


def test_covisibility_is_the_share_that_is_seen(pair, rng):
    """Against a count over all pixels, with the post's shadow found by hand."""
    shares = []
    for a, b in ((0, 1), (1, 0)):
        source, target = pair.views[a], pair.views[b]
        z = cast(source.camera, source.world_T_cam, (source.camera.width, source.camera.height), post=True)
        v, u = np.indices(z.shape)
        points = source.camera.rays(np.stack([u.ravel(), v.ravel()], -1)) * z.reshape(-1, 1)
        world = points @ source.world_T_cam[:3, :3].T + source.world_T_cam[:3, 3]
        centre = target.world_T_cam[:3, 3]
        local = (world - centre) @ target.world_T_cam[:3, :3]
        inside = (local[:, 2] > 0) & target.camera.inside(target.camera.project(local))
        crossing = centre[0] + (NEAR - centre[2]) / (world[:, 2] - centre[2]) * (world[:, 0] - centre[0])
        hidden = (np.abs(world[:, 2] - FAR) < 1e-3) & (np.abs(crossing) < 0.3)
        shares.append((inside & ~hidden)[z.ravel() > 0].mean())
    assert records.draw_labels(pair, rng, 10).covisibility == pytest.approx(np.mean(shares), abs=0.02)


def test_what_is_stored_stays_and_equal_generators_draw_alike(pair):
    first, again = (records.draw_labels(pair, np.random.default_rng(5), 50) for _ in range(2))
    assert records.to_bytes(first) == records.to_bytes(again)
    other = records.draw_labels(pair, np.random.default_rng(6), 50)
    assert records.to_bytes(first) != records.to_bytes(other)
    known = dataclasses.replace(pair, covisibility=0.7, matches=first.matches)
    drawn = records.draw_labels(known, np.random.default_rng(6), 50)
    assert drawn.covisibility == 0.7
    assert drawn.matches is first.matches


def test_without_poses_or_a_second_map_there_are_points_only(pair, rng):
    lost = dataclasses.replace(pair.views[1], world_T_cam=None)
    for record in (
        dataclasses.replace(pair, views=(pair.views[0], lost)),
        dataclasses.replace(pair, depth_maps=pair.depth_maps[:1]),
    ):
        drawn = records.draw_labels(record, rng, 20)
        assert (drawn.matches, drawn.covisibility, drawn.depth_maps) == (None, None, ())
        assert len(drawn.depth) == len(record.depth_maps)


def test_views_that_look_away_share_nothing(pair, rng):
    away = dataclasses.replace(pair.views[1], world_T_cam=turned(180))
    drawn = records.draw_labels(dataclasses.replace(pair, views=(pair.views[0], away)), rng, 20)
    assert drawn.covisibility == 0
    assert drawn.matches.points0_px.shape == drawn.matches.points1_px.shape == (0, 2)


def test_up_to_scale_the_rule_goes_by_the_distance(pair):
    """Everything a hundredth as large: the metres of the rule would let all of the hidden wall through."""
    small = dataclasses.replace(
        pair,
        metric=False,
        depth_maps=tuple(dataclasses.replace(m, scale=m.scale / 100) for m in pair.depth_maps),
        views=tuple(dataclasses.replace(v, world_T_cam=_shrunk(v.world_T_cam)) for v in pair.views),
    )
    metric = dataclasses.replace(small, metric=True)
    whole, lenient = (records.draw_labels(r, np.random.default_rng(0), 10).covisibility for r in (pair, metric))
    found = records.draw_labels(small, np.random.default_rng(0), 10).covisibility
    assert found == pytest.approx(whole, abs=0.01)
    assert lenient > found + 0.02


def _shrunk(pose):
    return np.block([[pose[:3, :3], pose[:3, 3:] / 100], [pose[3:]]])
