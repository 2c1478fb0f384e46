"""What calibration learns from answers whose errors are known, and the command on the tiny model."""

import dataclasses

import numpy as np
import pytest

from vlm3_jax.errors import UserError
from vlm3_jax.evaluate.calibration import FEWEST, Held, picture, reliability
from vlm3_jax.infer.tree import Numbers

COUNT = 4000


@pytest.fixture
def held(rng) -> Held:
    """A model that is three times too sure of itself, of ten questions a record."""
    truth = rng.uniform(1, 10, COUNT)
    claimed = rng.uniform(0.03, 0.1, COUNT)
    middle = truth * np.exp(3 * claimed * rng.standard_normal(COUNT))
    steps = np.exp(np.array([-1.5, -0.5, 0.5, 1.5]) * claimed[:, None])
    shares = np.array([0.1, 0.4, 0.4, 0.1])
    numbers = [Numbers(tuple(f"{v:.3f}" for v in row), shares) for row in middle[:, None] * steps]
    return Held(truth, middle, numbers, np.arange(COUNT) // 10, [{"id": str(k)} for k in range(COUNT)])


def test_calibrated_intervals_hold_the_truth_as_often_as_they_say(held):
    found = reliability(held, "a set")
    levels = found.calibration.levels
    np.testing.assert_allclose(found.observed, levels, atol=0.03)
    assert (found.raw < np.array(levels) - 0.2).all()
    assert (np.diff(found.width) > 0).all()
    assert found.calibration.count == found.questions == COUNT // 2
    assert found.calibration.source == "a set"
    assert set(found.accuracy) == {"greedy", "expected", "median"}
    assert len(found.lines()) == 2 + len(levels) + 1 + 3
    # Errors are as large as the spreads that the rows tell, about.
    rows = {int(row["id"]): row["spread"] for row in found.rows}
    assert len(rows) == COUNT // 2
    errors = [abs(held.greedy_m[k] - held.truth_m[k]) / spread for k, spread in rows.items()]
    assert 0.6 < np.mean(np.array(errors) < 1) < 0.76
    assert picture(found).startswith(b"\x89PNG")


def test_records_are_not_on_both_sides(held):
    """Half of the records teach and the other half, spoilt here, is looked at."""
    odd = held.record % 2 == 1
    spoilt = dataclasses.replace(held, truth_m=np.where(odd, held.truth_m * 50, held.truth_m))
    found = reliability(spoilt, "a set")
    assert found.calibration.factors == reliability(held, "a set").calibration.factors
    assert found.observed.max() < 0.01


def test_unread_answers_are_counted(held):
    numbers = [Numbers() if k % 4 == 0 else one for k, one in enumerate(held.numbers)]
    found = reliability(dataclasses.replace(held, numbers=numbers), "a set")
    assert found.unread == COUNT // 4
    few = [Numbers()] * (COUNT - FEWEST) + held.numbers[-FEWEST:]
    with pytest.raises(
        UserError, match=f"a set: 20 and 20 answers with a number in the two halves; {FEWEST} are needed"
    ):
        reliability(dataclasses.replace(held, numbers=few), "a set")
