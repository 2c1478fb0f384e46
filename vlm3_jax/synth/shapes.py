"""Convex primitives (box, cylinder, wheel, cone, ball) and their triangles with texture coordinates.

World frame: x right, y down, z forward, metres; the floor is y = 0, so "up" is -y.
"""

import dataclasses
import functools
import itertools
from typing import NamedTuple

import numpy as np

BOX, CYLINDER, WHEEL, CONE, BALL = range(5)


class Material(NamedTuple):
    """A procedural texture: `pattern` of textures.PATTERNS, its two periods (m) and the two RGB colours it mixes."""

    pattern: int
    period: tuple[float, float]
    low: tuple[float, float, float]
    high: tuple[float, float, float]


class Part(NamedTuple):
    """A primitive in its object's frame: `size` (x, y, z) in metres, `at` = (x, height of its underside, z)."""

    kind: int
    size: tuple[float, float, float]
    at: tuple[float, float, float]
    material: Material


class Thing(NamedTuple):
    """An object: parts, floor space `width` x `depth` (m); its front faces -z and its back +z."""

    name: str
    parts: list[Part]
    width: float
    depth: float


class Placed(NamedTuple):
    """A thing put at (x, height of its underside, z) and turned by `yaw` (rad) about the vertical."""

    thing: Thing
    x: float
    z: float
    yaw: float = 0.0
    base: float = 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class Soup:
    """A scene's triangles, float32.

    `corners` [T, 3, 3] world; `normals` [T, 3] outward; `uv` [T, 3, 2]: texture coordinates (m) of corner 0 and the
    differences of corners 1 and 2 to it; `part` int32 [T]; `owner` int32 [parts]: index of the placed thing.
    """

    corners: np.ndarray
    normals: np.ndarray
    uv: np.ndarray
    part: np.ndarray
    owner: np.ndarray
    materials: tuple[Material, ...]


def soup(placed: list[Placed], offsets: np.random.Generator) -> Soup:
    """All triangles of the placed things; `offsets` shifts every part's texture."""
    parts = [(part, index) for index, item in enumerate(placed) for part in item.thing.parts]
    kinds = np.array([part.kind for part, _ in parts])
    owner = np.array([index for _, index in parts], np.int32)
    size = np.array([part.size for part, _ in parts], np.float64)
    at = np.array([part.at for part, _ in parts], np.float64)
    local = np.stack([at[:, 0], -(at[:, 1] + size[:, 1] / 2), at[:, 2]], -1)
    yaw = np.array([item.yaw for item in placed])[owner]
    shift = np.array([(item.x, -item.base, item.z) for item in placed])[owner]
    turn = rotation_y(yaw)
    centre = np.einsum("nij,nj->ni", turn, local) + shift
    shifts = offsets.uniform(0, 50, (len(parts), 1, 1, 2))

    corners, normals, uvs, part_of = [], [], [], []
    for kind in np.unique(kinds):
        unit, unit_uv, axes = _unit_mesh(int(kind))
        rows = np.flatnonzero(kinds == kind)
        n, faces = len(rows), len(unit)
        scaled = (unit.reshape(1, -1, 3) * size[rows, None]) @ turn[rows].transpose(0, 2, 1)
        normal = np.cross(*np.moveaxis((scaled.reshape(n, faces, 3, 3)[:, :, 1:] - scaled[:, ::3, None]), 2, 0))
        # The primitives are convex around their centre, so the outward side is the one away from it.
        normal *= np.sign(np.einsum("nfi,nfi->nf", normal, scaled[:, ::3]))[..., None]
        normals.append((normal / np.linalg.norm(normal, axis=-1, keepdims=True)).reshape(-1, 3))
        corners.append((scaled + centre[rows, None]).reshape(-1, 3, 3))
        uv = unit_uv * size[rows][:, axes][:, :, None] + shifts[rows]
        uv[:, :, 1:] -= uv[:, :, :1]
        uvs.append(uv.reshape(-1, 3, 2))
        part_of.append(np.repeat(rows, faces))
    return Soup(
        corners=np.concatenate(corners).astype(np.float32),
        normals=np.concatenate(normals).astype(np.float32),
        uv=np.concatenate(uvs).astype(np.float32),
        part=np.concatenate(part_of).astype(np.int32),
        owner=owner,
        materials=tuple(part.material for part, _ in parts),
    )


def rotation_y(angle) -> np.ndarray:
    """Right-handed rotations about y (down), float64 [..., 3, 3]: a positive angle (rad) turns z towards x."""
    c, s = np.cos(angle), np.sin(angle)
    zero, one = np.zeros_like(c), np.ones_like(c)
    return np.stack([np.stack([c, zero, s], -1), np.stack([zero, one, zero], -1), np.stack([-s, zero, c], -1)], axis=-2)


@functools.cache
def _unit_mesh(kind: int):
    """Triangles in [-.5, .5]^3 [F, 3, 3], texture coordinates [F, 3, 2], and the size axis [F, 2] that scales them."""
    if kind == BOX:
        return _unit_box()
    if kind == BALL:
        profile = [(np.sin(a), -np.cos(a)) for a in np.linspace(0, np.pi, 7)]
        return _revolve(profile, 10)
    if kind == CONE:
        return _revolve([(0.0, -1.0), (1.0, 1.0), (0.0, 1.0)], 12)
    corners, uv, axes = _revolve([(0.0, -1.0), (1.0, -1.0), (1.0, 1.0), (0.0, 1.0)], 14)
    if kind == WHEEL:
        return np.ascontiguousarray(corners[..., [1, 2, 0]]), uv, np.array([1, 0])[axes]
    return corners, uv, axes


def _unit_box():
    corners, uv, axes = [], [], []
    for axis, (s, t) in enumerate([(2, 1), (0, 2), (0, 1)]):
        for side in (-0.5, 0.5):
            quad = np.zeros((4, 3))
            quad[:, axis] = side
            quad[:, s] = [-0.5, 0.5, 0.5, -0.5]
            quad[:, t] = [-0.5, -0.5, 0.5, 0.5]
            for triangle in ([0, 1, 2], [0, 2, 3]):
                corners.append(quad[triangle])
                uv.append(quad[triangle][:, [s, t]])
                axes.append([s, t])
    return np.array(corners), np.array(uv), np.array(axes)


def _revolve(profile, sides: int):
    """A (radius, y) profile turned about the y axis; texture coordinates follow the angle and the profile."""
    angles = np.arange(sides + 1) * 2 * np.pi / sides
    length = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(np.array(profile), axis=0).T))]) / 2
    corners, uv = [], []
    for k, ((r0, y0), (r1, y1)) in enumerate(itertools.pairwise(profile)):
        for a0, a1 in itertools.pairwise(angles):
            quad = [
                (r / 2 * np.cos(a), y / 2, r / 2 * np.sin(a))
                for r, y, a in ((r0, y0, a0), (r0, y0, a1), (r1, y1, a1), (r1, y1, a0))
            ]
            coordinates = [(a / 2, length[k + j]) for a, j in ((a0, 0), (a1, 0), (a1, 1), (a0, 1))]
            for triangle, radius in (([0, 1, 2], r0), ([0, 2, 3], r1)):
                if radius > 1e-9:
                    corners.append([quad[i] for i in triangle])
                    uv.append([coordinates[i] for i in triangle])
    return np.array(corners), np.array(uv), np.tile([0, 1], (len(corners), 1))
