"""Labels: each kind knows its own geometry, how it is drawn, and what its stored form must hold.

A kind of label is one class here and one field of `Record`. What every one offers (`cameras`: one a view):

- `views`: the numbers of the views that it needs.
- `seen_by(old, new)`: the label for images of cameras `new`, resized or cropped from those of `old`; none removed.
- `mirrored(cameras)`: the label for the stored images mirrored left to right.
- `inside(cameras)`: which of its parts lie in the images, bool [N]; `sound(cameras)`: which can be used at all, as
  `RULE` says; `kept(mask)`: the label with those parts only.
- `part(n)`: what part n holds, in a few words.
- `metres()`: its lengths, for a look at the units.
- `draw(canvas, place, colour)`: onto a PIL `ImageDraw`, where `place(view, points)` takes pixels of a view to it.
- `read(tree, field, views)`: from its stored form (`codec`), of a record with so many views; BadRecord names the field.
"""

import dataclasses
from typing import ClassVar

import numpy as np

from vlm3_jax.camera import Camera
from vlm3_jax.records import checks
from vlm3_jax.records.colours import depth_colours

# No photo shows the depth of what is farther (1,000 km), and answers from 1e9 on are unreadable.
MAX_DEPTH_M = 1e6
# More points than that are drawn without their numbers.
MANY = 200


@dataclasses.dataclass(frozen=True, eq=False)
class DepthPoints:
    """Labelled pixels of one view: `points_px` int [N, 2], `depth_m` [N], `kind` "distance" (to the centre) or "z"."""

    points_px: np.ndarray
    depth_m: np.ndarray
    kind: str
    view: int = 0

    RULE: ClassVar[str] = f"a point of the image with a depth above 0 and at most {MAX_DEPTH_M:,.0f} m"

    @property
    def views(self) -> tuple[int, ...]:
        """The view that it labels."""
        return (self.view,)

    def seen_by(self, old, new) -> "DepthPoints":
        """Points move with the pixels; depths stay."""
        return dataclasses.replace(self, points_px=old[self.view].map_points(self.points_px, new[self.view]))

    def mirrored(self, cameras) -> "DepthPoints":
        """Points move with the pixels; depths stay."""
        return dataclasses.replace(self, points_px=_mirrored(self.points_px, cameras[self.view]))

    def inside(self, cameras) -> np.ndarray:
        """Which points lie in the image."""
        return cameras[self.view].inside(self.points_px)

    def sound(self, cameras) -> np.ndarray:
        """Which points can be asked about; NaN compares false."""
        return self.inside(cameras) & (self.depth_m > 0) & (self.depth_m <= MAX_DEPTH_M)

    def kept(self, mask: np.ndarray) -> "DepthPoints":
        """The points of a mask [N]."""
        return dataclasses.replace(self, points_px=self.points_px[mask], depth_m=self.depth_m[mask])

    def part(self, n: int) -> str:
        """A point and its depth."""
        x, y = self.points_px[n].tolist()
        return f"({x:g}, {y:g}) {self.depth_m[n]:g} m"

    def metres(self) -> np.ndarray:
        """The depths."""
        return self.depth_m

    def draw(self, canvas, place, colour) -> None:
        """Dots with their depths; of many (lidar) the depths are colours, red is near."""
        places = place(self.view, self.points_px)
        if len(places) > MANY:
            colours = depth_colours(np.asarray(self.depth_m)[None])[0]
            # What is far is drawn first, for what is near hides it.
            for n in np.argsort(-np.asarray(self.depth_m)):
                x, y = places[n]
                canvas.rectangle((x - 1, y - 1, x + 1, y + 1), fill=tuple(colours[n].tolist()))
            return
        for (x, y), depth in zip(places, self.depth_m, strict=True):
            canvas.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colour)
            canvas.text((x + 3, y - 5), f"{depth:.1f}", fill=colour)

    @classmethod
    def read(cls, tree, field: str, views: int) -> "DepthPoints":
        """As many depths as points, of a known kind."""
        points = checks.pixels(tree["points_px"], f"{field}.points_px", None, 2)
        depth = checks.array(tree["depth_m"], f"{field}.depth_m", len(points))
        kind = tree["kind"]
        checks.need(kind in ("distance", "z"), f"{field}.kind", f'expected "distance" or "z", got {kind!r}')
        return cls(points, depth, kind, checks.view_number(tree, field, views))


@dataclasses.dataclass(frozen=True, eq=False)
class Objects:
    """Objects of one view.

    `boxes_px` int [M, 4] as x1, y1, x2, y2; `names` M strings; `points_m` M arrays [P, 3] of surface points in a frame
    at the camera, x right, y down, z forward, gravity aligned (y is straight down, z the horizontal viewing direction).
    """

    boxes_px: np.ndarray
    names: tuple[str, ...]
    points_m: tuple[np.ndarray, ...]
    view: int = 0

    RULE: ClassVar[str] = "a box with an area (x1 < x2, y1 < y2) and finite surface points"

    @property
    def views(self) -> tuple[int, ...]:
        """The view that it labels."""
        return (self.view,)

    def seen_by(self, old, new) -> "Objects":
        """Corners move with the pixels; surface points stay."""
        corners = old[self.view].map_points(self.boxes_px.reshape(-1, 2), new[self.view])
        return dataclasses.replace(self, boxes_px=corners.reshape(-1, 4))

    def mirrored(self, cameras) -> "Objects":
        """Left and right edges change places; surface points become (-x, y, z)."""
        corners = _mirrored(np.reshape(self.boxes_px, (-1, 2, 2)), cameras[self.view])
        boxes = np.stack([corners[:, 1, 0], corners[:, 0, 1], corners[:, 0, 0], corners[:, 1, 1]], -1)
        return dataclasses.replace(
            self, boxes_px=boxes, points_m=tuple(p * np.array([-1, 1, 1], np.float32) for p in self.points_m)
        )

    def inside(self, cameras) -> np.ndarray:
        """Which boxes lie wholly in the image."""
        return cameras[self.view].inside(self.boxes_px.reshape(-1, 2)).reshape(-1, 2).all(1)

    def sound(self, cameras) -> np.ndarray:
        """Which boxes have an area and surface points."""
        area = (self.boxes_px[:, 2:] > self.boxes_px[:, :2]).all(1)
        # NaN compares false.
        solid = [len(cloud) > 0 and bool((np.abs(cloud) <= MAX_DEPTH_M).all()) for cloud in self.points_m]
        return area & np.array(solid, bool)

    def kept(self, mask: np.ndarray) -> "Objects":
        """The objects of a mask [M]."""
        kept = np.flatnonzero(mask)
        return dataclasses.replace(
            self,
            boxes_px=self.boxes_px[kept],
            names=tuple(self.names[k] for k in kept),
            points_m=tuple(self.points_m[k] for k in kept),
        )

    def part(self, n: int) -> str:
        """An object's name and box, and how many surface points it has."""
        return f"{self.names[n]!r} {self.boxes_px[n].tolist()}, {len(self.points_m[n])} surface points"

    def metres(self) -> np.ndarray:
        """How far their surface points are on average."""
        return np.array([np.linalg.norm(cloud, axis=-1).mean() for cloud in self.points_m])

    def draw(self, canvas, place, colour) -> None:
        """Boxes with their names."""
        boxes = place(self.view, self.boxes_px).reshape(-1, 4)
        for (x1, y1, x2, y2), name in zip(boxes, self.names, strict=True):
            canvas.rectangle((min(x1, x2), y1, max(x1, x2), y2), outline=colour)
            canvas.text((x1 + 2, y1 + 1), name, fill=colour)

    @classmethod
    def read(cls, tree, field: str, views: int) -> "Objects":
        """A name and surface points for each box."""
        boxes = checks.pixels(tree["boxes_px"], f"{field}.boxes_px", None, 4)
        names, points = tree["names"], tree["points_m"]
        for part, values in (("names", names), ("points_m", points)):
            right = isinstance(values, list) and len(values) == len(boxes)
            checks.need(right, f"{field}.{part}", f"expected a list of {len(boxes)}, one for each box")
        checks.need(all(isinstance(name, str) for name in names), f"{field}.names", "expected text")
        clouds = tuple(checks.array(p, f"{field}.points_m[{n}]", None, 3) for n, p in enumerate(points))
        return cls(boxes, tuple(names), clouds, checks.view_number(tree, field, views))


@dataclasses.dataclass(frozen=True, eq=False)
class Matches:
    """Pixels of view 0 [N, 2] (whole as stored) and where the same surface lies in view 1 [N, 2]; visible in both."""

    points0_px: np.ndarray
    points1_px: np.ndarray

    RULE: ClassVar[str] = "a match with both ends in their images"

    @property
    def views(self) -> tuple[int, ...]:
        """The two views."""
        return (0, 1)

    def seen_by(self, old, new) -> "Matches":
        """Both ends move with the pixels; neither is rounded, as in the release's pairs."""
        ends = self.points0_px, self.points1_px
        return Matches(*(_scaled(points, old[view], new[view]) for view, points in enumerate(ends)))

    def mirrored(self, cameras) -> "Matches":
        """Both ends move with the pixels."""
        return Matches(_mirrored(self.points0_px, cameras[0]), _mirrored(self.points1_px, cameras[1]))

    def inside(self, cameras) -> np.ndarray:
        """Which matches have both ends in their images."""
        return cameras[0].inside(self.points0_px) & cameras[1].inside(self.points1_px)

    def sound(self, cameras) -> np.ndarray:
        """Which matches have both ends in their images, up to the edge of the last pixel."""
        ends = (self.points0_px, cameras[0]), (self.points1_px, cameras[1])
        first, second = (((p >= 0) & (p < [camera.width, camera.height])).all(-1) for p, camera in ends)
        return first & second

    def kept(self, mask: np.ndarray) -> "Matches":
        """The matches of a mask [N]."""
        return Matches(self.points0_px[mask], self.points1_px[mask])

    def part(self, n: int) -> str:
        """Its two ends."""
        (x0, y0), (x1, y1) = self.points0_px[n].tolist(), self.points1_px[n].tolist()
        return f"({x0:g}, {y0:g}) to ({x1:g}, {y1:g})"

    def metres(self) -> np.ndarray:
        """None."""
        return np.zeros(0)

    def draw(self, canvas, place, colour) -> None:
        """Lines between the two images."""
        for a, b in zip(place(0, self.points0_px), place(1, self.points1_px), strict=True):
            canvas.line((*a, *b), fill=colour)

    @classmethod
    def read(cls, tree, field: str, views: int) -> "Matches":
        """As many pixels in the second view as in the first."""
        checks.need(views >= 2, field, "the record has one view, matches need two")
        points = checks.pixels(tree["points0_px"], f"{field}.points0_px", None, 2)
        return cls(points, checks.pixels(tree["points1_px"], f"{field}.points1_px", len(points), 2))


def _scaled(points_px, old: Camera, new: Camera) -> np.ndarray:
    """Pixels of `old`'s image -> pixels of `new`'s, float64 [N, 2]."""
    focal = np.array([new.fx / old.fx, new.fy / old.fy])
    return (np.asarray(points_px, np.float64) - [old.cx, old.cy]) * focal + [new.cx, new.cy]


def _mirrored(points_px, camera: Camera) -> np.ndarray:
    """Pixel x becomes W - 1 - x."""
    points = np.array(points_px)
    points[..., 0] = camera.width - 1 - points[..., 0]
    return points
