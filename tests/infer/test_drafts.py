"""Drafts: guesses from earlier answers, and greedy tokens however good or bad they are."""

import numpy as np
import pytest

from tests.infer import random_prompts as rp
from vlm3_jax.infer import drafts as drafting
from vlm3_jax.infer.drafts import Drafts, best_width
from vlm3_jax.infer.places import Written

NEW = 12
END = 99


def words(number: list[int]) -> list[int]:
    """An answer that says its number (tokens below 10) twice between fixed words, as the release's do."""
    return [20, 21, 22, *number, 23, 24, 25, 30, *number, 31, END]


def test_fixed_words_and_the_second_number_are_guessed():
    drafts = Drafts()
    for number in ([1, 2, 9, 3], [7, 9, 1], [4, 4, 9, 0, 2], [8, 9, 6]):
        drafts.learn(words(number))
    new = words([5, 3, 9, 7])
    assert drafts.guess([], 16) == [20, 21, 22], "the number is not guessed"
    assert drafts.guess(new[:4], 16) == []
    assert drafts.guess(new[:8], 16) == new[8:], "words, the number that the answer has said, and the end"
    assert drafts.guess(new[:8], 2) == new[8:10]
    assert drafts.guess(new[:12], 16) == new[12:], "also from within the number"


def test_what_never_followed_is_not_guessed():
    drafts = Drafts()
    assert drafts.guess([1, 2], 8) == []
    drafts.learn([1, 2, 3, END])
    assert drafts.guess([1, 2], 8) == [3, END]
    drafts.learn([1, 2, 4, END])
    assert drafts.guess([1, 2], 8) == []
    assert drafts.guess([5], 8) == []


def test_memory_is_bounded(monkeypatch, rng):
    monkeypatch.setattr(drafting, "_MOST_LEARNT", 500)
    drafts = Drafts()
    for _ in range(300):
        drafts.learn(rng.integers(0, 500, 20).tolist())
    assert len(drafts._next) < 700


def test_drafts_are_used_where_a_pass_costs_hardly_more():
    assert best_width(1, 1, [15], 0.95, "cpu") == 16
    assert best_width(128, 128, [3] * 128, 0.5, "cpu") == 1
    assert best_width(1, 1, [0], 0.95, "cpu") == 1
    assert best_width(1, 1, [15], 0.05, "cpu") == 1
    assert best_width(32, 32, [15] * 32, 0.9, "gpu") == 16


def test_bad_drafts_are_left_after_a_while():
    drafts = Drafts()
    drafts.learn(list(range(1, 20)))
    state = [np.zeros((1, 1, 30), np.int32), np.array([[3]], np.int32), np.zeros((1, 1), bool)]
    state[0][0, 0, :3] = 1, 2, 3
    before, tries = Written(*state), 0
    while (draft := drafts.plan(before, "cpu")[0]) is not None:
        assert draft[0, 0, :3].tolist() == [4, 5, 6]
        # The model says one token, and that is another.
        drafts.judge(draft, before, before._replace(count=before.count + 1))
        tries += 1
    # With one place a pass is cheap, and so are tries.
    assert 1 <= tries < 40
    for number in range(400):
        drafts.learn([1000 + number])
    assert drafts.plan(before, "cpu")[0] is not None, "tried again later"


@pytest.fixture(scope="module")
def pair():
    return rp.lively("plain")


def ask(pair, asked: rp.Asked, **settings):
    """(answers of one place after the other, passes with drafts, tokens that were right)."""
    engine = rp.make_engine(pair, image_sets=1, questions=1, max_new_tokens=NEW, **settings)
    calls, verify = [], engine._programs.verify
    engine._programs = engine._programs._replace(verify=lambda *args: calls.append(args[3]) or verify(*args))
    prompt, patches = asked.prompt(pair.spec)
    return engine.generate([prompt], [patches])[0], calls


def test_answers_with_drafts_are_those_without(pair, rng):
    """Questions come again, so that drafts are right, and like others, so that some are wrong."""
    questions = [rng.integers(0, 280, n) for n in (3, 9, 5)]
    image = rng.integers(0, 256, (16, 24, 3), dtype=np.uint8)
    # Answers differ, and some of them pass through the same tokens.
    asked = rp.Asked([image, rng.integers(0, 280, 2)], [questions[i] for i in (0, 1, 0, 2, 1, 0, 0)])
    found, calls = ask(pair, asked)
    assert len(calls) >= 3
    for question, tokens in zip(asked.questions, found, strict=True):
        assert rp.their_answer(pair, [*asked.shared, question], NEW).agrees(tokens) == NEW
    # 7 answers of 12 tokens: the first of each comes with the question, the others in fewer passes than tokens.
    assert len(calls) < 7 * (NEW - 1)
    assert any((draft >= 0).sum() >= 3 for draft in calls)


def test_wrong_drafts_change_nothing(pair, rng, monkeypatch):
    """Guesses by chance, every one of which is a token."""
    asked = rp.Asked([rng.integers(0, 280, 4)], [rng.integers(0, 280, n) for n in (4, 2, 7)])
    plain, _ = ask(pair, asked)
    monkeypatch.setattr(Drafts, "guess", lambda self, answer, most: rng.integers(0, 280, most).tolist())
    found, calls = ask(pair, asked)
    assert found == plain
    assert calls
