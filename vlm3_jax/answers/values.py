"""What a model answered about photos: depths, matches and poses, with units in the names."""

import dataclasses

import numpy as np

from vlm3_jax.camera import Camera
from vlm3_jax.errors import UserError
from vlm3_jax.records.dense import KINDS


@dataclasses.dataclass(frozen=True, eq=False)
class DenseMap:
    """`distance_m` float32 [H, W] of every pixel of the upright image (NaN: unknown), made of the points asked about.

    `questions`: how many different ones were asked; `step_px`: pixels between neighbours of the finest grid asked.
    Where the spread was asked for, `median_m` and `deviation_m`, and if it is calibrated `low_m` and `high_m`, are maps
    too (`Spread`).
    """

    distance_m: np.ndarray
    questions: int
    step_px: float
    median_m: np.ndarray | None = None
    deviation_m: np.ndarray | None = None
    low_m: np.ndarray | None = None
    high_m: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Spread:
    """What a model's probabilities say of each depth: float64 [N] each, NaN where its answer has no number.

    `expected_m`, `median_m` and `deviation_m` of the digits explored, which hold `covered` of the probability (0 to 1).
    `low_m` and `high_m`: between them lies the truth with probability `level`, by a calibration on held-out data; NaN
    (and `level` too) without one.
    """

    expected_m: np.ndarray
    median_m: np.ndarray
    deviation_m: np.ndarray
    covered: np.ndarray
    low_m: np.ndarray
    high_m: np.ndarray
    level: float


@dataclasses.dataclass(frozen=True, eq=False)
class Depth:
    """Points asked about (px of the upright image, int [N, 2]), distances in metres [N] (or NaN), the texts.

    A model that is asked by markers is not asked about points within 5 px of the border (unified): NaN and "".
    `camera_source`: where the camera that metric depth hangs on is from (`processor.photo`). `kind`: what maps in files
    hold, "distance" to the camera centre or "z"; here lengths are always distances.
    """

    points_px: np.ndarray
    distance_m: np.ndarray
    answers: list[str]
    camera: Camera
    camera_source: str
    kind: str = "distance"
    dense: DenseMap | None = None
    spread: Spread | None = None

    def __post_init__(self):
        check_kind(self.kind)

    @property
    def z_m(self) -> np.ndarray:
        """Depth along the camera's axis at the points, metres [N]."""
        return self.camera.z_from_distance(self.points_px, self.distance_m)

    @property
    def unread(self) -> int:
        """How many of the points have no readable answer."""
        return int(np.isnan(self.distance_m).sum())

    def points_m(self) -> np.ndarray:
        """The points in the camera's frame (x right, y down, z forward), metres, float64 [N, 3]; NaN where unread."""
        return self.camera.rays(self.points_px) * self.z_m[:, None]

    def map_m(self, kind: str | None = None) -> np.ndarray:
        """The dense map, float32 [H, W], metres of `kind` (None: the answer's own). UserError without one."""
        if self.dense is None:
            raise UserError("there is no dense map; ask for one (dense=True)")
        return self._of_kind(self.dense.distance_m, kind)

    def spread_maps(self, kind: str | None = None) -> dict[str, np.ndarray]:
        """Of the dense map "median", "deviation", "low" and "high", as far as there are any: as `map_m`."""
        if self.dense is None:
            return {}
        maps = {name: getattr(self.dense, f"{name}_m") for name in ("median", "deviation", "low", "high")}
        return {name: self._of_kind(values, kind) for name, values in maps.items() if values is not None}

    def relative_deviation(self) -> np.ndarray | None:
        """Of the dense map, float32 [H, W]: the deviation over the median; None without a spread."""
        maps = self.spread_maps("distance")
        return maps["deviation"] / maps["median"] if maps else None

    def _of_kind(self, distance: np.ndarray, kind: str | None) -> np.ndarray:
        if check_kind(kind or self.kind) == "distance":
            return distance
        return (distance / ray_lengths(self.camera)).astype(np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Match:
    """Points of the first image (px, [N, 2]), where the model sees them in the second (px, [N, 2]), the texts.

    `matches_px` is NaN where the answer cannot be read or lies outside the second image; `outside` [N]: the latter.
    """

    points_px: np.ndarray
    matches_px: np.ndarray
    answers: list[str]
    outside: np.ndarray
    camera_sources: tuple[str, str]
    cameras: tuple[Camera, Camera]

    @property
    def unread(self) -> int:
        """How many of the points have no readable answer (those outside the second image have one)."""
        return int((np.isnan(self.matches_px).any(1) & ~self.outside).sum())


@dataclasses.dataclass(frozen=True, eq=False)
class RelativePose:
    """The second camera in the frame of the first: rotation [3, 3], unit direction [3], distance in metres (or NaN)."""

    rotation: np.ndarray
    direction: np.ndarray
    distance_m: float
    answers: dict[str, str]
    camera_sources: tuple[str, str]
    cameras: tuple[Camera, Camera]

    @property
    def known(self) -> bool:
        """Whether rotation and direction could be read."""
        return bool(np.isfinite(self.rotation).all() and np.isfinite(self.direction).all())

    @property
    def metric(self) -> bool:
        """Whether the length of the motion is known."""
        return bool(np.isfinite(self.distance_m))

    def cam1_T_cam2(self) -> np.ndarray:
        """The motion as float64 [4, 4], of length 1 where `metric` is false; NaN where an answer cannot be read."""
        matrix = np.eye(4)
        matrix[:3, :3] = self.rotation
        matrix[:3, 3] = self.direction * (self.distance_m if self.metric else 1.0)
        return matrix


def check_kind(kind: str, name: str = "kind") -> str:
    """What a length may be: "distance" to the camera centre or "z". UserError, which calls it `name`, for others."""
    if kind not in KINDS:
        raise UserError(f"{name}: {kind!r} is unknown; choose {' or '.join(KINDS)}")
    return kind


def ray_lengths(camera: Camera) -> np.ndarray:
    """Distance to the camera centre of a point at z = 1, float64 [H, W], for every pixel."""
    x = (np.arange(camera.width) - camera.cx) / camera.fx
    y = (np.arange(camera.height) - camera.cy) / camera.fy
    return np.sqrt(1 + x[None] ** 2 + y[:, None] ** 2)


def camera_facts(camera: Camera, source: str) -> dict:
    """A camera as JSON: its numbers (px of the upright image) and where it is from."""
    return dataclasses.asdict(camera) | {"source": source}


def depth_facts(depth: Depth) -> dict:
    """What every file of a depth answer tells: units, the camera and where it is from, what its map holds."""
    facts = {"unit": "metres", "camera": camera_facts(depth.camera, depth.camera_source)}
    facts |= {"points": len(depth.points_px), "unread": depth.unread}
    if depth.dense is not None:
        facts |= {"map": depth.kind, "questions": depth.dense.questions, "step_px": depth.dense.step_px}
    return facts
