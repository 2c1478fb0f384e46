"""Furnished rooms and outdoor grounds: what stands where, the light, and where a camera may stand."""

import dataclasses

import numpy as np

from vlm3_jax.synth import materials as mat
from vlm3_jax.synth import things
from vlm3_jax.synth.options import SynthOptions
from vlm3_jax.synth.shapes import BOX, Part, Placed, Soup, Thing, soup

Rng = np.random.Generator
GROUND_REACH_M = 90.0


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """One scene in the world frame (x right, y down, z forward, floor at y = 0).

    `light`: float32 [4], homogeneous: a lamp's position (w = 1) or the direction towards the sun (w = 0).
    `ambient` in [0, 1]; `sky` RGB at the horizon and the zenith [2, 3]; `floor_size`: (x, z) extent in which cameras
    stand; `footprints` float [N, 4]: x0, z0, x1, z1 kept free of cameras; `first_object`: the placed things before
    it are the building itself.
    """

    placed: tuple[Placed, ...]
    soup: Soup
    is_room: bool
    floor_size: tuple[float, float]
    footprints: np.ndarray
    light: np.ndarray
    ambient: float
    sky: np.ndarray
    first_object: int


def make_scene(rng: Rng, options: SynthOptions) -> Scene:
    """A random room or ground."""
    return _room(rng, options) if rng.random() < options.room_share else _ground(rng, options)


class _Floor:
    """Things already on the floor, as axis-aligned rectangles."""

    def __init__(self, placed):
        self.placed = placed
        self.rectangles = []

    def try_put(self, thing: Thing, x, z, yaw, limit=None, margin=0.08) -> bool:
        """Put the thing there unless it would touch another one or leave the `limit` = (x, z) half extents."""
        c, s = abs(np.cos(yaw)), abs(np.sin(yaw))
        hx, hz = (thing.width * c + thing.depth * s) / 2, (thing.width * s + thing.depth * c) / 2
        if limit is not None and (abs(x) + hx > limit[0] or abs(z) + hz > limit[1]):
            return False
        for x0, z0, x1, z1 in self.rectangles:
            if x - hx - margin < x1 and x + hx + margin > x0 and z - hz - margin < z1 and z + hz + margin > z0:
                return False
        self.rectangles.append((x - hx, z - hz, x + hx, z + hz))
        self.placed.append(Placed(thing, x, z, yaw))
        return True


def _pick(rng: Rng, makers) -> Thing:
    return makers[rng.integers(len(makers))](rng)


def _slab(size, at, material) -> Placed:
    return Placed(Thing("structure", [Part(BOX, size, at, material)], size[0], size[2]), 0.0, 0.0)


def _room(rng: Rng, options: SynthOptions) -> Scene:
    sx, sz, h = rng.uniform(3.0, 7.0), rng.uniform(3.0, 7.0), rng.uniform(2.4, 3.2)
    wall = mat.room_wall(rng)
    accent = mat.room_wall(rng) if rng.random() < 0.5 else wall
    ceiling = mat.plain(rng, mat.colour(rng, (0.0, 0.12), (0.8, 0.98)))
    placed = [
        _slab((sx, 0.2, sz), (0, -0.2, 0), mat.room_floor(rng)),
        _slab((sx, 0.2, sz), (0, h, 0), ceiling),
        *(_slab((0.2, h, sz), (side * (sx / 2 + 0.1), 0, 0), wall) for side in (-1, 1)),
        _slab((sx, h, 0.2), (0, 0, -sz / 2 - 0.1), wall),
        _slab((sx, h, 0.2), (0, 0, sz / 2 + 0.1), accent),
    ]
    structure = len(placed)
    floor = _Floor(placed)
    half = (sx / 2, sz / 2)
    count = int(rng.integers(min(4, options.max_objects), options.max_objects + 1))
    for k in range(count):
        thing = _pick(rng, things.AGAINST_WALL if k % 5 < 2 else things.INSIDE)
        for _ in range(4):
            if k % 5 < 2:
                position = _wall_position(rng, thing, half)
            else:
                position = (*(rng.uniform(-0.9, 0.9, 2) * half), rng.uniform(0, 2 * np.pi))
            if floor.try_put(thing, *position, limit=half):
                break
    footprints = list(floor.rectangles)
    _decorate(rng, placed, half, h)
    lamp = np.array([rng.uniform(-0.3, 0.3) * sx, -(h - rng.uniform(0.15, 0.5)), rng.uniform(-0.3, 0.3) * sz, 1.0])
    return Scene(
        placed=tuple(placed),
        soup=soup(placed, rng),
        is_room=True,
        floor_size=(sx, sz),
        footprints=np.array(footprints).reshape(-1, 4),
        light=lamp.astype(np.float32),
        ambient=rng.uniform(0.35, 0.6),
        sky=np.zeros((2, 3), np.float32),
        first_object=structure,
    )


def _wall_position(rng: Rng, thing: Thing, half, gap=0.01):
    """(x, z, yaw) of a thing whose back stands at a random wall."""
    side = int(rng.integers(4))
    along, away = (half[0], half[1]) if side % 2 == 0 else (half[1], half[0])
    u = rng.uniform(-1, 1) * max(along - thing.width / 2 - 0.02, 0.0)
    v = away - thing.depth / 2 - gap
    c, s = ((1, 0), (0, 1), (-1, 0), (0, -1))[side]
    return c * u + s * v, -s * u + c * v, side * np.pi / 2


def _decorate(rng: Rng, placed, half, h):
    """Pictures, windows and a door on the walls, a rug on the floor; furniture may stand before them."""
    for _ in range(int(rng.integers(1, 5))):
        thing = _pick(rng, things.ON_WALL)
        x, z, yaw = _wall_position(rng, thing, half, gap=0.0)
        top = max(part.at[1] + part.size[1] for part in thing.parts)
        placed.append(Placed(thing, x, z, yaw, rng.uniform(0.9, h - top - 0.1)))
    if rng.random() < 0.6:
        thing = things.door(rng)
        placed.append(Placed(thing, *_wall_position(rng, thing, half)))
    if rng.random() < 0.4:
        thing = things.rug(rng)
        if thing.width < 2 * half[0] and thing.depth < 2 * half[1]:
            placed.append(
                Placed(thing, *(rng.uniform(-1, 1, 2) * (half[0] - thing.width / 2, half[1] - thing.depth / 2)))
            )


def _ground(rng: Rng, options: SynthOptions) -> Scene:
    placed = [_slab((2 * GROUND_REACH_M, 0.2, 2 * GROUND_REACH_M), (0, -0.2, 0), mat.ground(rng))]
    floor = _Floor(placed)
    count = int(rng.integers(min(5, options.max_objects), options.max_objects + 1))
    for _ in range(count):
        thing = _pick(rng, things.OUTSIDE)
        for _ in range(4):
            # Uniform in the radius, not in the area: nearer objects are more frequent than far ones.
            radius, angle = rng.uniform(0.5, 10.0), rng.uniform(0, 2 * np.pi)
            if floor.try_put(thing, radius * np.cos(angle), radius * np.sin(angle), rng.uniform(0, 2 * np.pi)):
                break
    for _ in range(int(rng.integers(2, 7))):
        thing = things.house(rng) if rng.random() < 0.6 else things.tree(rng)
        radius, angle = rng.uniform(18, 45), rng.uniform(0, 2 * np.pi)
        # The front (-z) looks to the middle, give or take.
        yaw = np.pi / 2 - angle + rng.normal(0, 0.4)
        floor.try_put(thing, radius * np.cos(angle), radius * np.sin(angle), yaw)
    elevation, azimuth = np.radians(rng.uniform(25, 75)), rng.uniform(0, 2 * np.pi)
    sun = [np.cos(elevation) * np.sin(azimuth), -np.sin(elevation), np.cos(elevation) * np.cos(azimuth), 0.0]
    horizon = mat.colour(rng, (0.03, 0.2), (0.8, 1.0))
    zenith = np.array([0.35, 0.55, 0.9]) * rng.uniform(0.6, 1.0)
    return Scene(
        placed=tuple(placed),
        soup=soup(placed, rng),
        is_room=False,
        floor_size=(14.0, 14.0),
        footprints=np.array(floor.rectangles).reshape(-1, 4),
        light=np.array(sun, np.float32),
        ambient=rng.uniform(0.35, 0.55),
        sky=np.array([horizon, zenith], np.float32),
        first_object=1,
    )
