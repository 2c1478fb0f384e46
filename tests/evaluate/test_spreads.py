"""What rows of predictions tell of a spread, whoever answers and however often they were interrupted."""

import dataclasses
import json

import numpy as np
import pytest
from evaluate_toys import Constant, count, mixed_questions

from vlm3_jax.config import component_config
from vlm3_jax.errors import UserError
from vlm3_jax.evaluate.answering import Share
from vlm3_jax.evaluate.predictions import BESIDES, read_predictions
from vlm3_jax.evaluate.run import evaluate
from vlm3_jax.evaluate.spreads import told
from vlm3_jax.infer.spread import Calibration, moments
from vlm3_jax.infer.tree import Numbers

NUMBERS = [Numbers(("2.0", "1.0", "4.0"), np.array([0.4, 0.2, 0.2])), Numbers(), Numbers(("3.33",), np.ones(1))]
LEARNT = Calibration((0.5, 0.68, 0.9), (0.5, 1.0, 2.5), 100, "a set")


@dataclasses.dataclass
class Telling:
    """In place of an engine: the i-th answer of a call has a spread of i + 1 mm."""

    settings: dict
    calls: int = 0

    def answer(self, images, questions):
        self.calls += 1
        numbers = iter(range(1, 1 + sum(map(len, questions))))
        return [[("2 m", {"spread": next(numbers) / 1000, "median_m": 2.0}) for _ in asked] for asked in questions]


def run(out, spreads, processes=1, asked=None, **fields):
    asked = asked or mixed_questions()
    fields = {"variants": ("model", "blind"), "progress": False, "records_per_call": 4, **fields}
    for process in reversed(range(processes)):
        evaluate(Constant("1 m"), asked, out, share=Share(process, processes), spreads=spreads, **fields)
    return (out / "predictions.jsonl").read_bytes()


def test_depths_seen_as_they_are_have_a_spread(tmp_path):
    """Others are answered as without one, and so are grey images."""
    spreads = Telling({})
    run(tmp_path, spreads)
    for row in read_predictions(tmp_path):
        own = row["task"] == "depth" and row["variant"] == "model"
        assert row["prediction"] == ("2 m" if own else "1 m")
        assert ("spread" in row, "median_m" in row) == (own, own)
    assert spreads.calls > 1


def test_processes_kills_and_the_same_command_again_give_the_same_bytes(tmp_path):
    whole = run(tmp_path / "whole", Telling({}))
    assert run(tmp_path / "three", Telling({}), 3) == whole
    torn = tmp_path / "torn"
    run(torn, Telling({}), 2)
    for path in (torn / "parts").rglob("*.jsonl"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 5])
    again = Telling({})
    assert run(torn, again) == whole
    assert again.calls > 0
    done = Telling({})
    assert run(torn, done) == whole
    assert done.calls == 0
    # Another calibration makes other intervals: all are asked again.
    run(torn, other := Telling({"calibration": {"factors": [2.0]}}))
    assert other.calls > 0


def test_what_rows_tell():
    plain, unread, _ = told(NUMBERS, None)
    found = moments(NUMBERS)
    assert unread == {}
    assert plain["expected_m"] == pytest.approx(found.expected[0], rel=1e-3)
    assert (plain["median_m"], plain["spread"]) == (2.0, pytest.approx(found.deviation[0], rel=1e-3))
    assert set(plain) == {"spread", "expected_m", "median_m"}
    learnt, unread, last = told(NUMBERS, LEARNT)
    assert unread == {}
    assert set(learnt) == set(BESIDES)
    s = found.log_deviation[0]
    ends = learnt["low_m"], learnt["high_m"], learnt["spread"], learnt["level"]
    assert ends == pytest.approx((2 * np.exp(-2.5 * s), 2 * np.exp(2.5 * s), 2 * np.expm1(s), 0.9), rel=1e-3)
    assert len(json.dumps(last["spread"])) <= 9, "rounding would show in further digits"


def test_numbers_of_predictions_are_numbers(tmp_path):
    asked = mixed_questions()
    run(tmp_path, None, asked=asked)
    path = tmp_path / "predictions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 2 * count(asked)
    rows[1]["low_m"] = "near"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"predictions\.jsonl, line 2: low_m must be a number"):
        list(read_predictions(tmp_path))


def test_mistakes(tiny_model, made, tmp_path, fails):
    """A spread is of depth, and of answers."""
    config = tmp_path / "match.py"
    config.write_text(
        "from tests.evaluate.test_spreads import matches\n\n"
        f"def get_config(argument=''):\n    return matches({str(tiny_model)!r}, {str(made)!r})\n"
    )
    why = "--spread: is told of depth, and nothing that is asked is about depth"
    assert fails("eval", f"--config={config}", f"--workdir={tmp_path}", "--spread") == why
    why = "--spread: with --questions nothing is answered"
    assert fails("eval", "--bench=ibims1", "--questions", f"--out={tmp_path}", "--spread") == why


def matches(model, made):
    """A config that asks for matches alone."""
    from tests.support import small_run

    config = small_run(model, f"{made}/records")
    del config.eval.components["depth"]
    config.eval.components.match = component_config(task="correspondence", path=f"{made}/records", protocol="short")
    return config
