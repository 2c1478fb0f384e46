"""Every usual mistake about poses, cameras and depth of pairs is found and called by its name; good pairs are not."""

import dataclasses

import numpy as np
import pytest
from check_world import CAMERA, facts, pair, with_cameras, with_poses
from PIL import Image

from vlm3_jax.data.checks import features
from vlm3_jax.data.checks.pairs import Pairs
from vlm3_jax.data.checks.poses import Poses, up_axis

PAIRS = 8
SIDES = {"dense depth": {"matches": False}, "matches": {"dense": False}}


def good(**options):
    return [pair(number, **options) for number in range(PAIRS)]


def transposed(pose):
    pose = pose.copy()
    pose[:3, :3] = pose[:3, :3].T
    return pose


def exchanged(record):
    first, second = record.views
    views = [dataclasses.replace(a, world_T_cam=b.world_T_cam) for a, b in ((first, second), (second, first))]
    return dataclasses.replace(record, views=tuple(views))


MISTAKES = {
    "poses inverted": lambda r: with_poses(r, np.linalg.inv),
    "rotations transposed": lambda r: with_poses(r, transposed),
    "OpenGL": lambda r: with_poses(r, lambda pose: pose @ np.diag([1.0, -1, -1, 1])),
    "the poses of the two views exchanged": exchanged,
}


@pytest.mark.parametrize("side", SIDES)
def test_good_pairs_raise_no_alarm(side):
    found = facts(Pairs(), good(**SIDES[side]))
    assert not found.faults
    assert len(found.lines) == 1
    assert found.values[side.replace(" ", "_")]["pairs"] == PAIRS


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", MISTAKES)
def test_wrong_poses_are_called_by_their_name(side, name):
    (fault,) = facts(Pairs(), map(MISTAKES[name], good(**SIDES[side]))).faults
    assert f"with {name}" in fault or f"({name})" in fault
    assert "not as told" in fault


def test_a_step_to_the_wrong_side_is_found():
    """Epipolar lines are the same then; but what matches would lie behind the cameras."""
    items = good(dense=False, turned=False)
    assert not facts(Pairs(), items).faults
    (fault,) = facts(Pairs(), map(exchanged, items)).faults
    assert "the poses of the two views exchanged" in fault


@pytest.mark.parametrize("side", SIDES)
def test_the_pose_of_the_neighbour_is_found(side):
    items = good(**SIDES[side])
    moved = []
    for one, before in zip(items, [items[-1], *items[:-1]]):
        second = dataclasses.replace(one.views[1], world_T_cam=before.views[1].world_T_cam)
        moved.append(dataclasses.replace(one, views=(one.views[0], second)))
    (fault,) = facts(Pairs(), moved).faults
    assert "the second pose of the next record" in fault


@pytest.mark.parametrize("side", SIDES)
def test_exchanged_intrinsics_are_found(side):
    other = dataclasses.replace(CAMERA, fx=80.0, fy=82.0, cx=25.0, cy=27.0)
    items = good(cameras=(CAMERA, other), **SIDES[side])
    assert not facts(Pairs(), items).faults

    def swap(record):
        views = [dataclasses.replace(v, camera=c) for v, c in zip(record.views, record.cameras[::-1])]
        return dataclasses.replace(record, views=tuple(views))

    (fault,) = facts(Pairs(), map(swap, items)).faults
    assert "the intrinsics of the two views exchanged" in fault


def test_half_a_pixel_is_found_by_exact_matches():
    def moved(camera):
        return dataclasses.replace(camera, cx=camera.cx + 0.5, cy=camera.cy + 0.5)

    (fault,) = facts(Pairs(), [with_cameras(r, moved) for r in good(dense=False)]).faults
    assert "principal points moved by -0.5 px" in fault


def test_depth_in_another_unit_than_the_poses_is_found():
    def scaled(factor):
        return lambda pose: np.block([[pose[:3, :3], pose[:3, 3:] * factor], [0, 0, 0, 1]])

    # 16 bits hold the depths in metres; the poses are in kilometres, or in millimetres.
    for factor, name in ((1e-3, "depth divided by 1,000"), (1e3, "depth times 1,000")):
        (fault,) = facts(Pairs(), [with_poses(r, scaled(factor)) for r in good(matches=False)]).faults
        assert name in fault


def test_depth_of_the_other_kind_is_found():
    wide = dataclasses.replace(CAMERA, fx=26.0, fy=27.0)
    items = good(matches=False, cameras=(wide, wide))
    assert not facts(Pairs(), items).faults
    told = [dataclasses.replace(m, kind="distance") for m in items[0].depth_maps]
    assert told
    other = [
        dataclasses.replace(r, depth_maps=tuple(dataclasses.replace(m, kind="distance") for m in r.depth_maps))
        for r in items
    ]
    (fault,) = facts(Pairs(), other).faults
    assert "with depth as z" in fault


def test_poses_that_nothing_explains_are_a_fault_too(rng):
    def shaken(pose):
        turn = np.eye(4)
        turn[:3, :3] = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        turn[:3, :3] *= np.sign(np.linalg.det(turn[:3, :3]))
        return pose @ turn

    (fault,) = facts(Pairs(), [with_poses(r, shaken) for r in good(dense=False)]).faults
    assert "poses or intrinsics are wrong" in fault
    (fault,) = facts(Pairs(), [with_poses(r, shaken) for r in good(matches=False)]).faults
    assert "poses, intrinsics or depth are wrong" in fault


def test_few_pairs_are_no_evidence():
    items = [with_poses(r, np.linalg.inv) for r in good()[:3]]
    found = facts(Pairs(), items)
    assert found.lines
    assert not found.faults


def test_rounded_matches_are_no_fault():
    items = good(dense=False)
    rounded = [
        dataclasses.replace(r, matches=type(r.matches)(r.matches.points0_px, np.rint(r.matches.points1_px)))
        for r in items
    ]
    assert not facts(Pairs(), rounded).faults


def test_poses_that_are_none_are_counted_by_what_is_wrong():
    items = good(dense=False, matches=False)
    assert not facts(Poses(), items).faults
    mirrored = [with_poses(r, lambda pose: np.diag([1.0, -1, 1, 1]) @ pose) for r in items]
    (fault,) = facts(Poses(), mirrored).faults
    assert "16 of 16 are left-handed" in fault
    assert "record r0, view 0" in fault
    (fault,) = facts(Poses(), [with_poses(r, np.transpose) for r in items]).faults
    assert "do not end with the row 0 0 0 1" in fault
    (fault,) = facts(Poses(), [with_poses(r, lambda pose: pose * [[2, 2, 2, 1]] * 1.0) for r in items]).faults
    assert "scaled or sheared" in fault
    still = [with_poses(r, lambda pose: np.eye(4)) for r in items]
    assert facts(Poses(), still).faults == ("poses: both views of every pair have the same pose",)


def test_up_is_the_axis_that_cameras_have_up():
    items = good(dense=False, matches=False)
    assert facts(Poses(), items).values["up"] == "-y"
    z_up = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    assert facts(Poses(), [with_poses(r, lambda pose: z_up @ pose) for r in items]).values["up"] == "+z"
    assert up_axis(np.eye(3)) is None
    rng = np.random.default_rng(0)
    assert up_axis(rng.normal(size=(40, 3))) is None


def photographed(number):
    """A pair of larger photos with poses and nothing else."""
    camera = dataclasses.replace(CAMERA, fx=208.0, fy=216.0, cx=132.8, cy=91.2, width=256, height=192)
    return pair(number, dense=False, matches=False, cameras=(camera, camera))


def test_photos_alone_tell_right_poses_from_wrong_ones():
    items = [photographed(number) for number in range(12)]
    right = facts(Pairs(), items)
    assert not right.faults
    assert right.values["photos"]["pairs"] >= 6
    assert right.values["photos"]["fit"]["median"] > 0.6
    for name in ("poses inverted", "OpenGL", "rotations transposed"):
        (fault,) = facts(Pairs(), map(MISTAKES[name], items)).faults
        assert name in fault


def test_matches_of_real_photos_lie_where_the_stereo_rig_has_them(samples):
    folder = samples / "motorcycle_stereo"
    images = []
    for side in ("left", "right"):
        with Image.open(folder / f"motorcycle_{side}.png") as image:
            images.append(np.asarray(image.convert("RGB")))
    first, second = features.match(*images)
    assert len(first) > 60
    # Rectified: rows are equal, and the right camera sees everything farther left.
    rows = np.abs(first[:, 1] - second[:, 1]) <= 3
    left = (first[:, 0] - second[:, 0] > 0) & (first[:, 0] - second[:, 0] < 80)
    assert (rows & left).mean() > 0.7
