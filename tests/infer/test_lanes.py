"""Iterators side by side: nothing is lost, errors arrive, nobody is left running; and answers do not depend on it."""

import threading

import pytest

from vlm3_jax.infer.lanes import side_by_side


def names() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def test_all_of_each_in_its_order():
    found = list(side_by_side([iter([(lane, i) for i in range(5 * lane)]) for lane in range(4)]))
    for lane in range(4):
        assert [item for item in found if item[0] == lane] == [(lane, i) for i in range(5 * lane)]
    assert len(found) == 30


def test_they_run_at_the_same_time():
    """Each waits for the other: one after the other they would never end."""
    meeting = threading.Barrier(2, timeout=30)

    def lane(name):
        meeting.wait()
        yield name

    assert sorted(side_by_side([lane("a"), lane("b")])) == ["a", "b"]


def test_one_lane_needs_no_thread():
    before = names()
    lane = side_by_side([iter("ab")])
    assert next(lane) == "a"
    assert names() == before


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
def test_an_error_of_one_ends_all(error):
    before = names()

    def broken():
        yield 0
        raise error

    def endless():
        while True:
            yield 1

    with pytest.raises(type(error)):
        list(side_by_side([endless(), broken()]))
    assert names() == before


def test_who_stops_asking_leaves_nobody_running():
    before = names()

    def endless():
        while True:
            yield 1

    lanes = side_by_side([endless(), endless()])
    assert next(lanes) == 1
    lanes.close()
    assert names() == before
