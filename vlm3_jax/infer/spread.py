"""From the probabilities of a depth's digits to its expected value, its spread and an interval that holds the truth.

A model's own spread is seldom as wide as its errors. So an interval is the median times or over exp(factor x s), s
being the deviation of the logarithm; the factor of a level is learnt on held-out data (split conformal prediction; Vovk
et al., 2005), stands in `spread.json` beside the model, and is right whatever the errors are distributed like.
"""

import dataclasses
import json
from collections.abc import Sequence

import numpy as np

from vlm3_jax import storage
from vlm3_jax.answers.values import Spread
from vlm3_jax.errors import UserError
from vlm3_jax.files import Fields, write_text
from vlm3_jax.infer.tree import Numbers

FILE = "spread.json"
VERSION = 1
LEVELS = (0.5, 0.68, 0.8, 0.9, 0.95)
LEVEL = 0.9


@dataclasses.dataclass(frozen=True)
class Calibration:
    """`factors`: of each of `levels` (rising) how many log-deviations the interval reaches to both sides of the median.

    `count`: answers that it was learnt from; `source`: what they were about.
    """

    levels: tuple[float, ...]
    factors: tuple[float, ...]
    count: int
    source: str

    def factor(self, level: float) -> float:
        """Of one of the levels. UserError for another one."""
        if level not in self.levels:
            known = ", ".join(map(str, self.levels))
            raise UserError(f"spread: level {level:g} is not among those calibrated, {known}")
        return self.factors[self.levels.index(level)]

    def write(self, folder) -> storage.AnyPath:
        """Writes `spread.json` into a model's folder."""
        path = storage.path(folder) / FILE
        write_text(path, json.dumps({"version": VERSION} | dataclasses.asdict(self), indent=1) + "\n")
        return path

    @classmethod
    def read(cls, folder) -> "Calibration | None":
        """What stands in a model's folder; None if nothing does. UserError if it is not as it should be."""
        path = storage.path(folder) / FILE
        if not path.is_file():
            return None
        fields = Fields.read(path)
        fields.require("version", VERSION, None)
        levels = fields.numbers("levels", above=0)
        factors = fields.numbers("factors", len(levels), above=0)
        return cls(levels, factors, fields.integer("count"), fields.text("source"))


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Float64 [N] each, NaN where there is no number: of the values explored, in the unit of the numbers.

    `log_deviation`: of the logarithm. The width of the last digit is part of both deviations.
    """

    expected: np.ndarray
    median: np.ndarray
    deviation: np.ndarray
    log_deviation: np.ndarray
    covered: np.ndarray


def moments(numbers: Sequence[Numbers]) -> Moments:
    """Of the trees of N answers; values of 0 or less, which no depth has, are left out."""
    rows = np.full((5, len(numbers)), np.nan)
    for n, found in enumerate(numbers):
        values, weights = found.values, found.probabilities
        good = values > 0
        values, weights = values[good], weights[good]
        if not weights.sum() > 0:
            continue
        share = weights / weights.sum()
        expected = float(share @ values)
        # Any value within a step of the last digit is written the same.
        rounding = found.unit**2 / 12
        deviation = np.sqrt(share @ (values - expected) ** 2 + rounding)
        order = np.argsort(values)
        median = values[order][np.searchsorted(np.cumsum(share[order]), 0.5 - 1e-9)]
        logs = np.log(values)
        log_deviation = np.sqrt(share @ (logs - share @ logs) ** 2 + rounding / median**2)
        rows[:, n] = expected, median, deviation, log_deviation, weights.sum()
    return Moments(*rows)


def spread(numbers: Sequence[Numbers], scale, calibration: Calibration | None, level: float = LEVEL) -> Spread:
    """Of N answers about depth; `scale` [N] makes distances of the model's lengths."""
    found, scale = moments(numbers), np.asarray(scale, np.float64)
    metres = [value * scale for value in (found.expected, found.median, found.deviation)]
    if calibration is None:
        unknown = np.full(len(numbers), np.nan)
        return Spread(*metres, found.covered, unknown, unknown, np.nan)
    reach = np.exp(calibration.factor(level) * found.log_deviation)
    return Spread(*metres, found.covered, metres[1] / reach, metres[1] * reach, level)
