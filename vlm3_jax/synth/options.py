"""What a synthetic data set is made of."""

import dataclasses

from vlm3_jax.errors import UserError

MOTIONS = ("orbit", "crane")


@dataclasses.dataclass(frozen=True)
class SynthOptions:
    """Image size, camera ranges and label counts of synthetic scenes. UserError on values that cannot be rendered.

    Camera height and pitch vary on purpose: with a fixed camera the row of a pixel alone would tell its depth.
    """

    width: int = 160
    """Image width, pixels."""
    height: int = 120
    """Image height, pixels."""
    focal_px: float = 160.0
    """Nominal focal length, pixels (fx = fy)."""
    focal_factor: tuple[float, float] = (0.5, 2.0)
    """A scene's focal length is nominal x a factor, log-uniform in this range; both views share it."""
    camera_height_m: tuple[float, float] = (0.8, 2.0)
    """Height of the camera above the floor, metres."""
    pitch_down_deg: tuple[float, float] = (-5.0, 28.0)
    """Camera pitch, degrees; positive looks down."""
    roll_deg: float = 3.0
    """Largest absolute roll, degrees."""
    room_share: float = 0.6
    """Share of rooms; the others are outdoor grounds."""
    max_objects: int = 10
    """At most so many free-standing objects a scene (doors, pictures, rugs and far houses come on top)."""
    depth_points: int = 128
    """Labelled pixels a view."""
    even_depth: bool = False
    """Draw the labelled pixels evenly over log-depth, not over the image, so that near and far are asked alike."""
    matches: int = 64
    """At most so many matches a pair."""
    max_depth_m: float = 60.0
    """Points farther away than this carry no label."""
    motion: str = "orbit"
    """How the second camera moves: "orbit" (steps aside and turns to the same place) or "crane" (rises or sinks, hardly
    steps aside, tilts and banks: what one image alone tells of its camera, its height, tilt and roll, then tells most
    of the pose between two)."""
    min_covisibility: float = 0.3
    """The second camera is drawn until about this much of the views overlaps."""
    min_object_share: float = 0.002
    """An object is labelled if it covers at least this share of the image (and 12 pixels)."""

    def __post_init__(self):
        for name in ("focal_factor", "camera_height_m", "pitch_down_deg"):
            low, high = getattr(self, name)
            object.__setattr__(self, name, (float(low), float(high)))
            if not low <= high:
                raise UserError(f"synth options: {name} must be (low, high) with low <= high, got ({low}, {high})")
        for name in ("width", "height"):
            if getattr(self, name) < 16:
                raise UserError(f"synth options: {name} must be at least 16 pixels, got {getattr(self, name)}")
        for name in ("focal_px", "max_depth_m"):
            if not getattr(self, name) > 0:
                raise UserError(f"synth options: {name} must be positive, got {getattr(self, name)}")
        for name in ("room_share", "min_covisibility", "min_object_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"synth options: {name} must lie in [0, 1], got {getattr(self, name)}")
        for name in ("max_objects", "depth_points", "matches"):
            if getattr(self, name) < 1:
                raise UserError(f"synth options: {name} must be at least 1, got {getattr(self, name)}")
        if self.motion not in MOTIONS:
            raise UserError(f"synth options: motion must be one of {', '.join(MOTIONS)}, got {self.motion!r}")
        if self.focal_factor[0] <= 0:
            raise UserError(f"synth options: focal_factor must be positive, got {self.focal_factor}")
        if not (self.camera_height_m[0] >= 0.3 and self.camera_height_m[1] <= 2.2):
            raise UserError(
                "synth options: camera_height_m must lie in [0.3, 2.2] (below every ceiling), "
                f"got {self.camera_height_m}"
            )
        if not (self.pitch_down_deg[0] >= -60 and self.pitch_down_deg[1] <= 60 and 0 <= self.roll_deg <= 45):
            raise UserError(
                f"synth options: pitch must lie in [-60, 60] and roll in [0, 45] degrees, "
                f"got {self.pitch_down_deg} and {self.roll_deg}"
            )
