"""Places: who is called when, and that everyone is answered once."""

import numpy as np
import pytest

from vlm3_jax.infer.places import Places


def test_longer_questions_come_first_and_wait_for_a_place():
    places = Places([[3, 9, 5], [4]], rows=3, places=2)
    assert places.waiting.tolist() == [True, True, False]
    first = places.seat(8)
    assert first.question[:, :2].tolist() == [[1, 2], [0, -1], [-1, -1]]
    assert first.place[:, :2].tolist() == [[0, 1], [0, -1], [-1, -1]]
    assert places.waiting.tolist() == [True, False, False]
    assert places.seat(8) is None
    done = np.zeros((3, 2), bool)
    done[0, 1] = done[2, 0] = True
    assert places.leave(done) == [(0, 1, 2)]
    second = places.seat(1)
    assert (second.question.tolist(), second.place.tolist()) == ([[0], [-1], [-1]], [[1], [-1], [-1]])
    assert not places.empty
    assert places.leave(np.ones((3, 2), bool)) == [(0, 0, 1), (0, 1, 0), (1, 0, 0)]
    assert places.empty


@pytest.mark.parametrize("most", [1, 3, 50])
def test_everyone_is_answered_once(most, rng):
    lengths = [rng.integers(1, 90, n).tolist() for n in (37, 0, 5)]
    places, left = Places(lengths, 4, 6), []
    while not places.empty:
        while places.seat(most) is not None:
            pass
        left += places.leave(rng.random((4, 6)) < 0.3)
    assert sorted((b, question) for b, _, question in left) == [
        (b, q) for b in range(3) for q in range(len(lengths[b]))
    ]
