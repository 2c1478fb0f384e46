"""Sets of posed frames: which two frames of a scene make a pair, and the record of one."""

import dataclasses
import pathlib
import zlib
from collections.abc import Iterable, Iterator
from typing import ClassVar

import numpy as np

from vlm3_jax.builders.common import Builder, Item, Skip, by_key
from vlm3_jax.camera import Camera
from vlm3_jax.errors import BadRecord
from vlm3_jax.pose import check_pose
from vlm3_jax.records import DepthMap, ImageRef, Record, View, encode_depth
from vlm3_jax.records.pairs import DepthView, covisibility

# Depth is stored in 16 bits: what is farther than 65,535 steps of a centimetre would make the steps of all others
# coarser, and has no depth instead. Without a unit, what is beyond so many times the median.
FAR_M = 655.35
FAR_MEDIANS = 100.0
# A doubt of many sets.
HALF_A_PIXEL = "half a pixel of the principal point: whether the centre of the first pixel counts as 0 or as 0.5"


@dataclasses.dataclass(frozen=True, eq=False)
class PosedFrame:
    """One frame as it was read: `world_T_cam` camera-to-world, OpenCV; `depth` [H, W], NaN, inf, 0 or below: none."""

    image: ImageRef
    camera: Camera
    world_T_cam: np.ndarray
    depth: np.ndarray | None = None
    kind: str = "z"


class PairBuilder(Builder):
    """A set whose records are two posed frames of one scene, with their depth where there is some.

    A subclass lists the scenes of a split, the frames of a scene by name, and reads one frame. `pairs` is its own where
    the set comes with neighbour lists; else every frame meets `partners` of the `window` frames that follow it. How
    much two frames share is computed from depth and poses when the pair is read: too little is a reason to skip it.
    """

    folder = "pairs"
    metric: ClassVar[bool] = True
    """Whether depth and poses are in metres."""
    covisible: ClassVar[float] = 0.25
    """Pairs share more than this of what they see (formats.md of VLM3 and WAI: above 25 %)."""
    window: ClassVar[int] = 16
    partners: ClassVar[int] = 4

    def scenes(self, raw: pathlib.Path, split: str) -> Iterable[tuple[str, list[dict]]]:
        """The scenes of a split, each with its frames in order: `key`, unique in the scene, and what reads it.

        Looks at names and indices only; frames hold plain values. UserError if the layout is not there.
        """
        raise NotImplementedError

    def frame(self, raw: pathlib.Path, scene: str, data: dict) -> PosedFrame:
        """Reads one frame of `scenes`. Skip if the set has no depth or pose for it."""
        raise NotImplementedError

    def pairs(self, raw: pathlib.Path, scene: str, frames: list[dict]) -> Iterator[tuple[int, int]]:
        """Which frames meet, by their numbers in the scene; the first is the reference."""
        return window_pairs(scene, len(frames), self.window, self.partners)

    def frames(self, raw: pathlib.Path, split: str) -> list[Item]:
        """All pairs of all scenes of a split; whether they share enough is seen when they are read."""
        return by_key(
            Item(f"{scene}/{frames[i]['key']}-{frames[j]['key']}", scene, {"frames": [frames[i], frames[j]]})
            for scene, frames in self.scenes(raw, split)
            for i, j in self.pairs(raw, scene, frames)
        )

    def two_frames(self, raw: pathlib.Path, scene: str, frames: list[dict]) -> list[PosedFrame]:
        """Reads both frames of a pair; for sets in which one depends on the other."""
        return [self.frame(raw, scene, data) for data in frames]

    def record(self, raw: pathlib.Path, item: Item) -> Record:
        """Two views with poses, and their depth maps if both have some."""
        found = self.two_frames(raw, item.scene, item.data["frames"])
        views = tuple(
            View(frame.image, frame.camera, check_pose(frame.world_T_cam, f"{item.scene}/{data['key']}"))
            for frame, data in zip(found, item.data["frames"], strict=True)
        )
        record = Record(item.key, views, metric=self.metric, scene=item.scene)
        if any(frame.depth is None for frame in found):
            return record
        depths = [storable(frame.depth, self.metric) for frame in found]
        maps = tuple(
            stored_depth(depth, frame.kind, self.metric, n, view.image.name)
            for n, (depth, frame, view) in enumerate(zip(depths, found, views, strict=True))
        )
        share = covisibility(
            *(DepthView(v.camera, v.world_T_cam, m, d) for v, m, d in zip(views, maps, depths, strict=True)),
            metric=self.metric,
        )
        if share <= self.covisible:
            raise Skip(f"its views share at most {self.covisible:.0%}")
        return dataclasses.replace(record, depth_maps=maps, covisibility=share)


def storable(depth: np.ndarray, metric: bool) -> np.ndarray:
    """float32 [H, W], NaN where there is no depth, or none that 16 bits hold beside the others (`FAR_M`)."""
    depth = np.array(depth, np.float32)
    if depth.ndim != 2:
        raise BadRecord(f"a depth map has two axes, this one has shape {list(depth.shape)}")
    depth[~((depth > 0) & (depth < np.inf))] = np.nan
    there = np.isfinite(depth)
    if there.any():
        far = FAR_M if metric else FAR_MEDIANS * float(np.median(depth[there]))
        depth[there & (depth > far)] = np.nan
    return depth


def stored_depth(depth: np.ndarray, kind: str, metric: bool, view: int, name: str) -> DepthMap:
    """A map of `storable` depth: in millimetres if these fit, without a unit in the finest steps that do."""
    largest = 0.0 if metric or not np.isfinite(depth).any() else float(np.nanmax(depth))
    return encode_depth(depth, kind, scale=largest / 65535 or None, view=view, name=name)


def window_pairs(scene: str, count: int, window: int, partners: int) -> Iterator[tuple[int, int]]:
    """Each of `count` frames with `partners` of the `window` that follow, in either order.

    Drawn by the scene's name and the frame's number alone: the same wherever and however often it is asked for.
    """
    for first in range(count - 1):
        rng = np.random.default_rng([zlib.crc32(scene.encode()), first])
        later = np.arange(first + 1, min(first + window, count - 1) + 1)
        for second in sorted(rng.choice(later, min(partners, len(later)), replace=False).tolist()):
            yield (first, second) if rng.random() < 0.5 else (second, first)


def one_in(name: str, parts: int) -> bool:
    """Whether a scene belongs to the held-out part of sets that were published without one; about one in `parts`."""
    return zlib.crc32(name.encode()) % parts == 0


def camera(fx, fy, cx, cy, image: ImageRef, first: float = 0.0) -> Camera:
    """The camera of an image from a set that counts `first` for the centre of the first pixel, for us (0, 0).

    0.5: the corner of the image is (0, 0), so that the middle of W pixels is W / 2 (COLMAP, MVSNet, renderers).
    """
    shifted = float(cx) - first, float(cy) - first
    return Camera(float(fx), float(fy), *shifted, image.width, image.height).plausible(image.name)


def inverse(cam_T_world, name: str) -> np.ndarray:
    """World-to-camera [3 or 4, 4] -> camera-to-world [4, 4]; BadRecord if it has no inverse. It may be mirrored."""
    matrix = np.eye(4)
    try:
        given = np.asarray(cam_T_world, np.float64)
        matrix[: len(given)] = given
        return np.linalg.inv(matrix)
    except (ValueError, TypeError, np.linalg.LinAlgError):
        raise BadRecord(f"{name}: no pose of 3 x 4 or 4 x 4 numbers") from None


def below(raw: pathlib.Path, text: str) -> pathlib.Path:
    """A path that a file of the set gives, in the raw folder; BadRecord if it leads out of it."""
    parts = pathlib.PurePosixPath(text).parts
    if not parts or ".." in parts or parts[0].startswith("/"):
        raise BadRecord(f"{text!r}: a path of the annotations that leads out of the raw folder")
    return raw.joinpath(*parts)


def contents(path: pathlib.Path) -> bytes:
    """The bytes of a file that belongs to a frame; Skip, naming its folder, if the set has none for this frame."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise Skip(f"a frame has no file in {path.parent.name}") from None
