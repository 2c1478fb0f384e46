"""generate(): token by token what transformers' generate() writes, for prompts of all lengths in shared calls."""

import functools

import numpy as np
import pytest

from tests.infer import random_prompts as rp
from tests.model import reference as ref
from vlm3_jax.infer import engine as engines
from vlm3_jax.infer import prefix

NEW = 10


@functools.cache
def asked() -> list[rp.Asked]:
    return rp.random_prompts(np.random.default_rng(3), 17)


@functools.cache
def theirs(kind: str) -> list[list[rp.Greedy]]:
    pair = rp.lively(kind)
    return [[rp.their_answer(pair, [*a.shared, question], NEW) for question in a.questions] for a in asked()]


def ours(kind: str, stops=(rp.NEVER, rp.NEVER), count: int = 17, sizes=(9, 4)) -> list[list[list[int]]]:
    """Calls of up to nine prompts and four questions each, or as `sizes` say."""
    pair = rp.lively(kind)
    prompts, patches = zip(*(a.prompt(pair.spec) for a in asked()[:count]))
    engine = rp.make_engine(pair, stops, image_sets=sizes[0], questions=sizes[1], max_new_tokens=NEW)
    return engine.generate(prompts, patches)


@pytest.mark.parametrize("kind", ["plain", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("odd", "moe"))])
def test_tokens_are_those_of_transformers(kind):
    expected, found = theirs(kind), ours(kind)
    pairs = [(a, b) for one, other in zip(expected, found, strict=True) for a, b in zip(one, other, strict=True)]
    assert len(pairs) >= 50
    same = [their.agrees(tokens) for their, tokens in pairs]
    assert np.mean(same) > 0.98 * NEW
    # Not in vain: answers differ from each other, and few repeat one token.
    assert len({tuple(tokens) for _, tokens in pairs}) > 0.9 * len(pairs)
    assert np.median([len(set(tokens)) for _, tokens in pairs]) >= 5


def test_prefixes_in_blocks_change_no_token(monkeypatch):
    """Long rows are read in pairs of blocks; here in small ones, and hardly a row is without."""
    monkeypatch.setattr(prefix, "_LEAST", 4)
    monkeypatch.setattr(prefix, "PATCH_BLOCK", 4)
    monkeypatch.setattr(prefix, "TOKEN_BLOCK", 8)
    listed = []
    batch = engines.prefix_batch
    monkeypatch.setattr(engines, "prefix_batch", lambda *args: listed.append(found := batch(*args)) or found)
    expected, found = theirs("plain"), ours("plain")
    for row, mine in zip(expected, found, strict=True):
        for their, tokens in zip(row, mine, strict=True):
            their.agrees(tokens)
    assert all("patch_pair_keys" in seen and "pair_keys" in read for seen, read, _ in listed)
    # Rows of several images and rows that end early have fewer pairs than blocks squared.
    assert any((seen["patch_pair_keys"] < 0).any(1).all() for seen, *_ in listed)


@pytest.mark.parametrize("sizes", [(9, 4), (3, 1), (1, 2)])
def test_stop_tokens_end_some_answers_early(monkeypatch, sizes):
    """Caches that grow on the way included, and places that others take who have been waiting."""
    pair, expected = rp.lively("plain"), theirs("plain")[:9]
    flat = [their.tokens for row in expected for their in row]
    counts = {token: sum(token in tokens[:-2] for tokens in flat) for token in set().union(*flat)}
    stops = sorted(counts, key=counts.get)[-2:]
    monkeypatch.setattr(engines, "FIRST_ROOM", 4)
    found = ours("plain", tuple(stops), 9, sizes)
    lengths = []
    for row, mine in zip(expected, found, strict=True):
        for their, tokens in zip(row, mine, strict=True):
            lengths.append(next((i for i, token in enumerate(their.tokens) if token in stops), NEW))
            if min(their.gaps) > 1e-4:
                assert tokens == their.tokens[: lengths[-1]]
    assert lengths.count(NEW) > 3
    assert sum(0 < length < NEW for length in lengths) > 3
    # transformers cuts alike when it is told the same stop tokens.
    early = [(a, b) for a, b in zip(asked(), found) if len(b[0]) < NEW][:3]
    for a, b in early:
        out = rp.their_answer(pair, [*a.shared, a.questions[0]], NEW, eos_token_id=stops, pad_token_id=0)
        assert out.tokens[:-1] == b[0]
        assert out.tokens[-1] in stops


def test_nothing_runs_on_when_all_are_done(monkeypatch):
    """A stop token, the second of two, ends the only answer after 2 or 3 of 10 tokens: the caches need not grow."""
    pair = rp.lively("plain")
    a, question, tokens, last = next(
        (a, question, their.tokens, i)
        for a, row in zip(asked(), theirs("plain")) for question, their in zip(a.questions, row)
        for i in (2, 3) if their.tokens[i] not in their.tokens[:i]
    )  # fmt: skip
    monkeypatch.setattr(engines, "FIRST_ROOM", 4)
    engine = rp.make_engine(pair, (rp.NEVER, tokens[last]), image_sets=1, questions=1, max_new_tokens=NEW)
    monkeypatch.setattr(engine, "_programs", engine._programs._replace(grow=None))
    prompt, patches = rp.Asked(a.shared, [question]).prompt(pair.spec)
    assert engine.generate([prompt], [patches]) == [[tokens[:last]]]


def test_float_patches_are_patches_too():
    """What transformers' processor gives, both temporal slices, as for video."""
    pair, expected = rp.lively("plain"), theirs("plain")
    chosen = [i for i, a in enumerate(asked()) if len(a.shared) == 5][:2]
    prompts, patches = [], []
    for i in chosen:
        prompt, still = asked()[i].prompt(pair.spec)
        values = ref.their_inputs(pair, asked()[i].shared)["pixel_values"].numpy()
        prompts.append(prompt)
        patches.append(np.split(values, np.cumsum([len(x) for x in still])[:-1]))
        assert values.dtype == np.float32
        assert values.shape[1] == 2 * still[0].shape[1]
    engine = rp.make_engine(pair, image_sets=2, questions=4, max_new_tokens=NEW)
    for i, row in zip(chosen, engine.generate(prompts, patches), strict=True):
        for their, tokens in zip(expected[i], row, strict=True):
            assert their.agrees(tokens) == NEW
    assert chosen
