"""Metric depth of single pixels. Prompts, parsing and delta1 as the VLM3 release and DepthLM have them."""

import numpy as np

from vlm3_jax import marker
from vlm3_jax.camera import normalize_points
from vlm3_jax.errors import BadRecord
from vlm3_jax.records import DepthPoints, Record
from vlm3_jax.tasks import lengths, measures, release_rules
from vlm3_jax.tasks.base import Example, Task
from vlm3_jax.tasks.metrics import best_ratio_constant, mean_or_nan
from vlm3_jax.tasks.protocol import Protocol

DELTA = 1.25
# Answers further off than by this factor are all alike bad.
WORST_RATIO = 10

_RELEASE_QUESTION = (
    "Given this image, how far is the point at coordinates ({x}, {y}) from the camera? The coordinates are in "
    "normalised [0, {R}] format relative to image width and height. Output the thinking process in <think> </think> "
    "and final answer (the meter number only, without the unit) in <answer> </answer> tags."
)
_RELEASE_ANSWER = (
    "<think> The point is around {d:.2f} meters away from the camera. </think>\n\n<answer> {d:.2f} </answer>"
)
# DepthLM (arXiv 2509.25413), which draws an arrow into the image.
_MARKER_QUESTION = (
    "Given this image, how far is the point pointed by the red arrow from the camera? Output the thinking process in "
    "<think> </think> and final answer (the meter number only, without the unit) in <answer> </answer> tags."
)
_PAPER_QUESTION = "How far is the pixel at ({x}, {y}) from the camera? Both x and y are normalized to between [0, {R})."


def question(x: int, y: int, protocol: Protocol) -> str:
    """How far is the point at these normalised coordinates, or under the arrow, in the protocol's words."""
    R = protocol.coord_range
    if protocol.marker:
        return "d" if protocol.wording == "short" else _MARKER_QUESTION
    if protocol.wording == "short":
        digits = len(str(R - 1))
        return f"d{x:0{digits}d},{y:0{digits}d}"
    return (_PAPER_QUESTION if protocol.wording == "paper" else _RELEASE_QUESTION).format(x=x, y=y, R=R)


class DepthTask(Task):
    """How far is this pixel from the camera, in metres; parsed answers are floats."""

    name = "depth"
    headline = "delta1"
    higher_is_better = True
    draws = True
    target_fields = {"depth": {"depth_m": "positive"}}  # noqa: RUF012
    answer_forms = {"depth": "number"}  # noqa: RUF012

    def examples(
        self, record: Record, rng: np.random.Generator, protocol: Protocol, vary: bool = False
    ) -> list[Example]:
        """Up to `protocol.questions` points, without replacement, of one view drawn from those with labels.

        The label keeps its source's kind (distance or z-depth), named in `target["depth_kind"]`. Points outside the
        image (after a crop) are not asked, nor those whose rounded answer would itself count as wrong (below 0.03 m,
        in the short wording some below 0.3 m), nor with markers those too close to the border for one. BadRecord if a
        depth is not a positive number.
        """
        for choice in rng.permutation(len(record.depth)):
            labels = record.depth[choice]
            usable = _usable(record, labels, protocol)
            if len(usable):
                chosen = rng.permutation(usable)[: protocol.questions]
                return _ask(record, labels, chosen, protocol)
        return []

    def frozen(self, record: Record, protocol: Protocol) -> list[Example]:
        """Every point of every label."""
        return [
            example
            for labels in record.depth
            for example in _ask(record, labels, np.arange(len(labels.points_px)), protocol)
        ]

    def read(self, text: str, target=None) -> float | None:
        """Metres: the length in `<answer>`, else in the text around it; a bare number is metres."""
        return measures.read(text, lengths.metres)

    def read_as_release(self, text: str, target=None) -> float | None:
        """The number inside `<answer>`, else the first number before "meters" or "m", else a bare number."""
        return release_rules.depth(text)

    def item_scores(self, parsed, targets) -> np.ndarray:
        """1 where max(p/g, g/p) < 1.25; a failure or an answer of zero or less is 0 (DepthLM's rule)."""
        truth = _truth(targets)
        answer = np.array([np.nan if p is None else p for p in parsed], np.float64)
        positive = answer > 0
        answer = np.where(positive, answer, 1.0)
        return (positive & (np.maximum(answer / truth, truth / answer) < DELTA)).astype(np.float64)

    def item_errors(self, parsed, targets) -> np.ndarray:
        """|ln(p / g)|, at most that of ten times too much, which is also what a failure has."""
        answer = np.array([0.0 if p is None else p for p in parsed], np.float64)
        ratio = np.clip(answer / _truth(targets), 1 / WORST_RATIO, WORST_RATIO)
        return np.where(answer > 0, np.abs(np.log(ratio)), np.log(WORST_RATIO))

    def metrics(self, parsed, targets) -> dict[str, float]:
        """delta1 over all points, delta1_parsed over the parsed ones (the release notebook's rule), AbsRel, scale bias.

        `abs_rel` = mean |p - g| / g and `scale_bias` = median p / g are over parsed answers (NaN if there is none).
        """
        scores = self.item_scores(parsed, targets)
        read = np.array([p is not None for p in parsed], bool)
        ratio = np.array([p for p in parsed if p is not None], np.float64) / _truth(targets)[read]
        return {
            "delta1": mean_or_nan(scores),
            "delta1_parsed": mean_or_nan(scores[read]),
            "abs_rel": mean_or_nan(np.abs(ratio - 1)),
            "scale_bias": float(np.median(ratio)) if len(ratio) else float("nan"),
            "count": len(targets),
            "parse_failures": int((~read).sum()),
        }

    def constant_answers(self, targets) -> list[float]:
        """The one depth that has the highest delta1 over these targets."""
        if not targets:
            return []
        return [best_ratio_constant(_truth(targets), 1 / DELTA, DELTA)] * len(targets)


def _truth(targets) -> np.ndarray:
    return np.array([t["depth_m"] for t in targets], np.float64)


def _usable(record: Record, labels: DepthPoints, protocol: Protocol) -> np.ndarray:
    """Indices of the points that can be asked."""
    depth = np.asarray(labels.depth_m, np.float64)
    if not (depth > 0).all() or not (depth < np.inf).all():
        raise BadRecord(f"{record.id}: depth labels of view {labels.view} must be positive and finite")
    camera = record.views[labels.view].camera
    x, y = np.asarray(labels.points_px).reshape(-1, 2).T
    inside = (x >= 0) & (y >= 0) & (x < camera.width) & (y < camera.height)
    if protocol.marker:
        inside &= marker.fits(labels.points_px, camera.width, camera.height)
    written = np.round(depth, 1 if protocol.wording == "short" else 2)
    return np.flatnonzero(inside & (written < DELTA * depth) & (depth < DELTA * written))


def _ask(record: Record, labels: DepthPoints, chosen, protocol: Protocol) -> list[Example]:
    R = protocol.coord_range
    camera = record.views[labels.view].camera
    points = np.asarray(labels.points_px)[chosen]
    coords = normalize_points(points, (camera.width, camera.height), R).tolist()
    examples = []
    answer = {"short": "{d:.1f}", "paper": "{d:.2f} meters", "release": _RELEASE_ANSWER}[protocol.wording]
    for point, (x, y), d in zip(points.tolist(), coords, np.asarray(labels.depth_m, np.float64)[chosen].tolist()):
        target = {"kind": "depth", "depth_m": d, "depth_kind": labels.kind, "coords": [x, y], "coord_range": R}
        shown = tuple(map(int, point)) if protocol.marker else None
        examples.append(Example(question(x, y, protocol), answer.format(d=d), target, (labels.view,), marker=shown))
    return examples
