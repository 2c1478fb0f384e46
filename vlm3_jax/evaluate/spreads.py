"""The spread of depths beside their greedy answers, as rows of predictions tell it."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from vlm3_jax.infer.engine import Engine
from vlm3_jax.infer.spread import LEVEL, Calibration, moments, spread
from vlm3_jax.infer.tree import Numbers, TreePlan
from vlm3_jax.processor.image import ImageLayout

TASK = "depth"
# The level that one deviation stands for.
SIGMA = 0.68
# Sums of probabilities differ by rounding from mesh to mesh; their first digits seldom do.
_DIGITS = 4


@dataclasses.dataclass(frozen=True)
class Spreads:
    """Answers of one model with what its probabilities say besides; `calibration`: how far its intervals reach."""

    engine: Engine
    calibration: Calibration | None = None

    @property
    def settings(self) -> dict:
        """What the numbers depend on beside the model."""
        learnt = self.calibration and dataclasses.asdict(self.calibration)
        return {"plan": dataclasses.asdict(TreePlan()), "calibration": learnt}

    def answer(
        self, images: list[tuple[ImageLayout, ...]], questions: list[list[str]]
    ) -> list[list[tuple[str, dict[str, float]]]]:
        """Of each question its answer, and what its row tells besides (`told`)."""
        found = self.engine.explore(images, questions)
        besides = iter(told([one.numbers for row in found for one in row], self.calibration))
        return [[(one.text, next(besides)) for one in row] for row in found]


def told(numbers: Sequence[Numbers], calibration: Calibration | None) -> list[dict[str, float]]:
    """Of each answer (m): its `spread`, `expected_m` and `median_m`; nothing where there is no number.

    With a calibration the spread is how far above the median the upper end of an interval of 68 % is, and `low_m` and
    `high_m` hold the truth with probability `level`; without one it is the deviation.
    """
    found, whole = moments(numbers), spread(numbers, np.ones(len(numbers)), calibration)
    columns = {"spread": found.deviation, "expected_m": found.expected, "median_m": found.median}
    if calibration is not None:
        columns["spread"] = found.median * np.expm1(calibration.factor(SIGMA) * found.log_deviation)
        columns |= {"low_m": whole.low_m, "high_m": whole.high_m, "level": np.full(len(numbers), LEVEL)}
    rows = (dict(zip(columns, values)) for values in zip(*columns.values(), strict=True))
    return [
        {name: float(f"{value:.{_DIGITS}g}") for name, value in row.items()} if np.isfinite(row["median_m"]) else {}
        for row in rows
    ]
