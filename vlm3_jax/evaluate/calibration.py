"""How far a model's spread can be trusted: factors learnt on half of the held-out records, looked at on the other."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from vlm3_jax import tasks
from vlm3_jax.errors import UserError
from vlm3_jax.evaluate.items import Questions
from vlm3_jax.evaluate.predictions import rows
from vlm3_jax.evaluate.spreads import told
from vlm3_jax.infer.engine import Engine
from vlm3_jax.infer.spread import LEVELS, Calibration, Moments, moments
from vlm3_jax.infer.tree import Numbers
from vlm3_jax.tasks.depth import DELTA

# Fewer answers of a half say little about its tails.
FEWEST = 40


@dataclasses.dataclass(frozen=True, eq=False)
class Held:
    """Answers to held-out depth questions: the truth and the greedy length in metres (NaN: unread), their trees, the
    number of the record each is about, and the rows of `predictions.jsonl`; N each.
    """

    truth_m: np.ndarray
    greedy_m: np.ndarray
    numbers: list[Numbers]
    record: np.ndarray
    rows: list[dict]


def answer(engine: Engine, asked: Sequence[Questions], advance: Callable[[], None] = lambda: None) -> Held:
    """Asks all depth questions and explores the tree of each answer; `advance` is called after each record."""
    values: list[tuple[float, float, int]] = []
    numbers: list[Numbers] = []
    said: list[dict] = []
    task = tasks.get("depth")
    for place, questions in enumerate(asked):
        texts = [example.question for example in questions.examples]
        (found,) = engine.explore([questions.images], [texts])
        numbers += [one.numbers for one in found]
        said += rows(questions, "model", [one.text for one in found])
        for one, example in zip(found, questions.examples, strict=True):
            length = task.parse(one.text)
            values.append((example.target["depth_m"], length if length and length > 0 else np.nan, place))
        advance()
    truth, greedy, record = (np.array(column) for column in zip(*values)) if values else (np.zeros(0),) * 3
    return Held(truth, greedy, numbers, record, said)


@dataclasses.dataclass(frozen=True, eq=False)
class Reliability:
    """What was learnt (`calibration`), and the share of truths of the other half's intervals by level.

    `observed` [levels] of the calibrated intervals, `raw` of those of a normal distribution with the model's own
    deviation; `width` [levels]: the middle one's upper end over its median. `accuracy`: delta1 and mean |p - g| / g by
    what is taken for the answer, over the `questions` of that half with a number; `unread`: those without in all.
    `rows`: predictions of that half with what their spread tells (`evaluate.spreads`), for `vlm3 report`.
    """

    calibration: Calibration
    observed: np.ndarray
    raw: np.ndarray
    width: np.ndarray
    accuracy: dict[str, tuple[float, float]]
    questions: int
    unread: int
    rows: list[dict]

    def lines(self) -> list[str]:
        """As text."""
        lines = [
            f"{self.calibration.count:,} answers to learn from, {self.questions:,} of other records to look at, "
            f"{self.unread:,} without a number",
            "level   calibrated   model's own   half-width x",
        ]
        for level, observed, raw, width in zip(self.calibration.levels, self.observed, self.raw, self.width):
            lines.append(f"{level:5.0%}   {observed:10.1%}   {raw:11.1%}   {width:12.2f}")
        lines.append("taken as the answer:  delta1   |p - g| / g")
        lines += [f"{name:>19}  {delta:7.1%}   {error:11.3f}" for name, (delta, error) in self.accuracy.items()]
        return lines


def reliability(held: Held, source: str, levels: Sequence[float] = LEVELS) -> Reliability:
    """Learns from the records of even number, looks at the others. UserError if there are too few answers."""
    found = moments(held.numbers)
    known = np.isfinite(found.median)
    first, second = known & (held.record % 2 == 0), known & (held.record % 2 == 1)
    if min(first.sum(), second.sum()) < FEWEST:
        raise UserError(
            f"{source}: {first.sum()} and {second.sum()} answers with a number in the two halves; {FEWEST} are needed "
            "in each: take more records, or a model that answers"
        )
    score = _score(found, held.truth_m)
    factors = tuple(_quantile(score[first], level) for level in levels)
    calibration = Calibration(tuple(levels), factors, int(first.sum()), source)
    beside = told(held.numbers, calibration)
    reach = np.exp(np.array(factors)[:, None] * found.log_deviation[second])
    return Reliability(
        calibration,
        observed=np.array([(score[second] <= factor).mean() for factor in factors]),
        raw=np.array([(score[second] <= _normal(level)).mean() for level in levels]),
        width=np.median(reach, 1),
        accuracy={
            name: _accuracy(values[second], held.truth_m[second])
            for name, values in (("greedy", held.greedy_m), ("expected", found.expected), ("median", found.median))
        },
        questions=int(second.sum()),
        unread=int((~known).sum()),
        rows=[held.rows[n] | beside[n] for n in np.flatnonzero(second)],
    )


def picture(found: Reliability) -> bytes:
    """PNG: the share of truths inside against the level that was promised."""
    from vlm3_jax.formats import optional

    optional.module("matplotlib", "demo")
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="#999999", lw=1, ls="--", label="as promised")
    axes.plot(found.calibration.levels, found.raw, "o-", color="#d7191c", label="the model's own deviation")
    axes.plot(found.calibration.levels, found.observed, "o-", color="#2c3caa", label="calibrated on other scenes")
    axes.set(xlim=(0.4, 1), ylim=(0, 1), xlabel="level of the interval", ylabel="share of true depths inside")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    axes.grid(color="#e5e5e5")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _score(found: Moments, truth_m) -> np.ndarray:
    """How many log-deviations the truth is away from the median."""
    return np.abs(np.log(truth_m) - np.log(found.median)) / found.log_deviation


def _quantile(scores: np.ndarray, level: float) -> float:
    """The conformal quantile: with n scores the ceil((n + 1) level)-th smallest."""
    place = int(np.ceil((len(scores) + 1) * level)) - 1
    return float(np.sort(scores)[min(place, len(scores) - 1)])


def _normal(level: float) -> float:
    """How many deviations a normal distribution's middle part of this probability reaches to each side."""
    import statistics

    return statistics.NormalDist().inv_cdf((1 + level) / 2)


def _accuracy(answers, truth) -> tuple[float, float]:
    """(delta1, mean |p - g| / g of those that are read)."""
    read = np.isfinite(answers)
    ratio = np.where(read, answers, 1.0) / truth
    right = read & (np.maximum(ratio, 1 / ratio) < DELTA)
    return float(right.mean()), float(np.abs(ratio[read] - 1).mean()) if read.any() else float("nan")
