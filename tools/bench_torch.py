r"""Our training step beside transformers + torch AdamW: one model, the same samples, both sides in one run on a CPU.

    python tools/bench_torch.py                            25 minutes, 23 GB, two idle cores; needs the test extra
    python tools/bench_torch.py --samples 24 --scale 0.5   three minutes

The model: text 8 x 512 (8 heads, 4 kv heads, mlp 1,536), vision 6 x 384, vocabulary 8,192; float32. The samples: one
image and --text text tokens each, a tenth of them supervised. Images have the sizes of the paper's depth mixture at
focal length 1000 (858 to 1,300 visual tokens), sides scaled by --scale. There: batches of --batch, padded to the
longest, sdpa attention, logits of all tokens, as transformers trains. Here: packed rows, one for each core, attention
by pairs of blocks, head on the supervised positions, cheap activations made again.

The two sides take turns, each in a process of its own, so that what else the machine does slows both and what one
keeps (memory, threads) does not hinder the other. Both get the same allocator: jemalloc, told to keep memory, where it
is installed (Debian: libjemalloc2), as guides for training on CPUs advise; else that of the C library. Huge pages
either way. Without these a good part of the time goes into page faults, on either side.
"""

import argparse
import ctypes.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from vlm3_jax.model.vlm import REMAT

# Read when a process starts. Memory is kept, huge pages are used.
JEMALLOC = {"MALLOC_CONF": "thp:always,dirty_decay_ms:-1,muzzy_decay_ms:-1"}
GLIBC = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


class Side:
    """A process of bench_torch_sides.py, and what it told of itself and its turns."""

    def __init__(self, name: str, args: argparse.Namespace, allocator: dict[str, str]):
        settings = json.dumps(vars(args) | {"side": name})
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("bench_torch_sides.py")), settings],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | allocator,
        )  # fmt: skip
        ready = self._answer()
        self.counts, self.flops, self.told = ready["counts"], ready["flops"], ready["told"]
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.product = 0.0

    def turn(self, number: int) -> float:
        """Runs a batch; its seconds."""
        seconds, loss = self._ask(f"turn {number}")
        self.seconds.append(seconds)
        self.losses.append(loss)
        return seconds

    def try_product(self) -> None:
        """Times a product of two matrices; the fastest counts."""
        self.product = max(self.product, self._ask("product"))

    def rates(self, warm: int) -> tuple[float, float]:
        """(samples/s, FLOP/s of what is counted as needed) without the first `warm` batches."""
        seconds = sum(self.seconds[warm:])
        return sum(self.counts[warm:]) / seconds, sum(self.flops[warm:]) / seconds

    def end(self) -> None:
        """Lets the process end."""
        self.process.stdin.close()
        self.process.wait()

    def _ask(self, line: str):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"a side ended with status {self.process.wait()} before its time; what it said is above")
        return json.loads(line)


def allocator() -> tuple[str, dict[str, str]]:
    """(name, environment) of the allocator for both sides."""
    library = ctypes.util.find_library("jemalloc")
    if library:
        return "jemalloc", JEMALLOC | {"LD_PRELOAD": library}
    return "glibc", GLIBC


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, text in (
        ("samples", 64, "samples in all"),
        ("batch", 3, "samples of a padded batch"),
        ("text", 400, "text tokens of a sample"),
        ("tokens", 4864, "largest row of ours, tokens"),
        ("block", 128, "block of our attention"),
        ("threads", 2, "threads of torch, and devices of jax"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} ({default})")
    parser.add_argument("--scale", type=float, default=1.0, help="scale of the images' sides (1)")
    parser.add_argument("--remat", choices=REMAT, default="minimal", help="train.remat (minimal)")
    return parser.parse_args()


def in_turn(ours: Side, theirs: Side) -> int:
    """Lets both sides run all their batches, a batch of ours and as many of theirs as keep up; how many these are."""
    turns = len(ours.counts)
    batches = -(-len(theirs.counts) // turns)
    for number in range(turns):
        seconds = (
            ours.turn(number),
            sum(theirs.turn(i) for i in range(number * batches, min((number + 1) * batches, len(theirs.counts)))),
        )
        for side in (ours, theirs):
            side.try_product()
        print(f"turn {number}: {seconds[0]:.1f} s, {seconds[1]:.1f} s", file=sys.stderr, flush=True)
    return batches


def main() -> None:
    """Both sides, one record of JSON."""
    args = arguments()
    name, environment = allocator()
    with tempfile.TemporaryDirectory() as folder:
        args.model = folder
        theirs = Side("theirs", args, environment)
        ours = Side("ours", args, environment)
    # The first turn of either side warms it up.
    warm = in_turn(ours, theirs)
    rates = {"ours": ours.rates(1), "theirs": theirs.rates(warm)}
    products = {"jax": ours.product, "torch": theirs.product}
    ratio, flops_ratio = (a / b for a, b in zip(rates["ours"], rates["theirs"]))
    sides = {"ours": ours, "theirs": theirs}
    print(
        json.dumps(
            {
                "samples_per_s": {k: v[0] for k, v in rates.items()},
                "ratio": ratio,
                "gflop_per_s": {k: v[1] / 1e9 for k, v in rates.items()},
                "matmul_gflop_per_s": {k: v / 1e9 for k, v in products.items()},
                "ratio_on_equal_flops_over_matmul_ratio": flops_ratio / (products["jax"] / products["torch"]),
                "first_loss": {k: side.losses[0] for k, side in sides.items()},
                "seconds": {k: side.seconds for k, side in sides.items()},
                "allocator": name,
                **ours.told,
            },
            indent=2,
        )
    )
    ours.end()
    theirs.end()


if __name__ == "__main__":
    main()
