"""Speed of small functions that the host calls for every sample or score: no test may depend on it, so it stands here.

    python tools/bench_host.py          (seconds; needs the test extra)

Best of many repetitions, in microseconds of one call: the questions of each task about one record, a sample of eight
short questions built, the demo's step packed (16 samples), an interval of 2,000 scores by 1,000 replicates.
"""

import pathlib
import sys
import tempfile
import timeit

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "tasks")]

from records_for_tests import random_record  # noqa: E402

from vlm3_jax.checkpoint import tiny  # noqa: E402
from vlm3_jax.data.packing import RowBudget, pack  # noqa: E402
from vlm3_jax.data.samples import build_sample  # noqa: E402
from vlm3_jax.evaluate.statistics import bootstrap_interval  # noqa: E402
from vlm3_jax.processor.chat import ChatFormat  # noqa: E402
from vlm3_jax.processor.image import VisionSpec  # noqa: E402
from vlm3_jax.records import unify  # noqa: E402
from vlm3_jax.tasks import TASKS, protocol  # noqa: E402


def cases(folder):
    """(name, function of no arguments) of everything that is timed."""
    record, rng = random_record(np.random.default_rng(0)), np.random.default_rng(0)
    for name, task in TASKS.items():
        asked = protocol.given(name, questions=8)
        yield f"questions of {name}", lambda task=task, asked=asked: task.examples(record, rng, asked)
    model = tiny.make(pathlib.Path(folder) / "model", "demo")
    chat, spec = ChatFormat.from_dir(model), VisionSpec.from_dir(model)
    asked = protocol.given("depth", "short", questions=8)
    small = unify(record, asked.resize)
    examples = TASKS["depth"].examples(small, rng, asked)
    sample = build_sample(small, examples, chat, spec, mode="independent")
    yield "a sample built", lambda: build_sample(small, examples, chat, spec, mode="independent")
    rows, n = [[sample] * 4] * 4, sample.n_patches
    pixels = [[[np.zeros((n, 3 * spec.patch_size**2), np.uint8)]] * 4] * 4
    budget = RowBudget(4 * len(sample.tokens) + 64, 4 * n, 256)
    yield "16 samples packed", lambda: pack(rows, pixels, budget, spec)
    scores = rng.normal(size=2000)
    yield "an interval of 2,000 scores", lambda: bootstrap_interval(scores, list(range(2000)))


def main() -> None:
    """Prints a line for each function."""
    with tempfile.TemporaryDirectory() as folder:
        for name, call in cases(folder):
            call()
            number = max(1, int(0.02 / max(1e-6, timeit.timeit(call, number=1))))
            best = min(timeit.repeat(call, number=number, repeat=15)) / number
            print(f"{name:<32} {1e6 * best:10.0f} us")


if __name__ == "__main__":
    main()
