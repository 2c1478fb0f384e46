"""Sampling: the distribution that transformers draws from, draws that follow it, and no dependence on the batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy import stats
from transformers import RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from tests.infer import random_prompts as rp
from vlm3_jax.errors import UserError
from vlm3_jax.infer import sampling
from vlm3_jax.infer.decode import programs
from vlm3_jax.infer.sampling import GREEDY, Draw, Sampling

VOCAB = 500
warp = jax.jit(sampling.warp)


def random_logits(rng) -> np.ndarray:
    """Rows of several kinds: ordinary, flat, peaked, tied, equal, huge, with -inf, with zeros of both signs."""
    rows = rng.normal(0, 1, (12, VOCAB)) * np.array([1, 3, 10, 1e-3, 30, 1, 1, 1, 1, 1, 5, 2])[:, None]
    rows[5] = np.round(rows[5])
    rows[6] = np.round(rows[6] * 4) / 4
    rows[7] = 2.5
    rows[8] *= 1e30
    rows[9, rng.permutation(VOCAB)[:300]] = -np.inf
    rows[10] = np.round(rows[10]) * 0.0
    rows[11, :3] = 1e4
    return rows.astype(np.float32)


def their_warp(logits, temperature, top_k, top_p) -> np.ndarray:
    scores = TemperatureLogitsWarper(temperature)(None, torch.tensor(logits))
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    return scores.numpy()


def at_the_edge(logits, top_p) -> np.ndarray:
    """Rows in which some set of most probable tokens reaches top_p to within rounding: either choice is right."""
    ordered = np.sort(logits.astype(np.float64), -1)[:, ::-1]
    p = np.exp(ordered - ordered[:, :1])
    return np.abs(np.cumsum(p, -1) / p.sum(-1, keepdims=True) - top_p).min(-1) < 2e-7


def cut_through_equals(before, after) -> np.ndarray:
    """Rows of which some tokens were dropped that are as probable as the last one kept."""
    last = np.where(np.isfinite(after), after, np.inf).min(-1, keepdims=True)
    return (np.isinf(after) & (before == last)).any(-1)


@pytest.mark.parametrize("top_k", [0, 1, 7, 100, VOCAB + 20])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5, 1e-6, 0.9999])
def test_distribution_is_that_of_transformers(top_k, top_p, rng):
    compared = 0
    for temperature in (0.7, 1.0, 1e-2, 30.0):
        logits = random_logits(rng)
        ours = np.asarray(warp(logits, temperature, top_k, top_p))
        theirs = their_warp(logits, temperature, top_k, top_p)
        before = their_warp(logits, temperature, top_k, 1.0)
        clear = np.ones(len(logits), bool) if top_p == 1 else ~at_the_edge(before, top_p)
        # Which of equal tokens at the edge stay is up to the order in which a sort leaves them: values first.
        np.testing.assert_allclose(np.sort(ours[clear]), np.sort(theirs[clear]), rtol=2e-7)
        untied = clear & ~cut_through_equals(before, theirs)
        np.testing.assert_array_equal(np.isfinite(ours[untied]), np.isfinite(theirs[untied]))
        np.testing.assert_allclose(ours[untied], theirs[untied], rtol=2e-7)
        assert np.isfinite(ours).any(-1).all()
        compared += untied.sum()
    assert compared > 24


def test_top_p_keeps_the_smallest_set_and_counts_ties():
    """Exact masses: 4/8, 2/8, 1/8, 1/8."""
    logits = np.log(np.array([[1, 2, 4, 1]], np.float32))
    for top_p, kept in ((0.4, [2]), (0.51, [1, 2]), (0.7, [1, 2]), (0.8, [1, 2, 3]), (0.9, [0, 1, 2, 3]), (1e-9, [2])):
        found = np.asarray(warp(logits, 1.0, 0, top_p))
        assert np.flatnonzero(np.isfinite(found[0])).tolist() == kept, top_p
    assert np.isfinite(np.asarray(warp(logits, 1.0, 3, 1.0))).sum() == 4, "top_k keeps what ties with the third"


def test_penalty_is_that_of_transformers(rng):
    logits = rng.normal(0, 3, (4, VOCAB)).astype(np.float32)
    ids = rng.integers(0, VOCAB, (4, 60))
    used = np.zeros((4, VOCAB), bool)
    np.put_along_axis(used, ids, True, 1)
    theirs = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor(ids), torch.tensor(logits)).numpy()
    np.testing.assert_array_equal(np.asarray(sampling.penalize(logits, used, np.float32(1.3))), theirs)


def draws(logits, settings: Sampling, count: int) -> np.ndarray:
    """`count` draws of questions that differ, int32 [count]."""
    identities = np.stack([np.arange(count), np.arange(count) * 7], -1).astype(np.uint32)[None]
    draw = Draw.make(settings, identities)
    rows = jnp.broadcast_to(logits, (1, count, len(logits)))
    return np.asarray(jax.jit(sampling.choose)(rows, draw, 3, jnp.zeros(rows.shape, bool)))[0]


def test_draws_follow_the_distribution(rng):
    logits = rng.normal(0, 1.5, 40).astype(np.float32)
    settings = Sampling(temperature=0.8, top_k=20, top_p=0.95, seed=11)
    found = draws(logits, settings, 20_000)
    scores = their_warp(logits[None], 0.8, 20, 0.95)[0].astype(np.float64)
    p = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    counts = np.bincount(found, minlength=40)
    assert not counts[p == 0].any()
    assert stats.chisquare(counts[p > 0], p[p > 0] * counts.sum()).pvalue > 0.01
    flat = np.full(np.sum(p > 0), counts.sum() / np.sum(p > 0))
    assert stats.chisquare(counts[p > 0], flat).pvalue < 1e-9, "the test can tell distributions apart"
    np.testing.assert_array_equal(draws(logits, settings, 20_000), found)
    other = draws(logits, Sampling(temperature=0.8, top_k=20, top_p=0.95, seed=12), 20_000)
    assert 0.1 < np.mean(other != found) < 0.99


@pytest.fixture(scope="module")
def asked() -> list[rp.Asked]:
    """Two questions of 1 to 16 tokens about each of three images, two without an image; small, to compile little."""
    rng = np.random.default_rng(8)
    images = [[rng.integers(0, 256, (16, 16, 3), dtype=np.uint8), rng.integers(0, 280, 2)] for _ in range(3)]
    shared = [[rng.integers(0, 280, 3), *image] for image in [*images, []]]
    return [rp.Asked(parts, [rng.integers(0, 280, n) for n in (3 * i + 1, 16 - i)]) for i, parts in enumerate(shared)]


@pytest.fixture(scope="module")
def pair():
    return rp.lively("plain")


def generate(pair, asked, settings=GREEDY, image_sets=2, questions=1, change=lambda x: x):
    engine = rp.make_engine(pair, image_sets=image_sets, questions=questions, max_new_tokens=6)
    prompts, patches = zip(*(a.prompt(pair.spec) for a in asked))
    return engine.generate(prompts, [[change(x) for x in arrays] for arrays in patches], settings)


HOT = Sampling(temperature=2.0, top_k=50, top_p=0.99, seed=5)


def test_draws_do_not_depend_on_the_batch(pair, asked):
    together = generate(pair, asked, HOT, image_sets=4, questions=2)
    assert generate(pair, asked[::-1], HOT)[::-1] == together
    rows = [tuple(row) for rows in together for row in rows]
    assert len(set(rows)) == len(rows)
    assert np.mean([len(set(row)) for row in rows]) > 3
    other = generate(pair, asked, dataclasses.replace(HOT, seed=6))
    assert all(a != b for one, two in zip(other, together) for a, b in zip(one, two))


def test_draws_differ_from_step_to_step_and_from_image_to_image(pair, asked):
    """With all tokens alike in probability a draw is the key's alone."""
    settings = Sampling(temperature=1e9, seed=2)
    flat = generate(pair, asked, settings)
    rows = [row for rows in flat for row in rows]
    assert np.mean([len(set(row)) for row in rows]) > 5
    assert len({row[0] for row in rows}) > 5
    # Other pixels are another image set; the questions without an image stay.
    changed = generate(pair, asked, settings, change=lambda x: x[::-1])
    assert changed[3] == flat[3]
    assert all(a != b for one, two in zip(changed[:3], flat[:3]) for a, b in zip(one, two))


def test_other_values_need_no_other_program(pair, asked):
    generate(pair, asked, HOT)
    compiled = programs(pair.cfg, jnp.float32)
    before = compiled.fill._cache_size(), compiled.proceed._cache_size()
    for settings in (Sampling(0.3, 0.5, 3, 9), Sampling(1.0), Sampling(repetition_penalty=1.5)):
        generate(pair, asked, settings)
    assert (compiled.fill._cache_size(), compiled.proceed._cache_size()) == before


def test_one_token_to_choose_from_is_greedy(pair, asked):
    greedy = generate(pair, asked)
    assert generate(pair, asked, Sampling(temperature=5.0, top_k=1, seed=3)) == greedy
    assert generate(pair, asked, Sampling(temperature=1.0, top_p=1e-6)) == greedy
    assert generate(pair, asked, Sampling(temperature=1e-4, seed=3)) == greedy


def test_penalised_greedy_answers_are_those_of_transformers(pair, asked):
    found = generate(pair, asked, Sampling(repetition_penalty=1.5))
    changed = 0
    for a, rows, plain in zip(asked, found, generate(pair, asked)):
        for question, row, other in zip(a.questions, rows, plain):
            their = rp.their_answer(pair, [*a.shared, question], 6, repetition_penalty=1.5)
            assert row == their.tokens
            changed += row != other
    assert changed > 3


def test_settings_of_a_checkpoint(tmp_path):
    assert Sampling.from_dir(tmp_path) == Sampling(temperature=1.0)
    (tmp_path / "generation_config.json").write_text(
        '{"do_sample": true, "top_k": 20, "top_p": 0.8, "temperature": 0.7, "repetition_penalty": 1.0}'
    )
    assert Sampling.from_dir(tmp_path) == Sampling(0.7, 0.8, 20)
    assert Sampling.from_dir(tmp_path, top_p=0.5, seed=4, temperature=None) == Sampling(0.7, 0.5, 20, 4)
    assert Sampling.from_dir(tmp_path, temperature=0.0).greedy
    (tmp_path / "generation_config.json").write_text('{"top_p": "high"}')
    with pytest.raises(UserError, match=r"generation_config.json: top_p must be a number, got 'high'"):
        Sampling.from_dir(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -1},
     {"top_k": 2.5}, {"seed": -1}, {"seed": 2**32}, {"repetition_penalty": 0.0}],
)  # fmt: skip
def test_wrong_settings_are_named(wrong):
    with pytest.raises(UserError, match=f"sampling: {next(iter(wrong))} is "):
        Sampling(**wrong)
