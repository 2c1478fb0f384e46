"""Time by kind, compilations with their reasons, and the profiled window."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm3_jax.errors import UserError
from vlm3_jax.train.goodput import KINDS, Compilations, Goodput
from vlm3_jax.train.profile import Profile


def slow_to_compile(state, batch):
    for _ in range(60):
        state = jnp.sin(state) @ batch
    return state


def test_a_second_compilation_is_told_with_its_reason(capfd):
    with Compilations() as compilations:
        function = jax.jit(slow_to_compile)
        function(np.ones((2, 3)), np.ones((3, 3)))
        first, count = compilations.news(), compilations.count
        function(np.ones((2, 3)), np.ones((3, 3)))
        assert (compilations.count, compilations.news()) == (count, [])
        function(np.ones((4, 3)), np.ones((3, 3)))
        (line,) = compilations.news()
    assert all("its first call" in one for one in first)
    assert line.startswith("compiled slow_to_compile in ")
    assert "f32[4,3]" in line
    assert "f32[2,3]" in line
    assert compilations.count > count
    assert "CACHE MISS" not in capfd.readouterr().err
    after = compilations.count
    jax.jit(lambda x: x * 3)(np.ones(7))
    assert compilations.count == after


def test_time_is_split_by_kind():
    with Compilations() as compilations:
        goodput = Goodput(compilations)
        with goodput.spent_on("wait"):
            time.sleep(0.2)
        with goodput.spent_on("evaluate"):
            jax.jit(slow_to_compile)(np.ones((5, 3)), np.ones((3, 3))).block_until_ready()
        time.sleep(0.1)
        row = goodput.row()
    assert row["time/wait"] == pytest.approx(0.2, abs=0.1)
    # Compiling is no part of what it happened in.
    assert row["time/compile"] > row["time/evaluate"]
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


@pytest.mark.parametrize("window", ["5", "5:", "7:3", "a:b", "0:4"])
def test_a_wrong_window_is_refused(window, tmp_path):
    with pytest.raises(UserError, match=r"train\.profile"):
        Profile(window, tmp_path)
