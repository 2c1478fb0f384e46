r"""When is it worth while to read an image once for all questions about it? The engine's way beside the plain one.

    python tools/bench_shared.py --visual 16 64 256 900 --questions 2 4 16

The plain way: every question is a prompt of its own with its image, eight of them side by side. The model is that of
bench_answers.py (45 M parameters, random, float32), the questions are the release's about depth, no token ends an
answer, nothing is kept from call to call. Milliseconds a question by the clock, both ways in turns, the fastest of
--rounds calls after one that compiles; the answers of both ways are compared.
"""

import argparse
import pathlib
import tempfile
import time

import bench_answers
import checkout  # noqa: F401
import numpy as np
from PIL import Image

import vlm3_jax
from vlm3_jax.camera import AsIs
from vlm3_jax.infer.engine import Engine
from vlm3_jax.tasks import depth
from vlm3_jax.tasks.protocol import RELEASE

# Pixels of an image a side and visual token.
UNIT = 32


def sides(tokens: int) -> tuple[int, int]:
    """(height, width) in visual tokens, as square as can be."""
    height = next(n for n in range(int(tokens**0.5), 0, -1) if tokens % n == 0)
    return height, tokens // height


def measure(engine: Engine, shown, questions: list[str], rounds: int) -> tuple[float, float, bool]:
    """Seconds of the shared way and of the plain one, and whether they answer the same."""
    ways = {
        "shared": lambda: engine.answer([shown], [questions])[0],
        "plain": lambda: [rows[0] for rows in engine.answer([shown] * len(questions), [[q] for q in questions])],
    }
    seconds, answers = {name: [] for name in ways}, {}
    for number in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            answers[name] = way()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return min(seconds["shared"]), min(seconds["plain"]), answers["shared"] == answers["plain"]


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--visual", type=int, nargs="+", default=[16, 64, 256, 900], help="visual tokens of the image")
    parser.add_argument("--questions", type=int, nargs="+", default=[2, 4, 16])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--new", type=int, default=36, help="new tokens of an answer (36)")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    names = "visual tokens", "questions", "shared, ms a question", "plain", "times as fast", "answers"
    print(f"| {' | '.join(names)} |\n{'|---' * len(names)}|")
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        bench_answers.make(folder, 0, 1)
        model = vlm3_jax.load(folder / "model")
        chat = model._engine.chat
        chat.stop_ids, chat.decode = (10**6,), list
        engine = Engine(model._model.cfg, model._engine.params, chat, model._spec, max_new_tokens=args.new)
        for tokens in args.visual:
            pixels = rng.integers(0, 256, (*np.multiply(sides(tokens), UNIT), 3), dtype=np.uint8)
            shown = model._shown([Image.fromarray(pixels)], AsIs())
            for count in args.questions:
                points = rng.integers(0, 2000, (count, 2))
                questions = [depth.question(int(x), int(y), RELEASE["depth"]) for x, y in points]
                shared, plain, same = measure(engine, shown, questions, args.rounds)
                told = f"{1000 * shared / count:.0f} | {1000 * plain / count:.0f} | {plain / shared:.1f}"
                print(f"| {shown[0].n_visual} | {count} | {told} | {'equal' if same else 'differ'} |", flush=True)


if __name__ == "__main__":
    main()
