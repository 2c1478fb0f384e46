"""The numbers of a window where hosts share rows."""

import jax
import pytest

from vlm3_jax.model.flops import Lengths
from vlm3_jax.train import window as windows


def test_rates_are_of_the_share_of_rows(monkeypatch):
    """Two of four rows here: the whole batch is twice what this host holds, whichever devices are its own."""
    clock = iter([10.0, 12.0, 12.0])
    monkeypatch.setattr(windows.time, "perf_counter", lambda: next(clock))
    window = windows.Window({}, peak=50.0, share=0.5)
    window.add(7, Lengths(600, 800, 9, 0.0, 0), 300.0, {"wait_s": 0.5}, None)
    row = window.summary()
    devices = jax.device_count()
    assert row["samples_per_s"] == pytest.approx(7 / 2)
    assert row["tokens_per_s_device"] == pytest.approx(2 * 600 / 2 / devices)
    assert row["patches_per_s_device"] == pytest.approx(2 * 800 / 2 / devices)
    assert row["mfu"] == pytest.approx(2 * 300 / 2 / devices / 50)
    assert row["data_wait"] == pytest.approx(0.25)
