"""What the tests of pair sets share: a short walk through the world, and checks of the pairs that are built of it."""

import dataclasses

import numpy as np

from tests.builders import truth, world
from tests.builders.truth import Frame
from vlm3_jax.builders.common import Builder, Skip
from vlm3_jax.records import draw_labels, from_bytes, to_bytes

WIDTH, HEIGHT = 64, 48
WALK = (
    world.pose(0.0, 0.0, 0.0, yaw=2),
    world.pose(0.35, -0.1, 0.2, yaw=-5, pitch=3, roll=4),
    world.pose(-0.3, 0.12, 0.35, yaw=6, pitch=-4, roll=-3),
)
"""Camera-to-world. No two of them differ by a turn or a shift alone."""
AWAY = world.pose(0, 0, 0, yaw=180)
"""Sees nothing of what the walk sees."""


def walk(width: int = WIDTH, height: int = HEIGHT, own_cameras: bool = True, poses=WALK, **camera) -> list[Frame]:
    """The frames of the walk; `own_cameras`: each with intrinsics of its own. `camera`: fields of all of them."""
    found = []
    for n, pose in enumerate(poses):
        k = n if own_cameras else 0
        fields = {"fx": 50 + 2 * k, "fy": 51 + 2 * k, "cx": width / 2 + 1.3 - k, "cy": height / 2 - 1.2 + k}
        found.append(Frame(**(fields | camera), width=width, height=height, world_T_cam=pose))
    return found


def turned(frames: list[Frame], **camera) -> list[Frame]:
    """The frames with other fields."""
    return [dataclasses.replace(frame, **camera) for frame in frames]


def build(builder: Builder, raw, split: str = "train") -> tuple[dict, dict]:
    """Records by key, and the reasons of those that were skipped by key."""
    records, skipped = {}, {}
    for item in builder.frames(raw, split):
        try:
            records[item.key] = builder.record(raw, item)
        except Skip as skip:
            skipped[item.key] = skip.reason
    return records, skipped


def check(records: dict, frames: dict[str, Frame], tolerance_m=None, covered: float = 1.0, share: float = 1.0):
    """Every record's views are the frames that its key names, and the usual mistakes (in the first) do not pass.

    `frames`: by the name that they have in keys ("SCENE/NAME-NAME"). `tolerance_m`: of depth, by default half a step of
    its own map, and `share` of them are right; `covered`: of the pixels that see something so many have a depth.
    """
    assert records, "nothing was built"
    for n, (key, record) in enumerate(records.items()):
        pair = [frames[name] for name in names(key, frames)]
        truth.check_pose(record, pair)
        assert record.scene
        assert record.scene in key
        for view, frame in enumerate(pair):
            truth.check_camera(record, frame, view)
            truth.check_image(record, frame, view, tolerance=6.0)
        if record.depth_maps:
            assert 0 < record.covisibility <= 1
            check_maps(record, pair, tolerance_m, covered, share)
        if n == 0:
            check_mistakes(record, pair, share)
            check_matches(record, pair)


def names(key: str, frames: dict) -> list[str]:
    """The two frames of a key."""
    pair = key.rsplit("/", 1)[1]
    found = [(a, b) for a in frames for b in frames if pair == f"{a}-{b}"]
    assert len(found) == 1, f"{key}: names no pair of {sorted(frames)}"
    return list(found[0])


def check_maps(record, pair, tolerance_m, covered, share) -> None:
    """Depth of both views: where there is some, and how much."""
    assert [label.view for label in record.depth_maps] == [0, 1]
    for view, label in enumerate(record.depth_maps):
        there = np.isfinite(label.load())
        seen = np.isfinite(pair[view].seen(truth._places(there.shape, record.views[view].camera)).z)
        assert there[seen].mean() >= covered
        assert not (there & ~seen).any()
        truth.check_depth(record, pair[view], tolerance_m or half_step(label), view, valid=there, share=share)


def check_matches(record, pair) -> None:
    """What is drawn from the record as it is stored: the same surface point in both views."""
    drawn = draw_labels(from_bytes(to_bytes(record)), np.random.default_rng(0), 40)
    assert drawn.scene == record.scene
    if not record.depth_maps:
        return
    assert len(drawn.matches.points0_px) > 5
    assert drawn.depth or not record.metric
    places = []
    for frame, points in zip(pair, (drawn.matches.points0_px, drawn.matches.points1_px), strict=True):
        z = frame.seen(points).z
        local = frame.rays(points) * np.where(np.isfinite(z), z, 0)[:, None]
        places.append(local @ frame.world_T_cam[:3, :3].T + frame.world_T_cam[:3, 3])
    # Where the second view has an edge, half a pixel may see something else.
    assert np.median(np.linalg.norm(places[0] - places[1], axis=-1)) < 0.02


def half_step(label) -> float:
    """What a map's rounding may be off by."""
    return label.scale * 0.51 + 1e-6


def check_mistakes(record, pair, share) -> None:
    """Every usual mistake, and each other's depth and poses, must fail."""

    def pose(one):
        truth.check_pose(one, pair)

    def depth(one):
        tolerance = max(map(half_step, one.depth_maps), default=0) + 0.01
        truth.check_depth(one, pair[0], tolerance, valid=np.isfinite(one.depth_maps[0].load()), share=share)

    first, second = record.views
    poses = [dataclasses.replace(one, world_T_cam=two.world_T_cam) for one, two in ((first, second), (second, first))]
    truth.all_fail(pose, truth.wrong_poses(record) | {"swapped": dataclasses.replace(record, views=tuple(poses))})
    if record.depth_maps:
        maps = tuple(dataclasses.replace(label, view=1 - label.view) for label in reversed(record.depth_maps))
        swapped = {"the other view's depth": dataclasses.replace(record, depth_maps=maps)}
        truth.all_fail(depth, truth.wrong_depths(record) | swapped)


def world_frame(record, view: int, intrinsics: dict, world_T_cam) -> Frame:
    """The frame of an undistorted view: focal lengths as stored (of COLMAP's pixels), cut at whole pixels."""
    camera = record.views[view].camera
    shift = np.array([intrinsics["cx"] - 0.5 - camera.cx, intrinsics["cy"] - 0.5 - camera.cy])
    np.testing.assert_allclose(shift, np.rint(shift), atol=1e-6)
    fx, fy = intrinsics["fl_x"], intrinsics["fl_y"]
    return Frame(fx, fy, camera.cx, camera.cy, camera.width, camera.height, world_T_cam)
