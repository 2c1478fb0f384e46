"""Converts a random model of a released size both ways and compares with a plain copy of the same bytes.

    python tools/bench_convert.py --size 4b --folder /tmp/bench

Needs four times the model's bytes on disk and deletes what it made. Each side runs in a process of its own, in turn; no
side calls fsync, and the source is read from disk. Memory is RssAnon, sampled from /proc every 10 ms: mapped files do
not count.
"""

import argparse
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import time

import numpy as np

from vlm3_jax.checkpoint import hf, tiny
from vlm3_jax.checkpoint.copying import DTYPES
from vlm3_jax.checkpoint.layouts import hf_plan
from vlm3_jax.checkpoint.writing import finish, write
from vlm3_jax.model import params as parameters
from vlm3_jax.model.sizes import NAMES, released

COPY = "import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[2])"


class RandomSource:
    """Random bits of finite bfloat16 numbers; the same for every tensor of a shape."""

    def __init__(self, cfg, files):
        self.cfg, self.rows, self.files = cfg, parameters.table(cfg), files
        self._bits = np.random.default_rng(0).integers(0, 2**15 - 2**8, 2**22, np.uint16)

    def dtype(self, row):
        """bfloat16."""
        return DTYPES["bfloat16"]

    def hf_shape(self, row):
        """The table's."""
        return row.hf_shape

    def value(self, row, layer):
        """[layer_shape]."""
        size = row.size // (len(row.hf_keys) if row.stacked else 1)
        return np.resize(self._bits, size).view(DTYPES["bfloat16"]).reshape(row.layer_shape)


def make(folder: pathlib.Path, size: str) -> None:
    """An HF directory of the size: the tiny model's files with another config."""
    cfg, tmp = released(size), folder.with_name("tmp")
    small = tiny.make(folder.with_name("small"), "test")
    write(tmp, hf_plan(RandomSource(cfg, small), None, hf.MAX_SHARD_BYTES))
    for path in small.glob("*.json*"):
        shutil.copyfile(path, tmp / path.name)
    (tmp / "config.json").write_text(json.dumps(cfg.to_hf() | {"dtype": "bfloat16"}))
    finish(tmp, folder)
    shutil.rmtree(small)


def measure(command: list[str]) -> tuple[float, float, float]:
    """Wall seconds of a process, imports included, the largest RssAnon seen in bytes, and seconds on processors."""
    before, start, peak = processor_seconds(), time.perf_counter(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        peak = max([peak, *(1024 * int(line.split()[1]) for line in status.splitlines() if "RssAnon" in line)])
        time.sleep(0.01)
    if process.wait():
        raise SystemExit(f"{command[-3:]} failed")
    return time.perf_counter() - start, peak, processor_seconds() - before


def processor_seconds() -> float:
    """User and system time of the children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def evict(root: pathlib.Path) -> None:
    """Writes everything to disk and forgets it, so that no side finds its source in memory or waits for old writes."""
    subprocess.run(["sync"], check=True)
    for path in root.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    """Makes, measures, judges, deletes; exit code 1 if a gate fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="4b", choices=NAMES)
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="a folder on the disk to measure")
    parser.add_argument("--repeats", type=int, default=2, help="of each side, in turn; the best one counts")
    args = parser.parse_args()
    root = args.folder / "bench_convert"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    try:
        sys.exit(run(root, args.size, args.repeats))
    finally:
        shutil.rmtree(root)


def run(root: pathlib.Path, size: str, repeats: int) -> int:
    """The exit code."""
    theirs, ours, copy = root / "hf", root / "ours", root / "copy"
    make(theirs, size)
    nbytes = sum(path.stat().st_size for path in theirs.iterdir())
    largest = max(2 * row.size // len(row.hf_keys) for row in parameters.table(released(size)))
    limit = 1.5 * largest + 1e9
    print(f"{size}: {nbytes / 1e9:.2f} GB, largest tensor {largest / 1e6:.0f} MB, limit {limit / 1e6:.0f} MB anonymous")
    convert = [sys.executable, "-m", "vlm3_jax.cli", "convert"]
    good = True
    for name, source, target in (("HF -> ours", theirs, ours), ("ours -> HF", ours, root / "back")):
        best = {}
        for side in (name, "plain copy") * repeats:
            plain = side == "plain copy"
            made = copy if plain else target
            command = [sys.executable, "-c", COPY] if plain else convert
            shutil.rmtree(made, ignore_errors=True)
            evict(root)
            seconds, peak, busy = measure([*command, str(source), str(made)])
            best[side] = max(best.get(side, 0.0), nbytes / seconds)
            speed = f"{nbytes / seconds / 1e9:.2f} GB/s, {busy:.1f} s of processor time"
            print(f"{side:>11}: {seconds:6.1f} s, {speed}, peak {peak / 1e6:.0f} MB anonymous", flush=True)
            good &= plain or peak <= limit
            shutil.rmtree(copy, ignore_errors=True)
        ratio = best[name] / best["plain copy"]
        print(f"{name}: {ratio:.2f} of the plain copy's speed (best of {repeats} each)", flush=True)
        good &= ratio >= 0.5
    for path in sorted(theirs.glob("*.safetensors")):
        good &= subprocess.run(["cmp", str(path), str(root / "back" / path.name)], check=False).returncode == 0
    print("all gates hold, bytes equal" if good else "A GATE FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    main()
