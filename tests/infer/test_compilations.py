"""However many image sets, sizes and questions come, few programs are compiled."""

import numpy as np
import pytest

from tests.infer import random_prompts as rp
from vlm3_jax.infer.buckets import bucket

NEW = 3
NAMES = ("see", "read", "open", "fill", "proceed", "verify", "grow")


@pytest.fixture
def engine():
    return rp.make_engine(rp.lively("plain"), image_sets=2, questions=4, max_new_tokens=NEW)


def compiled(engine) -> dict[str, int]:
    """How many shapes of each program there are."""
    return {name: getattr(engine._programs, name)._cache_size() for name in NAMES}


def ask(engine, sets) -> None:
    """Answers image sets of (image sizes, question lengths) each."""
    rng, prompts, patches = np.random.default_rng(0), [], []
    for sizes, lengths in sets:
        shown = [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for width, height in sizes]
        # Without a shared head, which would make them shorter.
        questions = [np.concatenate([[10 + i], rng.integers(0, 280, n - 1)]) for i, n in enumerate(lengths)]
        prompt, arrays = rp.Asked([rng.integers(0, 280, 2), *shown], questions).prompt(engine.spec)
        prompts.append(prompt)
        patches.append(arrays)
    found = engine.generate(prompts, patches)
    assert [len(rows) for rows in found] == [len(lengths) for _, lengths in sets]


def test_other_sizes_of_a_bucket_need_no_other_program(engine):
    ask(engine, [([(24, 40)], [15, 12, 9])])
    before = compiled(engine)
    ask(engine, [([(32, 24)], [11, 9, 16])])
    ask(engine, [([(40, 17)], [9, 10, 11])])
    assert compiled(engine) == before


@pytest.mark.slow
def test_programs_are_few(engine):
    """0 to 2 images of six sizes with 1 to 20 questions of 1 to 30 tokens, in calls of 1 to 4 image sets."""
    rng, before = np.random.default_rng(0), compiled(engine)
    for _ in range(40):
        sets = [
            ([rp.SIZES[i] for i in rng.integers(0, 6, rng.integers(3))], rng.integers(1, 31, rng.integers(1, 21)))
            for _ in range(rng.integers(1, 5))
        ]
        ask(engine, sets)
    made = {name: count - before[name] for name, count in compiled(engine).items()}
    # For 1 or 2 image sets a call: of patches, of prefix tokens, of places (4 questions of each) and of questions.
    most = 2 * max(-(-w // 8) * -(-h // 8) * 4 for w, h in rp.SIZES)
    patches = {bucket(n, 32) for n in range(1, most + 1)}
    prefixes = {bucket(n, 32, 8) for n in range(1, most // 4 + 30)}
    places, lengths = {bucket(n, 1) for n in range(1, 9)}, 4
    assert made["see"] <= 2 * len(patches)
    assert made["read"] <= 2 * len(patches) * len(prefixes)
    assert made["proceed"] <= 2 * len(places) * len(prefixes) * lengths
    assert made["fill"] <= 3 * made["proceed"]
