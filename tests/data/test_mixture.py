import collections
import json

import numpy as np
import pytest

from vlm3_jax.data import mixture, plan
from vlm3_jax.data.mixture import Mixture, first_phase, next_phase
from vlm3_jax.errors import UserError

# The published depth mixture (formats section 6), with lengths scaled down.
WEIGHTS = {
    "argoverse": 0.21, "waymo": 0.04, "nuscenes": 0.01, "scannetpp": 0.01, "taskonomy": 0.51, "hm3d": 0.78,
    "matterport": 0.006, "streets": 1.0,
}  # fmt: skip
LENGTHS = dict(zip(WEIGHTS, (1000, 700, 200, 101, 4000, 90_000, 190, 100_000), strict=True))


class Named:
    """What the mixture asks of a component when only draws are made."""

    def __init__(self, name):
        self.name = name


def mix(weights, phases, seed=0):
    return Mixture([Named(name) for name in weights], seed, phases)


@pytest.fixture
def published():
    return mix(WEIGHTS, [first_phase(LENGTHS, WEIGHTS)])


def test_shares_follow_the_weights_in_every_stream(published):
    counts = collections.Counter(published.draw(i).component for i in range(50_000))
    for number, weight in enumerate(WEIGHTS.values()):
        assert counts[number] / 50_000 == pytest.approx(weight / 2.566, abs=0.01 * weight / 2.566 + 1 / 50_000)
    # A stream that takes every 64th draw sees the same mixture; the interleaving itself is periodic.
    stream = collections.Counter(published.draw(i).component for i in range(5, 64 * 5000, 64))
    assert stream[7] / 5000 == pytest.approx(1 / 2.566, abs=0.03)
    even = mix({"a": 1, "b": 1}, [first_phase({"a": 10, "b": 10}, {"a": 1, "b": 1})])
    assert 400 < sum(even.draw(i).component for i in range(0, 2000, 2)) < 600


def test_each_pass_holds_every_record_once(published):
    seen = collections.defaultdict(list)
    for i in range(60_000):
        draw = published.draw(i)
        seen[draw.component, draw.epoch].append(draw.record)
    orders = []
    for (component, epoch), drawn in seen.items():
        assert len(set(drawn)) == len(drawn)
        if (component, epoch + 2) in seen:
            assert sorted(drawn) == list(range(list(LENGTHS.values())[component]))
            orders.append(drawn)
    assert len(orders) > 5
    assert all(order != sorted(order) for order in orders)
    assert seen[0, 0] != seen[0, 1]


def test_draws_are_random_access_and_depend_on_the_seed(published):
    again = mix(WEIGHTS, [first_phase(LENGTHS, WEIGHTS)])
    other = mix(WEIGHTS, [first_phase(LENGTHS, WEIGHTS)], seed=1)
    indices = [9_000_001, 3, 4096, 4095, 77]
    assert [again.draw(i) for i in indices] == [published.draw(i) for i in indices]
    assert [other.draw(i) for i in indices] != [published.draw(i) for i in indices]


def test_a_new_phase_repeats_nothing():
    lengths = {"a": 50_000, "b": 70_000, "c": 30_000}
    names = list(lengths)
    phases = [first_phase(lengths, {"a": 2, "b": 1, "c": 0})]
    seen = set()
    for stop, weights in [(5000, {"a": 1, "c": 1}), (17_000, {"a": 0.3, "b": 3, "c": 1}), (30_000, None)]:
        current = mix(names, phases)
        for i in range(phases[-1].start, stop):
            draw = current.draw(i)
            assert draw not in seen
            seen.add(draw)
        if weights:
            phases.append(next_phase(phases[-1], stop, lengths, weights))
            assert phases[-1].start >= stop
    shares = collections.Counter(current.draw(i).component for i in range(phases[-1].start, phases[-1].start + 20_000))
    assert shares[1] / 20_000 == pytest.approx(3 / 4.3, abs=0.01)
    # What earlier phases drew is left out, no more: a component goes on where it stopped, to within two windows.
    drawn = sum(draw.component == 0 for draw in seen)
    position = phases[-1].offsets["a"] + 0.3 / 4.3 * (30_000 - phases[-1].start)
    assert 0 <= position - drawn < 2 * mixture.WINDOW


def test_phase_survives_saving_and_checks_the_data():
    state = plan.open_state({"b": 10, "a": 20}, {"b": 1, "a": 2}, 3)
    tree = json.loads(json.dumps({**state.to_tree(), "cursors": [3, 4, 11]}, sort_keys=True))
    saved = plan.PlanState.from_tree(tree)
    assert plan.open_state({"b": 10, "a": 20}, {"b": 1, "a": 2}, 3, saved) is saved
    before, after = (mix(["b", "a"], phases) for phases in (state.phases, saved.phases))
    assert [before.draw(i) for i in range(100)] == [after.draw(i) for i in range(100)]
    changed = plan.open_state({"b": 10, "a": 20}, {"b": 1, "a": 3}, 3, saved)
    assert changed.phases[:-1] == saved.phases
    assert changed.cursors.min() >= 11
    assert len(set(changed.cursors)) == 3
    with pytest.raises(UserError, match="'b' has 9 records, and 10 when"):
        plan.open_state({"b": 9, "a": 20}, {"b": 1, "a": 2}, 3, saved)
    with pytest.raises(UserError, match="3 rows a batch and the configuration 4"):
        plan.open_state({"b": 10, "a": 20}, {"b": 1, "a": 2}, 4, saved)
    with pytest.raises(UserError, match="the mixture is empty"):
        plan.open_state({"b": 10}, {"b": 0}, 4)
    with pytest.raises(UserError, match="'a' of the saved run is not in the configuration"):
        mix(["b"], saved.phases)


@pytest.mark.parametrize("length", [1, 2, 1000, mixture.SMALL, mixture.SMALL + 1, 70_001])
def test_permutation(length):
    order = [mixture.permuted(i, length, (3, 4)) for i in range(length)]
    assert np.array_equal(np.sort(order), np.arange(length))
