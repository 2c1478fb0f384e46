"""Depth questions about pixels of one photo; what is asked twice is answered once."""

import dataclasses

import numpy as np

from vlm3_jax import marker, tasks
from vlm3_jax.answers.values import check_kind
from vlm3_jax.camera import Camera, normalize_points
from vlm3_jax.infer.engine import Engine
from vlm3_jax.infer.tree import Numbers
from vlm3_jax.processor.image import ImageLayout
from vlm3_jax.tasks import depth
from vlm3_jax.tasks.protocol import Protocol


@dataclasses.dataclass(eq=False)
class PointQuestions:
    """One photo, whose `camera` is known, as it is shown (`layout`, `unified`) to a model that is asked so.

    `meant`: what the model's lengths are, "distance" or "z", as its training labels were. `spread`: whether trees of
    numbers are grown. `texts` and `trees`: the answers so far by question: its text and, of a model that is asked by
    markers, the pixel; "" where no arrow fits.
    """

    engine: Engine
    layout: ImageLayout
    camera: Camera
    unified: Camera
    asked: Protocol
    meant: str = "distance"
    spread: bool = False
    texts: dict[tuple, str] = dataclasses.field(default_factory=dict)
    trees: dict[tuple, Numbers] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        check_kind(self.meant, "meant")

    def coords(self, points_px) -> list[list[int]]:
        """The normalised coordinates of pixels [N, 2] of the photo."""
        size = self.unified.width, self.unified.height
        return normalize_points(self.camera.map_points(points_px, self.unified), size, self.asked.coord_range).tolist()

    def questions(self, points_px) -> list[str]:
        """What is asked about pixels [N, 2] of the photo."""
        return [depth.question(x, y, self.asked) for x, y in self.coords(points_px)]

    def answers(self, points_px) -> list[str]:
        """The texts of the answers about pixels [N, 2] of the photo."""
        keys = self._keys(points_px)
        new = [key for key in dict.fromkeys(keys) if key not in self.texts]
        if self.asked.marker:
            for key in new:
                self._by_marker(*key)
        elif new:
            self._answer(new, self.layout)
        return [self.texts[key] for key in keys]

    def numbers(self, points_px) -> list[Numbers]:
        """The trees of the answers about pixels [N, 2] of the photo, which have been asked about with `spread`."""
        return [self.trees[key] for key in self._keys(points_px)]

    def metres(self, points_px) -> np.ndarray:
        """Distance to the camera centre at pixels [N, 2], float64 [N]; NaN where the answer is no length above 0."""
        return self.distances(points_px, [self._length(text) for text in self.answers(points_px)])

    def distances(self, points_px, lengths) -> np.ndarray:
        """The model's lengths [N] as distances to the camera centre."""
        lengths = np.asarray(lengths, np.float64)
        return self.camera.distance_from_z(points_px, lengths) if self.meant == "z" else lengths

    def _keys(self, points_px) -> list[tuple]:
        questions = self.questions(points_px)
        if not self.asked.marker:
            return [(question,) for question in questions]
        shown = self.camera.map_points(points_px, self.unified).tolist()
        return [(question, *pixel) for question, pixel in zip(questions, shown)]

    def _by_marker(self, question: str, x: int, y: int) -> None:
        """Asks about an image of its own with an arrow at its pixel, where one fits."""
        key = question, x, y
        self.texts[key], self.trees[key] = "", Numbers()
        if marker.fits(np.array([[x, y]]), *self.layout.size)[0]:
            self._answer([key], dataclasses.replace(self.layout, marker=(x, y)))

    def _answer(self, keys: list[tuple], layout: ImageLayout) -> None:
        """Asks the questions of these keys about one image."""
        asked = [(layout,)], [[key[0] for key in keys]]
        if not self.spread:
            self.texts |= zip(keys, self.engine.answer(*asked)[0], strict=True)
            return
        for key, found in zip(keys, self.engine.explore(*asked)[0], strict=True):
            self.texts[key], self.trees[key] = found

    def _length(self, text: str) -> float:
        value = tasks.get("depth").parse(text)
        return value if value and value > 0 else np.nan
