"""Good records for the checks of data: posed pairs of the analytic world with dense depth, points and matches."""

import dataclasses

import numpy as np

from tests.builders import world
from vlm3_jax import records
from vlm3_jax.camera import Camera

CAMERA = Camera(52.0, 54.0, 33.2, 22.8, 64, 48)


def pair(
    number: int,
    dense: bool = True,
    matches: bool = True,
    kind: str = "z",
    cameras=(CAMERA, CAMERA),
    turned: bool = True,
):
    """Two views of the world from places of their own; exact but for the 16 bits of the maps.

    Without `turned` the second camera looks where the first one does.
    """
    rng = np.random.default_rng(number)
    x, z, yaw = rng.uniform(-0.6, 0.6), rng.uniform(-1, 0.6), rng.uniform(0, 360)
    step, turn = rng.uniform(-0.5, 0.5, 3), rng.uniform(-9, 9)
    poses = [world.pose(x, 0, z, yaw, rng.uniform(-12, 4), rng.uniform(-5, 5))]
    side = world.rotation(yaw) @ [step[0] + np.sign(step[0]) * 0.3, step[1] * 0.4, step[2]]
    poses.append(world.pose(*(poses[0][:3, 3] + side), yaw + turn, rng.uniform(-12, 4), rng.uniform(-5, 5)))
    if not turned:
        poses[1][:3, :3] = poses[0][:3, :3]
    seen = [world.render(rays(c), pose) for c, pose in zip(cameras, poses)]
    views = tuple(
        records.View(records.encode_image(s.rgb, f"r{number}/{k}"), c, pose)
        for k, (s, c, pose) in enumerate(zip(seen, cameras, poses))
    )
    maps = tuple(records.encode_depth(getattr(s, kind), kind, view=k) for k, s in enumerate(seen)) if dense else ()
    record = records.Record(f"r{number}", views, scene=f"scene {number}", depth_maps=maps)
    if matches:
        record = dataclasses.replace(record, matches=exact_matches(record, seen[0], rng))
    return record


def rays(camera: Camera) -> np.ndarray:
    return world.pinhole(camera.fx, camera.fy, camera.cx, camera.cy, camera.width, camera.height)


def exact_matches(record, seen, rng, count: int = 60) -> records.Matches:
    """Pixels of view 0 and where view 1 sees the same surface, to the last digit."""
    first, second = record.cameras
    poses = [view.world_T_cam for view in record.views]
    pixels = rng.permutation(world.pixels(first.width, first.height).reshape(-1, 2))[: 8 * count].astype(int)
    z = seen.z[pixels[:, 1], pixels[:, 0]]
    pixels, z = pixels[np.isfinite(z)], z[np.isfinite(z)]
    points = first.rays(pixels) * z[:, None] @ poses[0][:3, :3].T + poses[0][:3, 3]
    there = (points - poses[1][:3, 3]) @ poses[1][:3, :3]
    good = there[:, 2] > 0.1
    pixels, there = pixels[good], there[good]
    ends = second.project(there)
    visible = np.abs(world.render(second.rays(ends), poses[1]).z / there[:, 2] - 1) < 1e-6
    visible &= second.inside(ends)
    return records.Matches(pixels[visible][:count], ends[visible][:count])


def points(number: int, kind: str = "z", told: str | None = None, count: int = 120):
    """One view with sparse depth of a kind, told to be of a kind."""
    record = pair(number, dense=False, matches=False)
    view, rng = record.views[0], np.random.default_rng(number)
    seen = world.render(rays(CAMERA), view.world_T_cam)
    depth = getattr(seen, kind)
    rows, columns = np.nonzero(np.isfinite(depth))
    chosen = rng.permutation(len(rows))[:count]
    pixels = np.stack([columns, rows], -1)[chosen]
    label = records.DepthPoints(pixels, depth[pixels[:, 1], pixels[:, 0]], told or kind)
    return dataclasses.replace(record, views=(view,), depth=(label,))


def with_poses(record, change):
    """The record with every pose changed."""
    views = tuple(dataclasses.replace(v, world_T_cam=change(np.asarray(v.world_T_cam))) for v in record.views)
    return dataclasses.replace(record, views=views)


def with_cameras(record, change):
    """The record with every camera changed, its images and labels as they are."""
    views = tuple(dataclasses.replace(v, camera=change(v.camera)) for v in record.views)
    return dataclasses.replace(record, views=views)


def facts(check, items):
    """What a check says of records."""
    for index, item in enumerate(items):
        check.add(index, item)
    return check.facts()
