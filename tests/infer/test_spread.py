"""Moments of trees, intervals, and the file that holds what was learnt."""

import numpy as np
import pytest

from vlm3_jax.errors import UserError
from vlm3_jax.infer.spread import FILE, Calibration, moments, spread
from vlm3_jax.infer.tree import Numbers

TREE = Numbers(("2.0", "1.0", "4.0", "0.0"), np.array([0.4, 0.2, 0.2, 0.1]))
NONE = Numbers()
LEARNT = Calibration((0.5, 0.9), (1.0, 2.5), 100, "a set")


def test_moments():
    """0 is no depth; what is left is taken as the whole; a step of the last digit is part of the deviation."""
    found = moments([TREE, NONE])
    assert found.covered[0] == pytest.approx(0.8)
    assert found.expected[0] == pytest.approx((0.4 * 2 + 0.2 + 0.8) / 0.8)
    assert found.median[0] == 2
    variance = (0.4 * 0.25**2 + 0.2 * 1.25**2 + 0.2 * 1.75**2) / 0.8
    assert found.deviation[0] == pytest.approx(np.sqrt(variance + 0.01 / 12))
    logs = np.log([2, 1, 4]) - np.log(2)
    assert found.log_deviation[0] == pytest.approx(np.sqrt(0.25 * (logs[1:] ** 2).sum() + 0.01 / 12 / 4))
    assert all(np.isnan(values[1]) for values in (found.expected, found.median, found.deviation, found.covered))


def test_one_value_alone_is_as_wide_as_its_last_digit():
    found = moments([Numbers(("3.5",), np.array([0.99]))])
    assert found.deviation[0] == pytest.approx(0.1 / np.sqrt(12))


def test_intervals():
    found = spread([TREE, NONE], [1.0, 1.0], LEARNT)
    s = moments([TREE]).log_deviation[0]
    assert (found.low_m[0], found.high_m[0]) == pytest.approx((2 * np.exp(-2.5 * s), 2 * np.exp(2.5 * s)))
    assert found.level == 0.9
    # A model whose lengths are z: the ray's length makes distances of all of them.
    longer = spread([TREE], [1.5], LEARNT)
    for name in ("expected_m", "median_m", "deviation_m", "low_m", "high_m"):
        assert getattr(longer, name)[0] == pytest.approx(1.5 * getattr(found, name)[0])
    assert longer.covered[0] == found.covered[0]
    unknown = spread([TREE], [1.0], None)
    assert np.isnan([unknown.low_m[0], unknown.high_m[0], unknown.level]).all()
    with pytest.raises(UserError, match=r"level 0\.7 is not among those calibrated, 0\.5, 0\.9"):
        spread([TREE], [1.0], LEARNT, 0.7)


def test_the_file(tmp_path):
    assert Calibration.read(tmp_path) is None
    LEARNT.write(tmp_path)
    assert Calibration.read(tmp_path) == LEARNT
    for text, why in [
        ("[]", "expected a JSON object"),
        ('{"version": 2}', "version = 2 is not supported"),
        (
            '{"version": 1, "levels": [0.5], "factors": [1, 2], "count": 3, "source": "x"}',
            "factors must be a list of 1",
        ),
    ]:
        (tmp_path / FILE).write_text(text)
        with pytest.raises(UserError, match=rf"{FILE}: {why}"):
            Calibration.read(tmp_path)
