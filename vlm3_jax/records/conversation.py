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
    such place; likewise "<mask>" and the regions. In an answer "Region [i]" is the i-th of its `regions`. Any other
    "<image>" or "<mask>" is text.
    """

    role: str
    text: str
    images: tuple[int, ...] = ()
    regions: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Conversation:
    """Turns, the last one the assistant's; `boxes_px` [M, 4] (x1, y1, x2, y2) are the regions, in pixels of `view`."""

    turns: tuple[Turn, ...]
    boxes_px: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 4), np.int64))
    view: int = 0

    RULE: ClassVar[str] = "a box with an area (x1 < x2, y1 < y2)"

    @property
    def views(self) -> tuple[int, ...]:
        """The views that its turns show."""
        return tuple(dict.fromkeys(view for turn in self.turns for view in turn.images))

    def seen_by(self, old, new) -> "Conversation":
        """Corners move with the pixels."""
        if not len(self.boxes_px):
            return self
        corners = old[self.view].map_points(self.boxes_px.reshape(-1, 2), new[self.view])
        return dataclasses.replace(self, boxes_px=corners.reshape(-1, 4))

    def mirrored(self, cameras) -> "Conversation":
        """BadRecord: what it says of left and right would be wrong."""
        raise BadRecord("a conversation cannot be mirrored, its words would be wrong; set flip = 0")

    def inside(self, cameras) -> np.ndarray:
        """One part, the whole: it is kept by a crop, which cuts its boxes at the edge, unless one is left outside."""
        return np.array([not self._lost(cameras)])

    def _lost(self, cameras) -> bool:
        if not len(self.boxes_px):
            return False
        camera = cameras[self.view]
        centres = (self.boxes_px[:, :2] + self.boxes_px[:, 2:]) / 2
        return not ((centres >= 0) & (centres < [camera.width, camera.height])).all()

    def sound(self, cameras) -> np.ndarray:
        """One part, the whole: usable if all of its boxes are."""
        return np.array([bool((self.boxes_px[:, 2:] > self.boxes_px[:, :2]).all())])

    def kept(self, mask: np.ndarray) -> "Conversation | None":
        """Itself, or None if its one part is not kept."""
        return self if mask[0] else None

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
        checks.need(turns[-1].role == "assistant", f"{field}.turns", "the last turn must be the assistant's")
        view = checks.view_number(tree, field, views) if len(boxes) else 0
        return cls(turns, boxes, view)


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
