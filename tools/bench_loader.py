r"""Speed of the data path on one core: scheduling, reading, resizing, cutting, packing. Needs the test extra.

    python tools/bench_loader.py                     (a minute or two)

Samples of the depth recipe with Qwen's vocabulary: focal length 1000, ten questions, its rows and lists of blocks. The
images are iBims-1's photographs (VLM3_SAMPLES, 640 x 480, resized to 1,160 x 870 or so) or grey ones in the sizes of
the paper's depth mixture. Samples a second of processor time, so other programs count little; `decoding` is reading,
resizing and cutting alone. Then what a second thread would bring: how long two are blocked by the interpreter lock.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "data")]

from qwen_reference import write_qwen  # noqa: E402
from small_data import QWEN_VISION, Opened, depth_mixture, loader_of, scheduler_of  # noqa: E402

from vlm3_jax import config as configs  # noqa: E402
from vlm3_jax.data.component import SampleSettings  # noqa: E402
from vlm3_jax.data.packing import RowBudget  # noqa: E402
from vlm3_jax.processor.chat import ChatFormat  # noqa: E402

ROWS = 4


def photographs() -> dict:
    """The table of the real images."""
    folder = pathlib.Path(os.environ.get("VLM3_SAMPLES", ROOT.parent / "shared" / "data")) / "ibims1"
    return {"ibims1": {"kind": "depthlm", "path": str(folder / "ibims1.jsonl"), "depth_kind": "z"}}


def measure(table: dict, settings: SampleSettings, batches: int) -> dict:
    """Samples a second of processor time: the whole loader without threads, scheduling alone, decoding alone."""
    opened = Opened(table, settings, ROWS)
    with loader_of(opened, settings, workers=0) as loader:
        next(loader)
        start, samples = time.process_time(), 0
        for _ in range(batches):
            samples += next(loader).samples
        whole = samples / (time.process_time() - start)
    scheduler = scheduler_of(opened, settings)
    cursors, rows, start = opened.state.cursors, [], time.process_time()
    for _ in range(batches):
        scheduled = scheduler.batch(cursors)
        cursors, rows = scheduled.cursors, rows + scheduled.rows
    scheduling = sum(map(len, rows)) / (time.process_time() - start)
    layouts = [layout for row in rows for sample in row for layout in sample.images][:48]
    start = time.process_time()
    for layout in layouts:
        layout.load(QWEN_VISION)
    decoding = len(layouts) / (time.process_time() - start)
    return {
        "loader": round(whole, 1),
        "scheduling": round(scheduling, 1),
        "decoding": round(decoding, 1),
        "layouts": layouts,
    }


def threads(layouts, rounds: int) -> dict:
    """The same images with one and with two threads, medians of `rounds` in which they take turns.

    Seconds: `running` on a processor and `blocked` (by the interpreter lock, or the disk) are summed over threads; what
    a thread waits for a processor is in neither, so they hold on a busy machine too. `speedup`: of two threads on two
    processors of their own, if they block as much there.
    """
    seconds: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    for _ in range(rounds):
        for count, found in seconds.items():
            with ThreadPoolExecutor(count) as pool:
                parts = list(pool.map(_timed, [layouts[n::count] for n in range(count)]))
            found.append(tuple(map(sum, zip(*parts))))
    (one, _), (two, blocked) = (map(statistics.median, zip(*found)) for found in seconds.values())
    figures = {"running, 1 thread": one, "running, 2 threads": two, "blocked, 2 threads": blocked}
    return {name: round(s, 3) for name, s in figures.items()} | {"speedup": round(2 * one / (two + blocked), 2)}


def _timed(layouts) -> tuple[float, float]:
    """Seconds that this thread runs and is blocked while it loads the images (Linux only)."""
    start, before = time.perf_counter(), _scheduled()
    for layout in layouts:
        layout.load(QWEN_VISION)
    running, waiting = (now - then for now, then in zip(_scheduled(), before))
    return running, time.perf_counter() - start - running - waiting


def _scheduled() -> list[float]:
    """Seconds that this thread has run and has waited for a processor."""
    return [int(ns) / 1e9 for ns in pathlib.Path("/proc/thread-self/schedstat").read_text().split()[:2]]


def main() -> None:
    """Prints one line of JSON for each kind of image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=12, help="batches of four rows")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the comparison of threads")
    args = parser.parse_args()
    budget = RowBudget.from_config(configs.load("depth").data)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        write_qwen(folder)
        settings = SampleSettings(ChatFormat.from_dir(folder), QWEN_VISION, budget)
        for name, table in (("photographs", photographs()), ("grey images", depth_mixture(folder))):
            found = measure(table, settings, args.batches)
            layouts = found.pop("layouts")
            print(json.dumps({"images": name, **found, **threads(layouts, args.rounds)}), flush=True)


if __name__ == "__main__":
    main()
