"""Conversations as labels: turns as they are stored, the images that they show and the boxes that they speak of."""

import dataclasses
from typing import ClassVar

import numpy as np

from vlm3_jax.errors import BadRecord
from vlm3_jax.records import checks

ROLES = ("system", "user", "assistant")
IMAGE, MASK = "<image>", "<mask>"


@dataclasses.dataclass(frozen=True)
class Turn:
    """What one side says. `images`: numbers of the views that it shows; `regions`: of the boxes that it speaks of.

    The first `len(images)` "<image>" of the text are the places of the images, which stand before the text if it has no
    such place; likewise "<mask>" and the regions. "Region [i]" in an answer is the i-th of its question's `regions`.
    Any other "<image>" or "<mask>" is text.
    """

    role: str
    text: str
    images: tuple[int, ...] = ()
    regions: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Conversation:
    """Turns, the last one the assistant's; `boxes_px` [M, 4] (x1, y1, x2, y2) are the regions, in pixels of `view`.

    `size`: the width and height of the image that the boxes are in, if it is not that of the camera: of a resized image
    as they would be without rounding, since published boxes are told as parts of the stored image.
    """

    turns: tuple[Turn, ...]
    boxes_px: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 4), np.int64))
    view: int = 0
    size: tuple[float, float] | None = None

    RULE: ClassVar[str] = "a box with an area (x1 < x2, y1 < y2)"

    @property
    def views(self) -> tuple[int, ...]:
        """The views that its turns show."""
        return tuple(dict.fromkeys(view for turn in self.turns for view in turn.images))

    def seen_by(self, old, new) -> "Conversation":
        """Corners move with the pixels, and are not rounded."""
        if not len(self.boxes_px):
            return self
        before, after = old[self.view], new[self.view]
        scale = np.array([after.fx / before.fx, after.fy / before.fy])
        moved = (np.reshape(self.boxes_px, (-1, 2)) - [before.cx, before.cy]) * scale + [after.cx, after.cy]
        size = np.multiply(self.size or (before.width, before.height), scale)
        # A crop shows less at the same scale.
        cut = (scale == 1).all() and (before.width, before.height) != (after.width, after.height)
        size = (after.width, after.height) if cut else tuple(size.tolist())
        return dataclasses.replace(self, boxes_px=moved.reshape(-1, 4), size=size)

    def normalised(self, cameras, coord_range: int) -> np.ndarray:
        """The boxes in [0, R), int64 [M, 4]: `round(x R / W)` of the stored image's pixels, halves to even."""
        if not len(self.boxes_px):
            return np.zeros((0, 4), np.int64)
        camera = cameras[self.view]
        scaled = np.reshape(self.boxes_px, (-1, 2)) * coord_range / (self.size or (camera.width, camera.height))
        # What was resized and divided again is a half but for its last digits.
        whole = np.rint(np.round(scaled, 9))
        return np.clip(whole, 0, coord_range - 1).astype(np.int64).reshape(-1, 4)

    def mirrored(self, cameras) -> "Conversation":
        """BadRecord: what it says of left and right would be wrong."""
        raise BadRecord("a conversation cannot be mirrored, its words would be wrong; set flip = 0")

    def inside(self, cameras) -> np.ndarray:
        """One part, the whole, which a crop keeps; `shown` tells which of its boxes are left."""
        return np.array([True])

    def shown(self, cameras) -> np.ndarray:
        """Which boxes have their centres in the image, bool [M]: the others cannot be pointed at."""
        if not len(self.boxes_px):
            return np.zeros(0, bool)
        camera = cameras[self.view]
        centres = (self.boxes_px[:, :2] + self.boxes_px[:, 2:]) / 2
        return ((centres >= 0) & (centres < [camera.width, camera.height])).all(1)

    def sound(self, cameras) -> np.ndarray:
        """One part, the whole: usable if all of its boxes are."""
        return np.array([bool((self.boxes_px[:, 2:] > self.boxes_px[:, :2]).all())])

    def kept(self, mask: np.ndarray) -> "Conversation | None":
        """Itself, or None if its one part is not kept."""
        return self if mask[0] else None

    def part(self, n: int) -> str:
        """Its boxes."""
        return f"boxes {self.boxes_px.tolist()}"

    def metres(self) -> np.ndarray:
        """None."""
        return np.zeros(0)

    def draw(self, canvas, place, colour) -> None:
        """Boxes with their numbers."""
        for number, box in enumerate(self.boxes_px):
            x1, y1, x2, y2 = place(self.view, box.reshape(2, 2)).ravel()
            canvas.rectangle((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), outline=colour)
            canvas.text((x1 + 2, y1 + 1), str(number), fill=colour)

    @classmethod
    def read(cls, tree, field: str, views: int) -> "Conversation":
        """Turns of known roles that show views and speak of boxes that there are."""
        boxes = checks.pixels(tree["boxes_px"], f"{field}.boxes_px", None, 4)
        stored = tree["turns"]
        checks.need(isinstance(stored, list) and stored, f"{field}.turns", "expected a list of turns")
        turns = tuple(_turn(turn, f"{field}.turns[{n}]", views, len(boxes)) for n, turn in enumerate(stored))
        check_order([turn.role for turn in turns], f"{field}.turns")
        view = checks.view_number(tree, field, views) if len(boxes) else 0
        size = tree.get("size")
        right = size is None or (isinstance(size, list) and len(size) == 2 and all(_is_side(n) for n in size))
        checks.need(right, f"{field}.size", f"expected a width and a height, got {size!r}")
        return cls(turns, boxes, view, size and tuple(size))


def _is_side(value) -> bool:
    return type(value) in (int, float) and 0 < value < np.inf


def check_order(roles, name: str) -> None:
    """BadRecord unless the user and the assistant take turns, the user first, perhaps after the system."""
    talk = [*roles][1:] if roles and roles[0] == "system" else [*roles]
    right = talk and len(talk) % 2 == 0 and talk == ["user", "assistant"] * (len(talk) // 2)
    checks.need(right, name, f"expected user and assistant in turns, got {', '.join(roles) or 'none'}")


def _turn(tree, field: str, views: int, boxes: int) -> Turn:
    role, text = tree["role"], tree["text"]
    checks.need(role in ROLES, f"{field}.role", f"is {role!r}, expected one of {', '.join(ROLES)}")
    checks.need(isinstance(text, str), f"{field}.text", "expected text")
    for part, least, what in (("images", views, "views"), ("regions", boxes, "boxes")):
        numbers = tree[part]
        right = isinstance(numbers, list) and all(type(n) is int and 0 <= n < least for n in numbers)
        checks.need(right, f"{field}.{part}", f"expected numbers of its {least} {what}, got {numbers!r}")
    shown = not tree["images"] or role == "user"
    checks.need(shown, f"{field}.images", "only the user shows images")
    return Turn(role, text, tuple(tree["images"]), tuple(tree["regions"]))
