"""Pixel correspondence between two views: which pixel of the second image shows the same point. Scored as UFM does."""

import numpy as np

from vlm3_jax.camera import normalize_points
from vlm3_jax.records import Record
from vlm3_jax.tasks import measures, release_rules
from vlm3_jax.tasks.base import Example, Task
from vlm3_jax.tasks.correspondence_answers import second_image_pair
from vlm3_jax.tasks.metrics import mean_or_nan
from vlm3_jax.tasks.protocol import Protocol

FRAME = (560, 420)
THRESHOLDS_PX = (1, 2, 5)

# The first is the published question; the release trained on five whose other wordings it does not give.
_QUESTIONS = (
    "Given these two images, what pixel in the second image corresponds to pixel ({x}, {y}) in the first image? "
    "Report the answer as {form}.",
    "Find the pixel of the second image that shows the same point as pixel ({x}, {y}) of the first image. "
    "Report the answer as {form}.",
    "Pixel ({x}, {y}) in the first image is a point on some surface. Where does that point appear in the second image? "
    "Report the answer as {form}.",
    "Where is the point at ({x}, {y}) of the first image located in the second image? Report the answer as {form}.",
    "Match pixel ({x}, {y}) of image one to its pixel in image two. Report the answer as {form}.",
)
_THINK_SUFFIX = ' Please think step by step and follow the format: "<think> [think process] </think>\n\n[answer]".'
_THINK = "<think> The point at ({x}, {y}) in the first image appears at ({u}, {v}) in the second image. </think>\n\n"


def question(x: int, y: int, protocol: Protocol, template: int = 0) -> str:
    """Which pixel of the second image matches these normalised coordinates; template 0 is the published wording."""
    if protocol.wording == "short":
        digits = len(str(protocol.coord_range - 1))
        return f"m{x:0{digits}d},{y:0{digits}d}"
    text = _QUESTIONS[template].format(x=x, y=y, form="(x2, y2)" if protocol.wording == "paper" else "(x, y)")
    return text + (_THINK_SUFFIX if protocol.think and protocol.wording == "release" else "")


class CorrespondenceTask(Task):
    """Where a pixel of view 0 lies in view 1; parsed answers are (x, y) in [0, coord_range)."""

    name = "correspondence"
    headline = "epe"
    higher_is_better = False
    draws = True
    target_fields = {"match": {"coords": "numbers2", "truth": "numbers2", "coord_range": "positive"}}  # noqa: RUF012
    answer_forms = {"match": "numbers2"}  # noqa: RUF012

    def examples(
        self, record: Record, rng: np.random.Generator, protocol: Protocol, vary: bool = False
    ) -> list[Example]:
        """Up to `protocol.questions` matches without replacement, from view 0 to view 1.

        `target`: `coords` asked, `truth` in the same range but not rounded, `coord_range`. Matches that a crop put
        outside either image are not asked.
        """
        if record.matches is None:
            return []
        points = [np.asarray(p).reshape(-1, 2) for p in (record.matches.points0_px, record.matches.points1_px)]
        inside = [((p >= 0) & (p < size)).all(-1) for p, size in zip(points, _sizes(record))]
        chosen = rng.permutation(np.flatnonzero(inside[0] & inside[1]))[: protocol.questions]
        return _ask(record, chosen, protocol, rng if vary else None)

    def frozen(self, record: Record, protocol: Protocol) -> list[Example]:
        """Every match."""
        return [] if record.matches is None else _ask(record, np.arange(len(record.matches.points0_px)), protocol)

    def read(self, text: str, target=None) -> tuple[float, float] | None:
        """The pair of numbers given for the second image (`correspondence_answers`); brackets are optional."""
        query = target and tuple(target.get("coords", ()))
        return measures.read(text, lambda part, _: second_image_pair(part, query))

    def read_as_release(self, text: str, target=None) -> tuple[float, float] | None:
        """The first pair of numbers after the thinking; brackets are optional."""
        return release_rules.pair(text)

    def item_scores(self, parsed, targets) -> np.ndarray:
        """End-point error in pixels of a 560 x 420 frame; a failure has the error of answering the image centre."""
        truth, R = _truth(targets)
        centre = np.repeat(R / 2, 2, axis=1)
        answer = np.array([c if p is None else p for p, c in zip(parsed, centre)], np.float64).reshape(-1, 2)
        return np.linalg.norm((answer - truth) / R * FRAME, axis=-1)

    def metrics(self, parsed, targets) -> dict[str, float]:
        """`epe` = mean error (px) of all queries pooled, and of the parsed ones; shares of all above 1, 2 and 5 px."""
        errors = self.item_scores(parsed, targets)
        read = np.array([p is not None for p in parsed], bool)
        return {
            "epe": mean_or_nan(errors),
            "epe_parsed": mean_or_nan(errors[read]),
            **{f"above_{t}px": mean_or_nan(errors > t) for t in THRESHOLDS_PX},
            "count": len(targets),
            "parse_failures": int((~read).sum()),
        }

    def constant_answers(self, targets) -> list[tuple[float, float]]:
        """The image centre."""
        return [(t["coord_range"] / 2, t["coord_range"] / 2) for t in targets]

    def extra_references(self, targets) -> dict[str, list[tuple[float, float]]]:
        """`copy_query`: the pixel that was asked about, as if the camera had not moved."""
        return {"copy_query": [tuple(t["coords"]) for t in targets]}


def _sizes(record: Record) -> list[tuple[int, int]]:
    return [(view.camera.width, view.camera.height) for view in record.views[:2]]


def _ask(record: Record, chosen, protocol: Protocol, rng: np.random.Generator | None = None) -> list[Example]:
    """Questions about the matches with these numbers, in the published words or in drawn ones."""
    R, sizes = protocol.coord_range, _sizes(record)
    points = [np.asarray(p).reshape(-1, 2)[chosen] for p in (record.matches.points0_px, record.matches.points1_px)]
    coords0, coords1 = (normalize_points(p, s, R).tolist() for p, s in zip(points, sizes))
    truths = (points[1] * (R / np.array(sizes[1]))).tolist()
    examples = []
    for coords, match, truth in zip(coords0, coords1, truths):
        template = 0 if rng is None else int(rng.integers(len(_QUESTIONS)))
        target = {"kind": "match", "coords": coords, "truth": truth, "coord_range": R}
        asked, answer = question(*coords, protocol, template), _answer(coords, match, protocol)
        examples.append(Example(asked, answer, target, (0, 1)))
    return examples


def _truth(targets) -> tuple[np.ndarray, np.ndarray]:
    truth = np.array([t["truth"] for t in targets], np.float64).reshape(-1, 2)
    return truth, np.array([t["coord_range"] for t in targets], np.float64).reshape(-1, 1)


def _answer(coords, match, protocol: Protocol) -> str:
    (x, y), (u, v) = coords, match
    if protocol.wording == "short":
        digits = len(str(protocol.coord_range - 1))
        return f"{u:0{digits}d},{v:0{digits}d}"
    if protocol.wording == "paper":
        return f"The corresponding pixel is ({u}, {v})"
    return (_THINK.format(x=x, y=y, u=u, v=v) if protocol.think else "") + f"({u}, {v})"
