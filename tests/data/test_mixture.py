import collections
import json
import threading

import grain
import numpy as np
import pytest

from vlm3_jax.data import mixture, schedule
from vlm3_jax.data.mixture import Mixture, first_phase
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
    stream = collections.Counter(published.draw(i).component for i in range(5, 64 * 2000, 64))
    assert stream[7] / 2000 == pytest.approx(1 / 2.566, abs=0.03)
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
        if (component, epoch + 1) in seen:
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


def test_passes_follow_each_other():
    """Whatever else is drawn: the first draws of a component are its records, each once, and so are the next."""
    table = mix(["a", "b"], [first_phase({"a": 50, "b": 7}, {"a": 3, "b": 1})])
    for component, length in ((0, 50), (1, 7)):
        own = [draw for draw in map(table.draw, range(2000)) if draw.component == component]
        for start in range(0, len(own) - length, length):
            one_pass = own[start : start + length]
            assert sorted(draw.record for draw in one_pass) == list(range(length))
            assert {draw.epoch for draw in one_pass} == {start // length}


def test_parts_are_interleaved_as_grain_does(rng):
    """For weights of all kinds: at the start, where some parts were not drawn yet, and far into a run.

    Grain's integers name the part and how many draws of it came before.
    """
    span, weights = 2**48, [[1.0], [1e-3, 1.0], [1.0, 1e-3, 0.3], [1.0, 1e-15], list(WEIGHTS.values())]
    weights += [(10 ** rng.uniform(-2, 1, n)).tolist() for n in rng.integers(2, 12, 20)]
    for own in weights:
        parts = [grain.MapDataset.range(n * span, (n + 1) * span) for n in range(len(own))]
        mixed = grain.MapDataset.mix(parts, own)
        for first in [0, 1, 4096, *rng.integers(2, 3000, 2).tolist(), *rng.integers(0, 10**12, 2).tolist()]:
            drawn, counts = mixture.interleaved(first, 300, mixture._integers(own))
            for place, part in enumerate(drawn.tolist()):
                assert divmod(mixed[first + place], span) == (part, counts[part]), (own, first, place)
                counts[part] += 1


def test_a_window_is_made_once():
    """Every thread that read made the same window for itself."""
    order = mixture._Order([1.0, 1e-6], (0, 0))
    assert order.counts(3 * 10**6) == [3 * 10**6 - 3, 3]
    together = threading.Barrier(4)

    def read():
        together.wait()
        order[10**12]

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert order._cached.cache_info().misses == 2


def test_a_new_phase_repeats_and_loses_nothing():
    """Streams stop at different places; each finishes the old phase up to the foremost one, then the new one begins."""
    lengths = {"a": 50_000, "b": 70_000, "c": 3000}
    names = list(lengths)
    state = schedule.open_schedule(lengths, {"a": 2, "b": 1, "c": 0}, 4)
    seen = collections.Counter()
    for ends, weights in [
        ([5000, 4401, 4802, 4903], {"a": 1, "c": 1}),
        ([16_000, 17_001, 15_402, 15_003], {"a": 0.3, "b": 3, "c": 1}),
        # A stream that has not caught up with the last change yet.
        ([17_404, 17_401, 17_402, 16_203], {"b": 1, "c": 1}),
        ([30_000, 30_001, 30_002, 30_003], None),
    ]:
        current = mix(names, state.phases)
        cursors = []
        for cursor, end in zip(state.cursors.tolist(), ends, strict=True):
            indices = range(cursor, end, 4)
            seen.update(map(current.draw, indices))
            cursors.append(indices.stop if len(indices) == 0 else indices[-1] + 4)
        state = schedule.Schedule(np.array(cursors), state.phases)
        if weights:
            state = schedule.open_schedule(lengths, weights, 4, state)
            assert state.cursors.tolist() == cursors
            assert state.phases[-1].start == max(cursors)
    assert set(seen.values()) == {1}
    assert len(state.phases) == 4
    # Of every component the records of a pass in their order, up to where its draws have come.
    for component, length in enumerate(lengths.values()):
        drawn = sorted((d.epoch, d.record) for d in seen if d.component == component)
        full = {epoch for epoch, _ in drawn[:-1]} - {drawn[-1][0]}
        for epoch in full:
            assert [record for e, record in drawn if e == epoch] == list(range(length))
    assert len([d for d in seen if d.component == 2]) > 3000
    last = [current.draw(i).component for i in range(state.phases[-1].start, 30_000)]
    shares = collections.Counter(last)
    assert shares[1] / len(last) == pytest.approx(0.5, abs=0.01)


def test_a_component_that_is_gone_leaves_its_draws_out():
    state = schedule.open_schedule({"a": 50, "b": 70}, {"a": 1, "b": 1}, 2)
    saved = schedule.Schedule(np.array([100, 41]), state.phases)
    changed = schedule.open_schedule({"a": 50}, {"a": 1}, 2, saved)
    whole, left = mix(["a", "b"], state.phases), mix(["a"], changed.phases)
    for index in range(41, 100, 2):
        draw = whole.draw(index)
        assert left.draw(index) == (draw if draw.component == 0 else None)
    assert {left.draw(index).component for index in range(100, 300)} == {0}


def test_phase_survives_saving_and_checks_the_data():
    state = schedule.open_schedule({"b": 10, "a": 20}, {"b": 1, "a": 2}, 3)
    tree = json.loads(json.dumps({**state.to_tree(), "cursors": [3, 4, 11]}, sort_keys=True))
    saved = schedule.Schedule.from_tree(tree)
    assert schedule.open_schedule({"b": 10, "a": 20}, {"b": 1, "a": 2}, 3, saved) is saved
    before, after = (mix(["b", "a"], phases) for phases in (state.phases, saved.phases))
    assert [before.draw(i) for i in range(100)] == [after.draw(i) for i in range(100)]
    changed = schedule.open_schedule({"b": 10, "a": 20}, {"b": 1, "a": 3}, 3, saved)
    assert changed.phases[:-1] == saved.phases
    assert changed.cursors.tolist() == [3, 4, 11]
    assert changed.phases[-1].start == 11
    with pytest.raises(UserError, match="'b' has 9 records, and 10 when"):
        schedule.open_schedule({"b": 9, "a": 20}, {"b": 1, "a": 2}, 3, saved)
    with pytest.raises(UserError, match="3 rows a batch and the configuration 4"):
        schedule.open_schedule({"b": 10, "a": 20}, {"b": 1, "a": 2}, 4, saved)
    with pytest.raises(UserError, match="the mixture is empty"):
        schedule.open_schedule({"b": 10}, {"b": 0}, 4)
    with pytest.raises(UserError, match="'a' of the saved run is not in the configuration"):
        mix(["b"], saved.phases)


@pytest.mark.parametrize("length", [1, 2, 1000, mixture.SMALL, mixture.SMALL + 1, 70_001])
def test_permutation(length):
    order = [mixture.permuted(i, length, (3, 4)) for i in range(length)]
    assert np.array_equal(np.sort(order), np.arange(length))
