"""What questions share: the words with which all begin, and what is kept of images from call to call."""

import functools
import math

import numpy as np
import pytest

from tests.infer import random_prompts as rp
from vlm3_jax.infer import engine as engines
from vlm3_jax.infer import prefix
from vlm3_jax.infer.kept import Kept
from vlm3_jax.infer.prefix import with_shared_head

NEW = 6


@pytest.fixture(scope="module")
def pair():
    return rp.lively("plain")


def asked(rng, head: int, lengths, pixels=None) -> rp.Asked:
    """Questions that begin with the same `head` tokens, about an image."""
    shared = rng.integers(0, 280, head)
    image = rng.integers(0, 256, (16, 24, 3), dtype=np.uint8) if pixels is None else pixels
    first = np.arange(len(lengths)) + 5
    questions = [np.concatenate([shared, [a], rng.integers(0, 280, n)]) for a, n in zip(first, lengths)]
    return rp.Asked([rng.integers(0, 280, 3), image, rng.integers(0, 280, 2)], questions)


def test_the_shared_head_joins_the_prefix(pair, rng):
    prompt, _ = asked(rng, 7, [4, 0, 9]).prompt(pair.spec)
    moved = with_shared_head(prompt)
    assert [len(tokens) for tokens in moved.suffix_tokens] == [5, 1, 10]
    for before, after in zip(prompt.suffix_tokens, moved.suffix_tokens, strict=True):
        whole = np.concatenate([prompt.prefix_tokens, before])
        np.testing.assert_array_equal(np.concatenate([moved.prefix_tokens, after]), whole)
    both = [np.concatenate([p.prefix_positions, p.suffix_positions[2]], 1) for p in (prompt, moved)]
    np.testing.assert_array_equal(*both)
    one = engines._only(prompt, [1])
    assert with_shared_head(one) is one, "a single question stays whole"
    twice = with_shared_head(engines._only(prompt, [1, 1]))
    assert [len(tokens) for tokens in twice.suffix_tokens] == [1, 1], "a last token stays"


def test_rows_of_long_prefixes_are_whole_blocks():
    for length in range(1, 3000):
        row = prefix._tokens(length, True)
        assert length <= row < 1.25 * length + 32
        assert length <= 256 or math.gcd(row, prefix.TOKEN_BLOCK) >= prefix._LEAST, length
        assert length <= prefix._tokens(length, False) <= row


def test_a_shared_head_does_not_change_answers(pair, rng):
    """transformers' answers, with questions of different lengths taking each other's places."""
    a = asked(rng, 12, [3, 17, 0, 8, 1])
    prompt, patches = a.prompt(pair.spec)
    engine = rp.make_engine(pair, image_sets=1, questions=2, max_new_tokens=NEW)
    (found,) = engine.generate([prompt], [patches])
    for question, tokens in zip(a.questions, found, strict=True):
        rp.their_answer(pair, [*a.shared, question], NEW).agrees(tokens)
    assert len({tuple(tokens) for tokens in found}) > 2


def test_images_and_prefixes_are_kept(pair, rng):
    """Asked again, nothing is read; other words about the same image: it is not looked at again."""
    engine = rp.make_engine(pair, image_sets=1, questions=4, max_new_tokens=NEW, keep_bytes=1 << 24)
    a, other = asked(rng, 6, [3, 5]), asked(rng, 6, [3, 5])
    calls = []
    run = engine._programs

    def told(name, *args):
        calls.append(name)
        return getattr(run, name)(*args)

    engine._programs = run._replace(**{name: functools.partial(told, name) for name in ("see", "read")})

    def ask(questions, shared):
        prompt, patches = rp.Asked(shared, questions).prompt(pair.spec)
        return engine.generate([prompt], [patches])[0]

    first = ask(a.questions, a.shared)
    assert calls == ["see", "read"]
    assert ask(a.questions, a.shared) == first
    assert calls == ["see", "read"], "asked again"
    ask(other.questions, a.shared)
    assert calls == ["see", "read", "read"], "the same image, other words"
    assert ask(other.questions, other.shared) != first
    assert calls == ["see", "read", "read", "see", "read"], "another image"


def test_what_was_not_used_for_longest_goes_first():
    kept, made = Kept(100), []

    def get(key, size=40):
        return kept.get(key, lambda: made.append(key) or [np.zeros(size, np.uint8)])

    for key in "abacab":
        get(key)
    assert made == ["a", "b", "c", "b"], "a was used again, so b had to go for c"
    assert kept.held == 80
    get("large", 101)
    assert kept.held == 80
    get("d", 100)
    assert kept.held == 100
    get("a")
    assert made[-3:] == ["large", "d", "a"]
    none = Kept(0)
    assert none.get("x", lambda: [np.zeros(1)]) is not none.get("x", lambda: [np.zeros(1)])
