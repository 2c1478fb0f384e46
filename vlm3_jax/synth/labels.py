"""Exact labels from rendered depth: covisibility, depth points, objects, matches."""

import numpy as np

from vlm3_jax.camera import Camera
from vlm3_jax.records import DepthMap, DepthPoints, Matches, Objects, pairs
from vlm3_jax.records.pairs import rotate
from vlm3_jax.synth.options import SynthOptions
from vlm3_jax.synth.render import Caster, Rendered, world_rays
from vlm3_jax.synth.scene import Scene
from vlm3_jax.synth.shapes import rotation_y

Rng = np.random.Generator
# Width of the depth classes that `even_depth` asks alike: 25 %, the tolerance of delta1.
EVEN_BIN = np.log(1.25)
COVISIBILITY_PIXELS = 6_000
OBJECT_POINTS = 96
MIN_OBJECT_PIXELS = 12


def _inside(camera: Camera, pixels) -> np.ndarray:
    x, y = pixels[:, 0], pixels[:, 1]
    return (x >= 0) & (x <= camera.width - 1) & (y >= 0) & (y <= camera.height - 1)


def _views(camera: Camera, z_maps, poses) -> list[pairs.DepthView]:
    whole = DepthMap(camera.width, camera.height, 1.0, "z")
    return [pairs.DepthView(camera, pose, whole, z) for pose, z in zip(poses, z_maps, strict=True)]


def covisibility(camera: Camera, z_maps, poses) -> float:
    """`pairs.covisibility` on a grid of about `COVISIBILITY_PIXELS`."""
    step = max(1, round(np.sqrt(camera.width * camera.height / COVISIBILITY_PIXELS)))
    return pairs.covisibility(*_views(camera, z_maps, poses), step=step)


def _labelled_pixels(rng: Rng, camera: Camera, z_map, distance_limit, count):
    """Up to `count` different random pixels [N, 2] with depth nearer than the limit, and their z (m)."""
    flat = z_map.ravel()
    chosen = rng.choice(flat.size, min(4 * count, flat.size), replace=False)
    points = np.stack([chosen % camera.width, chosen // camera.width], -1)
    z = flat[chosen]
    good = (z > 0) & (camera.distance_from_z(points, z) <= distance_limit)
    return points[good][:count], z[good][:count]


def depth_points(rng: Rng, camera: Camera, z_map, view: int, options: SynthOptions) -> DepthPoints:
    """Random pixels of one view with their distance to the camera centre."""
    pool = 16 * options.depth_points if options.even_depth else options.depth_points
    points, z = _labelled_pixels(rng, camera, z_map, options.max_depth_m, pool)
    distance = camera.distance_from_z(points, z)
    if options.even_depth and len(points) > options.depth_points:
        bins = np.floor(np.log(distance) / EVEN_BIN).astype(np.int64)
        share = 1 / np.bincount(bins - bins.min())[bins - bins.min()]
        chosen = rng.choice(len(points), options.depth_points, replace=False, p=share / share.sum())
        points, distance = points[chosen], distance[chosen]
    return DepthPoints(points.astype(np.int32), distance.astype(np.float32), "distance", view)


def matches(rng: Rng, camera: Camera, caster: Caster, z_maps, poses, options: SynthOptions) -> Matches:
    """Random pixels of view 0 whose surface point view 1 sees.

    Both the published rule on the depth map and an exact ray must agree: the rule's tolerance (17 cm and more) would
    let a wall close behind an object through.
    """
    points, z = _labelled_pixels(rng, camera, z_maps[0], options.max_depth_m, 4 * options.matches)
    pixels, distance = pairs.project_pixels(camera, points, z, poses[0], poses[1])
    keep = np.flatnonzero(_views(camera, z_maps, poses)[1].sees(pixels, distance))
    hits = caster.cast(*world_rays(camera.rays(pixels[keep]), poses[1]))
    expected = camera.z_from_distance(pixels[keep], distance[keep])
    keep = keep[np.abs(hits.t - expected) < 2e-3 * expected][: options.matches]
    return Matches(points[keep].astype(np.int32), pixels[keep].astype(np.float32))


def objects(rng: Rng, scene: Scene, camera: Camera, rendered: Rendered, pose, options: SynthOptions) -> Objects:
    """Objects of view 0 with boxes around their visible pixels (both corners are pixels of the box).

    Left out: what covers too few pixels, lies more than half outside the image, or is mostly hidden (the visible box
    is under a quarter of the whole one). Surface points are of the whole object, its extreme corners included.
    """
    ids = rendered.ids[0]
    counts = np.bincount(ids[ids >= 0].ravel(), minlength=1)
    least = max(MIN_OBJECT_PIXELS, options.min_object_share * ids.size)
    gravity_T_world = rotation_y(np.arctan2(pose[0, 2], pose[2, 2])).T
    boxes, names, points = [], [], []
    for index in np.flatnonzero(counts >= least):
        mask = ids == index
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = np.array([columns[0], rows[0], columns[-1], rows[-1]])
        surface = _surface_points(rng, scene, index) - pose[:3, 3]
        if _mostly_seen(camera, rotate(surface, pose[:3, :3].T), box):
            boxes.append(box)
            names.append(scene.placed[index].thing.name)
            points.append(_samples_and_extremes(rotate(surface, gravity_T_world)).astype(np.float32))
    return Objects(np.array(boxes, np.int32).reshape(-1, 4), tuple(names), tuple(points), 0)


def _surface_points(rng: Rng, scene: Scene, index) -> np.ndarray:
    """World points [P, 3] of a placed thing: area-weighted samples and, behind them, all of its corners."""
    corners = scene.soup.corners[scene.soup.owner[scene.soup.part] == index].astype(np.float64)
    edges = corners[:, 1:] - corners[:, :1]
    area = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=-1)
    chosen = np.searchsorted(np.cumsum(area) / area.sum(), rng.random(OBJECT_POINTS))
    u, v = rng.random((2, OBJECT_POINTS, 1))
    u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
    samples = corners[chosen, 0] + u * edges[chosen, 0] + v * edges[chosen, 1]
    return np.concatenate([samples, corners.reshape(-1, 3)])


def _samples_and_extremes(points) -> np.ndarray:
    corners = points[OBJECT_POINTS:]
    return np.concatenate([points[:OBJECT_POINTS], corners[corners.argmin(0)], corners[corners.argmax(0)]])


def _mostly_seen(camera: Camera, local, box) -> bool:
    samples = local[:OBJECT_POINTS]
    front = samples[samples[:, 2] > 0.05]
    pixels = camera.project(front)
    inside = _inside(camera, pixels)
    if inside.sum() < 0.5 * OBJECT_POINTS:
        return False
    whole = np.ptp(pixels[inside], axis=0) + 1
    return bool(np.prod(box[2:] - box[:2] + 1) >= 0.25 * np.prod(whole))
