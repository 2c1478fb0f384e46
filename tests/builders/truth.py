"""What builders must give back: depth, cameras and poses of the world that a fixture shows, and what must not pass.

A check raises AssertionError. Every test that uses one also shows with `all_fail` that the usual mistakes do not pass.
"""

import dataclasses

import numpy as np

from tests.builders import world


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
    """The pinhole camera (after undistortion; the first pixel's centre is (0, 0)) and pose of one stored image."""

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int
    world_T_cam: np.ndarray = dataclasses.field(default_factory=lambda: np.eye(4))

    def rays(self, points=None) -> np.ndarray:
        """K^-1 (u, v, 1) of pixels [..., 2], by default all [H, W]."""
        points = world.pixels(self.width, self.height) if points is None else np.asarray(points, np.float64)
        xy = (points - [self.cx, self.cy]) / [self.fx, self.fy]
        return np.concatenate([xy, np.ones_like(xy[..., :1])], -1)

    def seen(self, points=None) -> world.Seen:
        """What the world shows there."""
        return world.render(self.rays(points), self.world_T_cam)


def check_camera(record, frame: Frame, view: int = 0, tolerance_px: float = 1e-3) -> None:
    """The record's intrinsics are the truth, and of the image's size."""
    camera, image = record.views[view].camera, record.views[view].image
    found = [getattr(camera, name) for name in ("fx", "fy", "cx", "cy", "width", "height")]
    wanted = [getattr(frame, name) for name in ("fx", "fy", "cx", "cy", "width", "height")]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance_px, err_msg="fx fy cx cy width height")
    assert (image.width, image.height) == (frame.width, frame.height)


def check_depth(
    record,
    frame: Frame,
    tolerance_m: float,
    view: int = 0,
    spread_px: float = 0.0,
    share: float = 1.0,
    valid=None,
    least: float | None = None,
) -> int:
    """Depth labels of a view are what the world shows through the record's own camera; returns how many there are.

    `tolerance_m`: the quantisation. `spread_px`: labels may belong to any place this near (lidar points are moved to
    whole pixels). `share` of them must be right (a lidar sees behind edges). `valid` bool [H, W]: which pixels of a
    depth map have a label; by default all where the world is not open, or with `least` that share of all pixels.
    """
    camera = record.views[view].camera
    through = Frame(camera.fx, camera.fy, camera.cx, camera.cy, camera.width, camera.height, frame.world_T_cam)
    count = 0
    for label in record.depth:
        if label.view == view:
            count += _compare(through, label.points_px, label.depth_m, label.kind, tolerance_m, spread_px, share)
    for label in getattr(record, "depth_maps", ()):
        if label.view == view:
            depth = label.load()
            points = _places(depth.shape, camera)
            wanted = np.isfinite(depth)
            if least is not None:
                assert wanted.mean() >= least, f"{wanted.mean():.0%} of the pixels have a depth"
            else:
                right = np.isfinite(through.seen(points).z) if valid is None else valid
                np.testing.assert_array_equal(wanted, right, "which pixels have a depth")
            count += _compare(through, points[wanted], depth[wanted], label.kind, tolerance_m, spread_px, share)
    assert count, "no depth label"
    check_camera(record, frame, view)
    return count


def _places(shape, camera) -> np.ndarray:
    """Where the pixels of a depth map of a shape lie in the image [H, W, 2]: it covers the whole image."""
    height, width = shape
    scale = np.array([camera.width / width, camera.height / height])
    return (world.pixels(width, height) + 0.5) * scale - 0.5


def _compare(frame: Frame, points, depth, kind: str, tolerance_m, spread_px, share) -> int:
    assert len(depth), "a label without depth"
    offsets = np.linspace(-spread_px, spread_px, 3) if spread_px else np.zeros(1)
    around = np.stack(np.meshgrid(offsets, offsets), -1).reshape(-1, 1, 2)
    truth = getattr(frame.seen(np.asarray(points, np.float64)[None] + around), kind)
    low, high = truth.min(0), truth.max(0)
    error = np.maximum(np.maximum(low - depth, depth - high), 0)
    error[~np.isfinite(low)] = np.inf
    good = (error <= tolerance_m).mean()
    assert good >= share, f"{good:.1%} of {len(depth)} depths are right ({kind}), median error {np.median(error):.4f} m"
    return len(depth)


def check_pose(record, frames, tolerance: float = 1e-4, world_T_own=None) -> None:
    """Poses of the record's views are those of `frames`, one a view: between them, or in the world if it is known.

    `world_T_own` takes the data set's own world to this one; without it only relative poses are compared.
    """
    found = [np.asarray(view.world_T_cam, np.float64) for view in record.views]
    wanted = [frame.world_T_cam for frame in frames]
    assert len(found) == len(wanted)
    for matrix in found:
        assert np.linalg.det(matrix[:3, :3]) > 0, "a mirrored pose"
        np.testing.assert_allclose(matrix[3], [0, 0, 0, 1], atol=1e-9)
        np.testing.assert_allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3), atol=tolerance)
    if world_T_own is None:
        assert len(found) > 1, "one pose alone says nothing"
        found = [np.linalg.inv(found[0]) @ matrix for matrix in found[1:]]
        wanted = [np.linalg.inv(wanted[0]) @ matrix for matrix in wanted[1:]]
    else:
        found = [world_T_own @ matrix for matrix in found]
    for one, truth in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, truth, rtol=0, atol=tolerance)


def check_image(record, frame: Frame, view: int = 0, tolerance: float = 3.0) -> None:
    """The stored image shows the world through the frame's camera: mean difference of values, 0..255."""
    difference = np.abs(record.views[view].image.load().astype(float) - frame.seen().rgb)
    assert difference.mean() <= tolerance, f"pixels differ by {difference.mean():.1f} of 255 on average"


def wrong_depths(record) -> dict:
    """The record with the usual mistakes about depth and cameras, by name."""

    def camera(**change):
        views = [dataclasses.replace(v, camera=dataclasses.replace(v.camera, **change)) for v in record.views]
        return dataclasses.replace(record, views=tuple(views))

    def labels(change):
        fields = {"depth": tuple(map(change, record.depth))}
        if getattr(record, "depth_maps", ()):
            fields["depth_maps"] = tuple(map(change, record.depth_maps))
        return dataclasses.replace(record, **fields)

    first = record.views[0].camera
    other = {"z": "distance", "distance": "z"}
    return {
        "z read as distance or the reverse": labels(lambda one: dataclasses.replace(one, kind=other[one.kind])),
        "half a pixel to the right": camera(cx=first.cx + 0.5),
        "half a pixel down": camera(cy=first.cy - 0.5),
        "a focal length of 2 % more": camera(fx=first.fx * 1.02),
    }


def wrong_poses(record) -> dict:
    """The record with the usual mistakes about poses, by name; the last view's only, or relative ones might agree."""

    def changed(change):
        last = record.views[-1]
        view = dataclasses.replace(last, world_T_cam=change(np.asarray(last.world_T_cam, np.float64)))
        return dataclasses.replace(record, views=(*record.views[:-1], view))

    def transposed(matrix):
        matrix = matrix.copy()
        matrix[:3, :3] = matrix[:3, :3].T
        return matrix

    return {
        "inverted": changed(np.linalg.inv),
        "rotation transposed": changed(transposed),
        "OpenGL's axes": changed(lambda matrix: matrix @ np.diag([1.0, -1, -1, 1])),
        "mirrored": changed(lambda matrix: np.diag([1.0, -1, 1, 1]) @ matrix),
    }


def all_fail(check, records: dict) -> None:
    """`check(record)` raises AssertionError for each of these."""
    passed = []
    for name, record in records.items():
        try:
            check(record)
        except AssertionError:
            continue
        passed.append(name)
    assert not passed, f"these mistakes pass the check: {passed}"
