"""Where the two cameras of a scene stand: random, not too near to anything, with enough overlap."""

import numpy as np

from vlm3_jax.camera import Camera
from vlm3_jax.records.pairs import rotate
from vlm3_jax.synth.options import SynthOptions
from vlm3_jax.synth.render import Caster, world_rays
from vlm3_jax.synth.scene import Scene

Rng = np.random.Generator
CANDIDATES = 6
PROBE = (12, 9)
CRANE_HEIGHT_M = (0.4, 2.1)
CRANE_ROLL_DEG = 15.0


def pose_matrix(position, yaw, pitch_down, roll) -> np.ndarray:
    """Camera-to-world 4x4, Ry(yaw) Rx(-pitch_down) Rz(roll), angles in radians; y of the world points down.

    The position is rounded to float32, so that the rays start exactly where the pose says.
    """
    c, s = np.cos([yaw, -pitch_down, roll]), np.sin([yaw, -pitch_down, roll])
    turn = np.array([[c[0], 0, s[0]], [0, 1, 0], [-s[0], 0, c[0]]])
    tilt = np.array([[1, 0, 0], [0, c[1], -s[1]], [0, s[1], c[1]]])
    bank = np.array([[c[2], -s[2], 0], [s[2], c[2], 0], [0, 0, 1]])
    pose = np.eye(4)
    pose[:3, :3] = turn @ tilt @ bank
    pose[:3, 3] = np.float32(position)
    return pose


def choose_poses(rng: Rng, scene: Scene, caster: Caster, camera: Camera, options: SynthOptions):
    """Two poses 4x4. Candidates are judged on a coarse grid of rays; the first good one is taken, else the best."""
    u = np.linspace(0, camera.width - 1, PROBE[0])
    v = np.linspace(0, camera.height - 1, PROBE[1])
    probe = camera.rays(np.stack(np.meshgrid(u, v), -1).reshape(-1, 2))
    first = [_first_candidate(rng, scene, options) for _ in range(CANDIDATES)]
    points, distance, things = _probe(scene, caster, probe, first)
    scores = [_view_score(scene, *view) for view in zip(distance, things)]
    best = int(np.argmax(scores))
    pose0, points0, distance0 = first[best], points[best], distance[best]

    seen = distance0[distance0 > 0]
    middle = float(np.median(seen)) if len(seen) else 5.0
    move = {"orbit": _orbit, "crane": _crane}[options.motion]
    second = [move(rng, scene, options, pose0, middle, 1 - 0.8 * k / (CANDIDATES - 1)) for k in range(CANDIDATES)]
    points, distance, things = _probe(scene, caster, probe, second)
    overlaps = []
    for pose, own, far, share in zip(second, points, distance, things):
        good = _view_score(scene, far, share) >= 1
        forth = _seen_share(caster, camera, pose, points0[distance0 > 0])
        back = _seen_share(caster, camera, pose0, own[far > 0])
        overlap = (forth + back) / 2
        # The probe is coarse: ask for a little more than the limit.
        if good and overlap >= options.min_covisibility + 0.05:
            return pose0, pose
        overlaps.append(overlap + good)
    return pose0, second[int(np.argmax(overlaps))]


def _first_candidate(rng: Rng, scene: Scene, options: SynthOptions) -> np.ndarray:
    half = np.array(scene.floor_size) / 2 - 0.3
    boxes = scene.footprints
    for _ in range(20):
        x, z = rng.uniform(-1, 1, 2) * half
        inside = (boxes[:, 0] - 0.2 < x) & (x < boxes[:, 2] + 0.2) & (boxes[:, 1] - 0.2 < z) & (z < boxes[:, 3] + 0.2)
        if not inside.any():
            break
    aim_x, aim_z = rng.uniform(-0.5, 0.5, 2) * half
    yaw = np.arctan2(aim_x - x, aim_z - z) + rng.normal(0, 0.25)
    pitch = rng.uniform(*np.radians(options.pitch_down_deg))
    roll = rng.uniform(-1, 1) * np.radians(options.roll_deg)
    return pose_matrix((x, -rng.uniform(*options.camera_height_m), z), yaw, pitch, roll)


# The moves of the second camera, from bold (size 1) to small (0.2), in the order in which they are tried.


def _orbit(rng: Rng, scene: Scene, options: SynthOptions, pose0, middle, size) -> np.ndarray:
    """Some steps in any direction, looking at about the same place, as upright as before."""
    step = rng.uniform(0.15, 0.5) * middle * size
    position = _moved(rng, scene, pose0, step)
    low, high = options.camera_height_m
    position[1] = -np.clip(-position[1] + rng.normal(0, 0.2) * size, low, high)
    ahead = pose0[:3, 3] + middle * pose0[:3, 2] - position
    yaw = np.arctan2(ahead[0], ahead[2]) + rng.normal(0, 0.15) * size
    pitch0 = np.arcsin(np.clip(pose0[1, 2], -1, 1))
    pitch = np.clip(pitch0 + rng.normal(0, 0.1) * size, *np.radians(options.pitch_down_deg))
    return pose_matrix(position, yaw, pitch, rng.uniform(-1, 1) * np.radians(options.roll_deg))


def _crane(rng: Rng, scene: Scene, options: SynthOptions, pose0, middle, size) -> np.ndarray:
    """Another height and at most a step aside, looking at about the same place, tilted and banked."""
    position = _moved(rng, scene, pose0, rng.uniform(0, 0.05) * middle * size)
    position[1] += size * (-rng.uniform(*CRANE_HEIGHT_M) - position[1])
    ahead = pose0[:3, 3] + middle * pose0[:3, 2] - position
    yaw = np.arctan2(ahead[0], ahead[2]) + rng.normal(0, 0.03) * size
    pitch = np.arctan2(ahead[1], np.hypot(ahead[0], ahead[2])) + rng.normal(0, 0.12) * size
    return pose_matrix(position, yaw, pitch, rng.uniform(-1, 1) * np.radians(CRANE_ROLL_DEG) * size)


def _moved(rng: Rng, scene: Scene, pose0, step) -> np.ndarray:
    """A position `step` metres away in any level direction, inside the scene."""
    angle = rng.uniform(0, 2 * np.pi)
    position = pose0[:3, 3] + step * np.array([np.cos(angle), 0, np.sin(angle)])
    limit = np.array(scene.floor_size) / 2 - 0.25
    position[[0, 2]] = np.clip(position[[0, 2]], -limit, limit)
    return position


def _probe(scene: Scene, caster: Caster, rays, poses):
    """The coarse grid from all poses at once: hit points [K, M, 3] (m, world), distances [K, M] (0 = none) and the
    share of rays [K] that hit things.
    """
    pairs = [world_rays(rays, pose) for pose in poses]
    origins, directions = (np.concatenate(part) for part in zip(*pairs))
    hits = caster.cast(origins, directions)
    travelled = directions * hits.t[:, None]
    shape = (len(poses), len(rays))
    on_thing = (hits.triangle >= 0) & (scene.soup.owner[scene.soup.part][hits.triangle] >= scene.first_object)
    distance = np.linalg.norm(travelled, axis=-1).reshape(shape)
    return (origins + travelled).reshape(*shape, 3), distance, on_thing.reshape(shape).mean(-1)


def _view_score(scene: Scene, distance, things) -> float:
    """1 and more: usable; the higher the better. Nothing in the face, not mostly sky, some depth, some things."""
    seen = distance[distance > 0]
    if len(seen) < 0.4 * len(distance):
        return len(seen) / len(distance) - 1
    near = np.percentile(seen, 3)
    usable = near > 0.5 and np.median(seen) > (1.3 if scene.is_room else 2.0)
    return float(usable) + 0.1 * min(np.ptp(np.log(seen)), 3.0) + min(things, 0.25)


def _seen_share(caster: Caster, camera: Camera, pose, points) -> float:
    """Share of world points [N, 3] that the camera at `pose` sees."""
    local = rotate(points - pose[:3, 3], pose[:3, :3].T)
    z = np.maximum(local[:, 2], 1e-6)
    x, y = local[:, 0] / z * camera.fx + camera.cx, local[:, 1] / z * camera.fy + camera.cy
    inside = (local[:, 2] > 0) & (x >= 0) & (x <= camera.width - 1) & (y >= 0) & (y <= camera.height - 1)
    if not inside.any():
        return 0.0
    target = points[inside]
    origins = np.broadcast_to(pose[:3, 3].astype(np.float32), target.shape)
    directions = (target - origins).astype(np.float32)
    return float(np.count_nonzero(~caster.blocked(origins, directions, 0.995)) / len(points))
