"""Learning rates against optax's schedules, and the update against optax's AdamW."""

import types

import jax
import numpy as np
import optax
import pytest

from vlm3_jax import config as configs
from vlm3_jax.model import params as parameters
from vlm3_jax.model.config import VLMConfig
from vlm3_jax.train import optimizer as optimizers

TOTAL = 32_000_000
SEEN = np.array([0, 1, 1344, 100_000, 3_199_999, 3_200_000, 5_000_000, 16_000_000, 24_000_001, 31_999_999, TOTAL])


def settings(**changes):
    fields = {"learning_rate": 5.5e-5, "schedule": "cosine", "warmup": 0.1, "final": 0.0, "tail": 0.25}
    return types.SimpleNamespace(**fields | changes)


def rates(opt):
    rate = jax.jit(lambda samples: optimizers.learning_rate(samples, TOTAL, opt))
    return np.array([rate(np.int32(n)) for n in SEEN])


@pytest.mark.parametrize("final", [0.0, 0.05])
def test_cosine_is_that_of_optax(final):
    peak = 5.5e-5
    theirs = optax.warmup_cosine_decay_schedule(0.0, peak, TOTAL // 10, TOTAL, final * peak)
    ours = rates(settings(final=final))
    np.testing.assert_allclose(ours, [theirs(n) for n in SEEN], rtol=1e-5, atol=1e-11)
    assert ours[5] == pytest.approx(peak)
    assert ours[0] == 0
    assert rates(settings(final=final, warmup=0.0))[0] == pytest.approx(peak)


def test_linear_tail_is_that_of_optax():
    peak = 1e-3
    theirs = optax.join_schedules(
        [
            optax.linear_schedule(0.0, peak, TOTAL // 50),
            optax.constant_schedule(peak),
            optax.linear_schedule(peak, 0.02 * peak, TOTAL // 4),
        ],
        [TOTAL // 50, TOTAL * 3 // 4],
    )
    ours = rates(settings(schedule="linear_tail", learning_rate=peak, warmup=0.02, final=0.02))
    np.testing.assert_allclose(ours, [theirs(n) for n in SEEN], rtol=1e-5, atol=1e-10)


def test_constant_warms_up_and_stays():
    ours = rates(settings(schedule="constant"))
    np.testing.assert_allclose(ours, 5.5e-5 * np.minimum(SEEN / (TOTAL // 10), 1.0), rtol=1e-5)


def test_the_rate_stays_at_its_end_beyond_the_last_sample():
    """The last batch may hold more samples than are left."""
    for opt in (settings(final=0.1), settings(schedule="linear_tail", final=0.1)):
        assert float(optimizers.learning_rate(TOTAL + 1000, TOTAL, opt)) == pytest.approx(5.5e-6, rel=1e-5)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_updates_are_those_of_adamw(tiny_model, rng, weight_decay):
    """The rate is applied by the step: three updates times -rate are optax's own clipped AdamW."""
    cfg = VLMConfig.from_dir(tiny_model)
    opt = configs.base().optimizer
    opt.weight_decay, rate = weight_decay, 0.01
    # Only matrices decay, stacked or not; the bias of the vision tower's q, k and v is stored with three axes.
    names = {"text.norm": False, "vision.blocks_0.qkv_bias": False, "text.layers.q_proj": True, "text.embed": True}
    rows = [row for row in parameters.table(cfg) if row.name in names]

    def draw(scale):
        return parameters.nest({row.path: scale * rng.standard_normal(row.shape).astype(np.float32) for row in rows})

    mask = parameters.nest({row.path: names[row.name] for row in rows})
    all_rows = parameters.table
    ours = theirs = draw(1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parameters, "table", lambda cfg: tuple(r for r in all_rows(cfg) if r.name in names))
        mine = optimizers.make(cfg, opt)
    other = optax.chain(
        optax.clip_by_global_norm(0.02), optax.adamw(rate, weight_decay=weight_decay, b2=0.999, mask=mask)
    )
    states = mine.init(ours), other.init(theirs)
    for _ in range(3):
        gradient = draw(0.3)
        updates, first = mine.update(gradient, states[0], ours)
        ours = jax.tree.map(lambda p, u: p - rate * u, ours, updates)
        updates, second = other.update(gradient, states[1], theirs)
        theirs = optax.apply_updates(theirs, updates)
        states = first, second
    for one, two in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-7)
