"""The log of a run: how long the rest of it takes."""

import pytest

from vlm3_jax.train.log import seconds_left


@pytest.mark.parametrize(
    ("samples", "max_steps", "seconds"),
    [
        # Of 1,000 samples 900 are done, most of them before a resume: 2 a second now.
        (1000, 0, 50.0),
        # 5 steps of 4 s are left, fewer than all samples would take.
        (1000, 95, 20.0),
        (1000, 1000, 50.0),
        # The last step may hold more samples than were left.
        (890, 0, 0.0),
        (1000, 80, 0.0),
    ],
)
def test_the_rest_at_the_speed_of_the_last_window(samples, max_steps, seconds):
    row = {"step": 90, "samples": 900, "samples_per_s": 2.0, "step_s": 4.0}
    assert seconds_left(row, samples, max_steps) == seconds
