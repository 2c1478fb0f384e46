"""Answers in groups: by true depth, by scene, and by the spread that the model told with them."""

import collections
import dataclasses
import math

import numpy as np

from vlm3_jax.evaluate import statistics
from vlm3_jax.evaluate.scoring import Answers
from vlm3_jax.tasks.depth import DELTA

# Metres between which depths are one group.
EDGES = (0, 0.5, 1, 2, 3, 5, 8, 12, 20, 40, 80, 150, math.inf)
# Of the answers' ratios to the truth.
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# Spreads are judged in at most so many groups of equal size, of no fewer answers than this.
GROUPS, FEWEST = 8, 10


@dataclasses.dataclass(frozen=True)
class DepthBin:
    """Points of `first` to `last` metres: `delta1` with its interval, and of those read AbsRel and ratio quantiles."""

    first: float
    last: float
    middle: float
    points: int
    images: int
    unread: int
    delta1: float
    low: float
    high: float
    abs_rel: float
    ratios: tuple[float, ...] | None

    @property
    def name(self) -> str:
        """Its range."""
        return f"{self.first:g} to {self.last:g} m" if self.last < math.inf else f"above {self.first:g} m"


@dataclasses.dataclass(frozen=True)
class Scene:
    """The answers about one scene: their mean score with its interval (NaN for a single image or pair)."""

    name: str
    records: int
    answers: int
    unread: int
    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Answers with a spread: of each group its root mean square spread and error (m), from small spreads to large.

    `within`: the shares of truths within one and two spreads of the answer. `sure`: (share kept, AbsRel of these),
    the answers with the smallest relative spreads first. `count` answers had both a value and a spread. `interval`:
    the level of the intervals told, the share of truths in them, and the upper end over the median of the middle one.
    `taken`: (name, delta1, AbsRel) of what may be taken for the answer, where rows tell it.
    """

    spread_m: np.ndarray
    error_m: np.ndarray
    within: tuple[float, float]
    sure: tuple[tuple[float, float], ...]
    count: int
    interval: tuple[float, float, float] | None = None
    taken: tuple[tuple[str, float, float], ...] = ()


def depths(answers: Answers) -> tuple[np.ndarray, np.ndarray]:
    """True and predicted depth (m) [N]; NaN where the answer cannot be read."""
    predicted = np.array([np.nan if depth is None else depth for depth in answers.parsed], float)
    return np.array([target["depth_m"] for target in answers.targets], float), predicted


def by_depth(answers: Answers) -> list[DepthBin]:
    """The groups that have points, from near to far."""
    true_m, predicted_m = depths(answers)
    group, records = np.digitize(true_m, EDGES) - 1, np.array(answers.records, object)
    return [_bin(number, group == number, true_m, predicted_m, answers.scores, records) for number in np.unique(group)]


def _bin(number: int, inside: np.ndarray, true_m, predicted_m, scores, records) -> DepthBin:
    true_m, predicted_m, scores, records = (a[inside] for a in (true_m, predicted_m, scores, records))
    ratio = (predicted_m / true_m)[~np.isnan(predicted_m)]
    return DepthBin(
        EDGES[number],
        EDGES[number + 1],
        float(np.exp(np.log(true_m).mean())),
        len(true_m),
        len(set(records)),
        int(np.isnan(predicted_m).sum()),
        statistics.mean(scores),
        *statistics.bootstrap_interval(scores, records),
        abs_rel=float(np.abs(ratio - 1).mean()) if len(ratio) else math.nan,
        ratios=tuple(np.quantile(ratio, QUANTILES)) if len(ratio) else None,
    )


def by_scene(answers: Answers, higher_is_better: bool) -> list[Scene]:
    """From the worst scene to the best; [] where nothing tells more than the images do by themselves."""
    places = collections.defaultdict(list)
    for place, row in enumerate(answers.rows):
        places[_scene(row)].append(place)
    records = set(answers.records)
    if len(places) < 2 or len(places) == len(records):
        return []
    scenes = []
    for name, at in places.items():
        of_scene, scores = [answers.records[i] for i in at], answers.scores[at]
        images = len(set(of_scene))
        ends = statistics.bootstrap_interval(scores, of_scene)
        unread = sum(answers.parsed[i] is None for i in at)
        scenes.append(Scene(name, images, len(at), unread, statistics.mean(scores), *ends))
    scored = [scene for scene in scenes if not math.isnan(scene.value)]
    return sorted(scored, key=lambda scene: scene.value if higher_is_better else -scene.value)


def _scene(row) -> str:
    """As the data say, else what stands before the last "/" of the record's id."""
    return row.get("scene") or row["record"].rpartition("/")[0] or row["record"]


def reliability(answers: Answers) -> Reliability | None:
    """Of the rows with a `spread` (the standard deviation of the answer, m); None if they are too few."""
    true_m, predicted_m = depths(answers)
    told = _told(answers, "spread")
    use = (predicted_m > 0) & (told > 0)
    if use.sum() < 2 * FEWEST:
        return None
    interval, taken = _interval(answers, true_m), _taken(answers, true_m, predicted_m)
    true_m, predicted_m, told = true_m[use], predicted_m[use], told[use]
    error = np.abs(predicted_m - true_m)
    order = np.argsort(told, kind="stable")
    groups = np.array_split(order, min(GROUPS, len(order) // FEWEST))
    # A far answer would seem surer, by being far off: where the median is told, the spread is measured by that.
    median = _told(answers, "median_m")[use]
    surest = np.argsort(told / np.where(median > 0, median, predicted_m), kind="stable")
    wrong = error / true_m
    return Reliability(
        np.array([_rms(told[group]) for group in groups]),
        np.array([_rms(error[group]) for group in groups]),
        (float((error <= told).mean()), float((error <= 2 * told).mean())),
        tuple((k, float(wrong[surest[: max(1, round(k * len(surest)))]].mean())) for k in (0.25, 0.5, 0.75, 1.0)),
        len(order),
        interval,
        taken,
    )


def _interval(answers: Answers, true_m: np.ndarray) -> tuple[float, float, float] | None:
    """Of the rows with an interval; None if they are too few, or of several levels."""
    low, high, level, median = (_told(answers, name) for name in ("low_m", "high_m", "level", "median_m"))
    use = (low > 0) & (high > 0) & (median > 0)
    if use.sum() < 2 * FEWEST or len(set(level[use])) > 1:
        return None
    held = (low <= true_m) & (true_m <= high)
    return float(level[use][0]), float(held[use].mean()), float(np.median(high[use] / median[use]))


def _taken(answers: Answers, true_m: np.ndarray, predicted_m: np.ndarray) -> tuple[tuple[str, float, float], ...]:
    """Over the rows that have all of them."""
    values = {"greedy": predicted_m, "median": _told(answers, "median_m"), "expected": _told(answers, "expected_m")}
    use = np.all([value > 0 for value in values.values()], 0)
    if use.sum() < 2 * FEWEST:
        return ()
    ratios = {name: value[use] / true_m[use] for name, value in values.items()}
    return tuple(
        (name, float((np.maximum(ratio, 1 / ratio) < DELTA).mean()), float(np.abs(ratio - 1).mean()))
        for name, ratio in ratios.items()
    )


def _told(answers: Answers, name: str) -> np.ndarray:
    """What the rows tell [N]; NaN where they do not."""
    return np.array([_number(row.get(name)) for row in answers.rows], float)


def _number(value) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
