"""Speed of small functions that the host calls for every sample or score: no test may depend on it, so it stands here.

    python tools/bench_host.py          (seconds; needs the test extra)

Best of many repetitions, in microseconds of one call: the questions of each task about one record, labels of a pair
drawn from its depth maps, a sample of eight short questions built, the demo's step packed (16 samples), an interval of
2,000 scores by 1,000 replicates.
"""

import dataclasses
import pathlib
import sys
import tempfile
import timeit

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "tasks")]

from records_for_tests import random_record  # noqa: E402

from vlm3_jax import records  # noqa: E402
from vlm3_jax.camera import Camera  # noqa: E402
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
    pair = depth_pair()
    yield "labels of a pair drawn", lambda: records.draw_labels(pair, np.random.default_rng(0), 160)
    posed = dataclasses.replace(pair, depth_maps=tuple(map(decoded, pair.depth_maps)))
    yield "  its maps decoded before", lambda: records.draw_labels(posed, np.random.default_rng(0), 160)
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


def depth_pair() -> records.Record:
    """Two views of 640 x 480 of a rough wall, 20 cm apart, with depth maps."""
    rng = np.random.default_rng(0)
    camera = Camera(525.0, 525.0, 319.5, 239.5, 640, 480)
    moved = np.eye(4)
    moved[0, 3] = 0.2
    views = tuple(records.View(records.ImageRef(640, 480, "a", data=b""), camera, pose) for pose in (np.eye(4), moved))
    ripple = 3 + 0.5 * np.sin(np.arange(640) / 40) + 0.02 * rng.random((480, 640))
    return records.Record("pair", views, depth_maps=tuple(records.encode_depth(ripple, "z", view=v) for v in (0, 1)))


def decoded(depth: records.DepthMap) -> records.DepthMap:
    """The map with its values at hand."""
    return dataclasses.replace(depth, data=None, values=depth.load() / depth.scale)


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
