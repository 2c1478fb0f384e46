"""Time by kind, compilations, and the profiled window."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm3_jax.train.goodput import KINDS, Compilations, Goodput
from vlm3_jax.train.profile import Profile


def slow_to_compile(state, batch):
    for _ in range(60):
        state = jnp.sin(state) @ batch
    return state


def test_what_is_compiled_is_counted(capfd):
    """Once for each type of arguments; nothing is heard once it is closed, and nothing is printed."""
    with Compilations() as compilations:
        function = jax.jit(slow_to_compile)
        counts, seconds = [], []
        for rows in (2, 2, 4):
            function(np.ones((rows, 3)), np.ones((3, 3)))
            counts.append(compilations.count)
            seconds.append(compilations.seconds)
    assert 0 < counts[0] == counts[1] < counts[2]
    assert 0 < seconds[0] == seconds[1] < seconds[2]
    jax.jit(lambda x: x * 3)(np.ones(7))
    assert compilations.count == counts[2]
    assert capfd.readouterr() == ("", "")


def test_time_is_split_by_kind():
    with Compilations() as compilations:
        goodput = Goodput(compilations)
        # Measured from outside too: a busy machine may take any time for it.
        at = [time.perf_counter()]
        with goodput.spent_on("wait"):
            time.sleep(0.2)
        at.append(time.perf_counter())
        with goodput.spent_on("evaluate"):
            jax.jit(slow_to_compile)(np.ones((5, 3)), np.ones((3, 3))).block_until_ready()
        at.append(time.perf_counter())
        time.sleep(0.1)
        row = goodput.row()
    assert 0.2 <= row["time/wait"] <= at[1] - at[0]
    # Compiling is no part of what it happened in.
    assert row["time/compile"] > 0
    assert row["time/evaluate"] <= max(0, at[2] - at[1] - row["time/compile"])
    assert row["time/step"] >= 0.1
    times = [row[f"time/{kind}"] for kind in (*KINDS, "step")]
    assert row["goodput"] == pytest.approx(row["time/step"] / sum(times))


def test_a_profile_holds_the_steps_of_its_window(tmp_path):
    profile = Profile("2:3", tmp_path / "profile")
    ended = []
    for step in range(1, 5):
        profile.before(step)
        ended.append(profile.after(step, jnp.ones(3) * step))
    assert ended == [False, False, True, False]
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert not Profile("", tmp_path / "none").active
