"""Rendered depth, ids and poses against geometry worked out here, by other means than ray casting triangles."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from vlm3_jax.camera import Camera
from vlm3_jax.synth import SynthOptions, render_views
from vlm3_jax.synth import things as things_
from vlm3_jax.synth.render import Caster, render
from vlm3_jax.synth.scene import Scene
from vlm3_jax.synth.shapes import BALL, BOX, CONE, CYLINDER, WHEEL, Material, Part, Placed, Thing, soup
from vlm3_jax.synth.viewpoints import pose_matrix

GREY = Material(0, (1.0, 1.0), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CAMERA = Camera(70.0, 75.0, 31.0, 22.0, 64, 48)
OPTIONS = SynthOptions(width=96, height=72, focal_px=96.0)


def make_scene(placed, light=(0.3, -0.9, 0.2, 0.0)) -> Scene:
    ground = Placed(Thing("structure", [Part(BOX, (100.0, 0.2, 100.0), (0, -0.2, 0), GREY)], 100, 100), 0, 0)
    placed = [ground, *placed]
    triangles = soup(placed, np.random.default_rng(0))
    sky = np.full((2, 3), 0.2, np.float32)
    return Scene(tuple(placed), triangles, False, (5, 5), np.zeros((0, 4)), np.float32(light), 0.4, sky, 1)


def box_depth(placed, camera, pose):
    """z-depth [H, W] of the nearest box along each pixel's ray by the slab method, 0 where none is hit."""
    v, u = np.mgrid[: camera.height, : camera.width]
    rays = np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones(u.shape)], -1)
    world = rays @ pose[:3, :3].T
    nearest = np.full(u.shape, np.inf)
    for item in placed:
        turn = Rotation.from_euler("y", item.yaw).as_matrix()
        for part in item.thing.parts:
            centre = turn @ [part.at[0], -(part.at[1] + part.size[1] / 2), part.at[2]] + [item.x, -item.base, item.z]
            origin, direction = turn.T @ (pose[:3, 3] - centre), world @ turn
            with np.errstate(divide="ignore"):
                a, b = (-np.array(part.size) / 2 - origin) / direction, (np.array(part.size) / 2 - origin) / direction
            enter, leave = np.minimum(a, b).max(-1), np.maximum(a, b).min(-1)
            nearest = np.where((enter <= leave) & (enter > 0), np.minimum(nearest, enter), nearest)
    return np.where(np.isfinite(nearest), nearest, 0)


def test_depth_equals_the_slab_method_on_boxes():
    rng = np.random.default_rng(3)
    makers = (things_.sofa, things_.chair, things_.table, things_.shelf, things_.house)
    places = [(-1.5, 3.0), (0.8, 2.5), (2.5, 5.0), (-0.7, 6.5), (4.0, 20.0)]
    placed = [Placed(make(rng), x, z, rng.uniform(0, 6)) for make, (x, z) in zip(makers, places)]
    placed[1] = placed[1]._replace(base=0.4)
    scene = make_scene(placed)
    pose = pose_matrix((0.2, -1.4, -0.5), 0.1, 0.12, 0.05)
    rendered = render(scene, Caster(scene), CAMERA, pose[None])
    expected = box_depth(scene.placed, CAMERA, pose)
    # Silhouette pixels may fall to either side within float32 rounding; all others must agree.
    close = np.isclose(rendered.z_m[0], expected, rtol=2e-5, atol=1e-5)
    assert close.mean() > 0.998
    assert len(np.unique(rendered.ids)) == 6


def beyond(kind, p):
    """How far points [N, 3] lie outside the ideal shape of unit size (0 or less: inside)."""
    if kind == CYLINDER:
        return np.maximum(np.hypot(p[:, 0], p[:, 2]) - 0.5, abs(p[:, 1]) - 0.5)
    if kind == WHEEL:
        return np.maximum(np.hypot(p[:, 1], p[:, 2]) - 0.5, abs(p[:, 0]) - 0.5)
    if kind == BALL:
        return np.linalg.norm(p, axis=-1) - 0.5
    return np.maximum(np.hypot(p[:, 0], p[:, 2]) - (p[:, 1] + 0.5) / 2, p[:, 1] - 0.5)


@pytest.mark.parametrize("kind", [CYLINDER, WHEEL, BALL, CONE])
def test_round_shapes_fill_their_ideal_shape(kind):
    """A polyhedron inscribed in the ideal shape: all corners on or in it, most of its volume, normals outward."""
    size = np.array([0.8, 0.6, 1.2])
    item = Placed(Thing("x", [Part(kind, tuple(size), (0, -0.3, 0), GREY)], 1, 1), 0, 0)
    mesh = soup([item], np.random.default_rng(0))
    corners = mesh.corners.astype(np.float64)
    assert beyond(kind, corners.reshape(-1, 3) / size).max() < 1e-6
    np.testing.assert_allclose(np.abs(corners).reshape(-1, 3).max(0), size / 2, rtol=0.06)
    area = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area *= np.sign((area * mesh.normals).sum(-1))[:, None]
    volume = (area * corners.mean(1)).sum() / 6
    ideal = {CYLINDER: np.pi / 4, WHEEL: np.pi / 4, BALL: np.pi / 6, CONE: np.pi / 12}[kind] * size.prod()
    assert 0.8 * ideal < volume < ideal


def test_pose_is_yaw_then_pitch_then_roll():
    pose = pose_matrix((1.0, -1.5, 2.0), 0.7, 0.3, -0.1)
    expected = Rotation.from_euler("YXZ", [0.7, -0.3, -0.1]).as_matrix()
    np.testing.assert_allclose(pose[:3, :3], expected, atol=1e-12)
    assert pose[1, 2] > 0, "a camera that is pitched down looks towards +y, which is down"


def test_shadow_falls_on_the_ground_away_from_the_sun():
    post = Placed(Thing("post", [Part(BOX, (0.4, 2.0, 0.4), (0, 0, 0), GREY)], 1, 1), 0.0, 4.0)
    # The sun stands at +x, 45 degrees up: the shadow lies at -x and is as long as the post is high.
    scene = make_scene([post], light=(np.sqrt(0.5), -np.sqrt(0.5), 0.0, 0.0))
    camera = Camera(100.0, 100.0, 80.0, 60.0, 160, 120)
    pose = pose_matrix((0.0, -3.0, -1.0), 0.0, 0.5, 0.0)
    image = render(scene, Caster(scene), camera, pose[None]).images[0].astype(float).mean(-1)

    def brightness(x, z):
        local = pose[:3, :3].T @ (np.array([x, 0.0, z]) - pose[:3, 3])
        u, v = camera.project(local)[0]
        return image[round(v), round(u)]

    for x in (-0.6, -1.2, -1.8):
        assert brightness(x, 4.0) < 0.7 * brightness(-x, 4.0)
    assert brightness(-2.6, 4.0) == pytest.approx(brightness(2.6, 4.0), abs=2)


@pytest.mark.parametrize("index", range(6))
def test_the_views_agree_in_depth_where_both_see(index):
    """Unproject view 0, project to view 1: pixels are in front of nothing seen there, and most agree."""
    views = render_views(11, index, OPTIONS)
    camera, (z0, z1) = views.camera, views.rendered.z_m
    v, u = np.nonzero(z0)
    rays = np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones(len(u))], -1)
    world = views.poses[0] @ np.concatenate([rays * z0[v, u, None], np.ones((len(u), 1))], -1).T
    local = (np.linalg.inv(views.poses[1]) @ world)[:3].T
    local = local[local[:, 2] > 0.1]
    x, y = camera.project(local).T
    keep = (x >= 1) & (x <= camera.width - 2) & (y >= 1) & (y <= camera.height - 2)
    x, y, z = x[keep], y[keep], local[keep, 2]
    around = np.stack(
        [z1[np.floor(y + dy).astype(int), np.floor(x + dx).astype(int)] for dx in (0, 1) for dy in (0, 1)]
    )
    around = np.where(around == 0, np.inf, around)
    assert (around.min(0) <= z * 1.03 + 0.02).mean() > 0.999, "view 1 sees through a surface of view 0"
    agree = (around.min(0) <= z * 1.001) & (z <= around.max(0) * 1.001)
    assert agree.mean() > 0.3


@pytest.mark.parametrize(("share", "low", "high", "far"), [(1.0, 0.3, 10.5, 2.0), (0.0, 0.3, 60.0, 10.0)])
def test_scenes_are_varied_and_of_sane_scale(share, low, high, far):
    options = SynthOptions(width=64, height=48, focal_px=64.0, room_share=share)
    depths, deviations, medians = [], [], []
    for index in range(12):
        views = render_views(5, index, options)
        z = views.rendered.z_m
        assert (z > 0).mean() > (0.995 if share else 0.3)
        depths.append(z[(z > 0) & (z < 60)])
        medians.append(np.median(depths[-1]))
        deviations.append(views.rendered.images[0].std())
        assert 0.5 * 64 <= views.camera.fx <= 2 * 64
        for pose in views.poses:
            assert 0.8 <= -pose[1, 3] <= 2.0
            np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-12)
            _, pitch, roll = Rotation.from_matrix(pose[:3, :3]).as_euler("YXZ", degrees=True)
            assert -28.001 <= pitch <= 5.001
            assert abs(roll) <= 3.001
    depths = np.concatenate(depths)
    assert low < np.percentile(depths, 1)
    assert depths.max() < high
    assert np.percentile(depths, 90) > far
    assert np.median(deviations) > 20, "images are flat"
    assert np.std(medians) > 0.3


def test_lamp_light_is_not_blocked_by_the_ceiling():
    """Rooms are lit: with shadow rays that ran past the lamp, the ceiling would leave the ambient part alone."""
    options = SynthOptions(width=64, height=48, focal_px=64.0, room_share=1.0)
    views = render_views(5, 1, options)
    unlit = render(
        Scene(**{**vars(views.scene), "light": np.float32([0, 50, 0, 1])}), views.caster, views.camera, views.poses
    )
    assert views.rendered.images.mean() > 1.15 * unlit.images.mean()
