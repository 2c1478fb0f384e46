"""Ray casting with Embree and shading in numpy: colours, z-depth and object ids of each pixel.

The ray of integer pixel (u, v) is K^-1 (u, v, 1), unnormalised, so a hit's ray parameter is its z-depth.
"""

import dataclasses

import numpy as np

from vlm3_jax.camera import Camera
from vlm3_jax.errors import UserError
from vlm3_jax.records.pairs import rotate
from vlm3_jax.synth import textures
from vlm3_jax.synth.scene import Scene

try:
    from embreex.mesh_construction import TriangleMesh
    from embreex.rtcore_scene import EmbreeScene
except ImportError:
    raise UserError('synthetic scenes need embreex; install it with: pip install "vlm3-jax[demo]"') from None


# Rays worked on at once: their arrays stay in the processor's cache.
BLOCK_RAYS = 1 << 15


@dataclasses.dataclass(frozen=True, eq=False)
class Hits:
    """First hits of rays: `t` float32 [N] in units of the direction (0 = nothing hit), `triangle` int32 [N] (or -1),
    barycentric `u`, `v` float32 [N] of corners 1 and 2.
    """

    t: np.ndarray
    triangle: np.ndarray
    u: np.ndarray
    v: np.ndarray


class Caster:
    """An Embree scene over a triangle soup."""

    def __init__(self, scene: Scene):
        self._scene = EmbreeScene()
        self._mesh = TriangleMesh(self._scene, scene.soup.corners)

    def cast(self, origins, directions) -> Hits:
        """First hits; float32 [N, 3] each."""
        found = self._scene.run(origins, directions, output=True)
        t = np.where(found["primID"] >= 0, found["tfar"], np.float32(0))
        return Hits(t, found["primID"], found["u"], found["v"])

    def blocked(self, origins, directions, reach) -> np.ndarray:
        """bool [N]: whether anything lies between the origin and origin + reach * direction (reach a number)."""
        limit = np.full(len(origins), reach, np.float32)
        return self._scene.run(origins, directions, dists=limit, query="OCCLUDED") >= 0


@dataclasses.dataclass(frozen=True, eq=False)
class Rendered:
    """What the views show.

    `images` uint8 [V, H, W, 3]; `z_m` float32 [V, H, W], 0 where nothing is (sky); `ids` int16 [V, H, W]: index of
    the placed thing, -1 for walls, floor, ceiling, ground and sky.
    """

    images: np.ndarray
    z_m: np.ndarray
    ids: np.ndarray


def world_rays(rays, world_T_cam):
    """Camera rays [N, 3] as float32 origins and directions [N, 3] in the world."""
    directions = rotate(rays, world_T_cam[:3, :3]).astype(np.float32)
    return np.broadcast_to(world_T_cam[:3, 3].astype(np.float32), directions.shape), directions


def _all_world_rays(camera: Camera, poses):
    """World rays of all pixels of all views, float32 [V * H * W, 3] twice: origins and directions.

    A pixel's direction is a part that depends on its column plus a part that depends on its row.
    """
    directions = np.empty((len(poses), camera.height, camera.width, 3), np.float32)
    for view, pose in enumerate(poses):
        column = (np.arange(camera.width)[:, None] - camera.cx) / camera.fx * pose[:3, 0]
        row = (np.arange(camera.height)[:, None] - camera.cy) / camera.fy * pose[:3, 1] + pose[:3, 2]
        directions[view] = column + row[:, None]
    origins = np.repeat(np.asarray(poses)[:, :3, 3].astype(np.float32), camera.height * camera.width, axis=0)
    return origins, directions.reshape(-1, 3)


def render(scene: Scene, caster: Caster, camera: Camera, poses) -> Rendered:
    """All views of `scene` from 4x4 camera-to-world `poses` [V, 4, 4] through one camera."""
    origins, directions = _all_world_rays(camera, poses)
    images = np.empty((len(directions), 3), np.uint8)
    z = np.empty(len(directions), np.float32)
    ids = np.empty(len(directions), np.int16)
    # The last entry is what triangle -1 (nothing hit) finds.
    owner = np.append(scene.soup.owner[scene.soup.part], -1).astype(np.int16)
    owner[owner < scene.first_object] = -1
    for start in range(0, len(directions), BLOCK_RAYS):
        block = slice(start, start + BLOCK_RAYS)
        hits = caster.cast(origins[block], directions[block])
        z[block], ids[block] = hits.t, owner[hits.triangle]
        images[block] = _colours(scene, caster, origins[block], directions[block], hits, camera.fx)
    shape = (len(poses), camera.height, camera.width)
    return Rendered(images.reshape(*shape, 3), z.reshape(shape), ids.reshape(shape))


def _colours(scene: Scene, caster: Caster, origins, directions, hits: Hits, focal) -> np.ndarray:
    hit = hits.triangle >= 0
    if hit.all():
        return _shade(scene, caster, origins, directions, hits, focal)
    colours = np.empty((len(hit), 3), np.uint8)
    colours[~hit] = _sky(scene, directions[~hit])
    if hit.any():
        some = Hits(hits.t[hit], hits.triangle[hit], hits.u[hit], hits.v[hit])
        colours[hit] = _shade(scene, caster, origins[hit], directions[hit], some, focal)
    return colours


def _sky(scene: Scene, directions) -> np.ndarray:
    up = np.clip(-directions[:, 1] / np.sqrt(_dot(directions, directions)), 0, 1)
    return (np.float32(255) * (scene.sky[0] + (scene.sky[1] - scene.sky[0]) * np.sqrt(up)[:, None])).astype(np.uint8)


def _dot(a, b):
    return np.einsum("ni,ni->n", a, b)


def _shade(scene: Scene, caster: Caster, origins, directions, hits: Hits, focal) -> np.ndarray:
    """Texture x (ambient + shadowed lamp or sun), uint8 [N, 3]."""
    soup = scene.soup
    part = soup.part.take(hits.triangle)
    normal = soup.normals.take(hits.triangle, axis=0)
    uv = soup.uv.reshape(-1, 6).take(hits.triangle, axis=0)
    s = uv[:, 0] + hits.u * uv[:, 2] + hits.v * uv[:, 4]
    t = uv[:, 1] + hits.u * uv[:, 3] + hits.v * uv[:, 5]
    # A pixel covers z / f across the ray and z / (f slant) along it; the texture takes a size between the two.
    slant = np.maximum(np.abs(_dot(normal, directions)), np.float32(0.02))
    footprint = hits.t * np.float32(1 / focal) / (np.sqrt(slant) * np.sqrt(np.sqrt(slant)))

    pattern = np.array([m.pattern for m in soup.materials], np.uint8)
    period = np.array([m.period for m in soup.materials], np.float32)
    low = np.array([m.low for m in soup.materials], np.float32) * np.float32(255)
    high = np.array([m.high for m in soup.materials], np.float32) * np.float32(255)
    mix = textures.mix_values(pattern, period, part, s, t, footprint)
    light = _light(scene, caster, origins, directions, hits, normal)
    colour = (high - low).take(part, axis=0)
    colour *= mix[:, None]
    colour += low.take(part, axis=0)
    colour *= light[:, None]
    return np.minimum(colour, np.float32(255), out=colour).astype(np.uint8)


def _light(scene: Scene, caster: Caster, origins, directions, hits: Hits, normal) -> np.ndarray:
    """Light that falls on each hit, float32 [N]: ambient (more from above) plus one lamp or sun with hard shadows."""
    soup = scene.soup
    ambient = np.float32(scene.ambient) * (
        1 - np.float32(0.18) * soup.normals[:, 1] + np.float32(0.06) * soup.normals[:, 0]
    )
    light = ambient[hits.triangle]
    points = directions * hits.t[:, None]
    points += origins
    if scene.light[3]:
        to_light = scene.light[:3] - points
        squared = _dot(to_light, to_light)
        strength = _dot(normal, to_light) / np.sqrt(squared) / (1 + np.float32(0.03) * squared)
        reach = 1.0
    else:
        to_light = np.broadcast_to(scene.light[:3], points.shape)
        strength = (soup.normals @ scene.light[:3])[hits.triangle]
        reach = 1e3
    lit = np.flatnonzero(strength > 0)
    # The shadow ray starts off the surface by more than the rounding of the hit point.
    lift = np.float32(1e-3) + np.float32(2e-4) * hits.t[lit]
    start = points[lit] + normal[lit] * lift[:, None]
    clear = ~caster.blocked(start, to_light[lit], reach)
    light[lit] += np.float32(1 - scene.ambient) * np.float32(1.15) * strength[lit] * clear
    return light
