"""Ten thousand questions in one call need the memory of a few hundred."""

import pathlib
import re

import numpy as np
import pytest

from tests.infer import random_prompts as rp

NEW = 4


def peak_mb() -> float:
    """The most memory that this process has held so far."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) / 1024


@pytest.mark.slow
def test_memory_does_not_grow_with_the_questions(rng):
    pair = rp.lively("plain")
    engine = rp.make_engine(pair, image_sets=1, questions=128, max_new_tokens=NEW)
    image = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)

    def ask(count: int) -> list[list[int]]:
        # Three words and a number that tells them apart.
        questions = [np.array([7, 8, 9, *map(int, f"{number:05d}"), 11]) for number in range(count)]
        prompt, patches = rp.Asked([image], questions[:1]).prompt(pair.spec)
        positions = np.broadcast_to(prompt.suffix_positions[0][:, :1] + np.arange(9, dtype=np.int32), (3, 9))
        many = rp.with_questions(prompt, questions, [positions] * count)
        return engine.generate([many], [patches])[0]

    few = ask(300)
    before = peak_mb()
    many = ask(10_000)
    assert peak_mb() - before < 128
    assert [len(tokens) for tokens in many] == [NEW] * 10_000
    equal = sum(a == b for a, b in zip(few, many))
    assert equal > 290, "rounding may part a few"
