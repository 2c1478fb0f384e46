r"""Reading records from a bucket that is far away: records a second, and how long the loader waits.

Needs the test extra.

    python tools/bench_storage.py                    (two minutes)

A real server (fake-gcs-server for gs://, moto for s3://) on this machine behind a proxy that delays everything by
--latency-ms there and back. Shards of --records records of --kilobytes each (random bytes, so nothing compresses).
"readers": random reads by so many threads, by our reader in --rounds and once by each of ArrayRecord's own; `alone_ms`
is what one read takes while there are no others. "loader": the whole loader (256 x 256 pixels, PNG, ten questions) with
so many --workers in front of somebody who takes --rate samples a second; `waited_share` is the share of the time for
which he waits. The last lines are the gates, held or not; so is the exit code. Ctrl-C ends it with what it has.
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), *(str(ROOT / "tests" / part) for part in ("", "data", "storage"))]

import gates  # noqa: E402
import servers  # noqa: E402
from array_record.python.array_record_module import ArrayRecordReader  # noqa: E402
from small_data import QWEN_VISION, Opened, loader_of, write_shard  # noqa: E402

from vlm3_jax import records, storage  # noqa: E402
from vlm3_jax.camera import Camera  # noqa: E402
from vlm3_jax.data.component import SampleSettings  # noqa: E402
from vlm3_jax.data.packing import RowBudget  # noqa: E402
from vlm3_jax.data.sources.ranged_shard import RangedShard  # noqa: E402
from vlm3_jax.storage import buckets  # noqa: E402

GATES = {"records_per_s": (">=", 300), "waited_share": ("<=", 0.02)}
OURS = "ranges"
# Batches prepared ahead, as by default.
PREFETCH = 2
NATIVE = {
    "array_record, 32 kB buffer": {"options": "readahead_buffer_size:0", "file_reader_buffer_size": 32768},
    "array_record, 1 MB buffer": {"options": "readahead_buffer_size:0", "file_reader_buffer_size": 2**20},
}


def write(folder: pathlib.Path, count: int, size: int, images: bool) -> pathlib.Path:
    """A shard of records of about `size` bytes, with a picture of noise if they are to be decoded."""
    rng = np.random.default_rng(0)

    def item(number):
        if not images:
            return rng.bytes(size)
        pixels = rng.integers(0, 256, (256, 256, 3), np.uint8)
        view = records.View(records.encode_image(pixels, str(number)), Camera(1000.0, 1000.0, 128.0, 128.0, 256, 256))
        points = records.DepthPoints(rng.integers(0, 256, (40, 2)), rng.uniform(1, 9, 40), "z")
        return records.Record(f"r{number}", (view,), depth=(points,))

    path = folder / ("images.array_record" if images else "bytes.array_record")
    write_shard(path, map(item, range(count)))
    return path


def readers(open_shard, count: int, threads: int, seconds: float) -> dict:
    """Records a second of random reads, and the median and 99th percentile of how long one takes."""
    shard, rng = open_shard(), np.random.default_rng(1)
    order, took, alone = rng.permutation(count), [], []
    for position in order[:20].tolist():
        start = time.perf_counter()
        shard.read([position])
        alone.append(time.perf_counter() - start)
    end = time.perf_counter() + seconds

    def read(worker):
        for turn in range(10**9):
            start = time.perf_counter()
            if start > end:
                return
            shard.read([int(order[(worker + turn * threads) % count])])
            took.append(time.perf_counter() - start)

    start, used = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, range(threads)))
    wall = time.perf_counter() - start
    return {
        "records_per_s": round(len(took) / wall),
        "alone_ms": round(1e3 * statistics.median(alone), 1),
        "median_ms": round(1e3 * float(np.median(took)), 1),
        "p99_ms": round(1e3 * float(np.percentile(took, 99)), 1),
        "cpu_ms_per_record": round(1e3 * (time.process_time() - used) / max(1, len(took)), 2),
    }


def loader(path: str, model: pathlib.Path, rate: float, seconds: float, workers: int) -> dict:
    """The share of the time that a consumer of `rate` samples a second waits for the loader."""
    from qwen_reference import write_qwen

    from vlm3_jax.processor.chat import ChatFormat

    if not model.is_dir():
        write_qwen(model)
    budget = RowBudget(tokens=4096, patches=8192, targets=1024)
    settings = SampleSettings(ChatFormat.from_dir(model), QWEN_VISION, budget)
    table = {"far": {"kind": "records", "path": path, "task": "depth", "protocol": "short", "questions": 10}}
    begun = time.perf_counter()
    with loader_of(Opened(table, settings, 2), settings, workers=workers, prefetch=PREFETCH) as batches:
        # Until as many batches have come as are prepared ahead the pipeline fills: a run's first second, told apart.
        for _ in range(PREFETCH + 2):
            time.sleep(next(batches).samples / rate)
        waited, samples, start = 0.0, 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            before = time.perf_counter()
            samples += next(batches).samples
            waited += time.perf_counter() - before
            # What training would take for them.
            time.sleep(max(0.0, start + samples / rate - time.perf_counter()))
        wall = time.perf_counter() - start
    shares = {"samples_per_s": round(samples / wall, 1), "waited_share": round(waited / wall, 4)}
    return {**shares, "filled_s": round(start - begun, 1), "workers": workers}


def main() -> None:
    """Prints one line of JSON for each way of reading, and for each gate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scheme", choices=buckets.SCHEMES, default="gs")
    parser.add_argument("--latency-ms", type=float, default=20)
    parser.add_argument("--records", type=int, default=512)
    parser.add_argument("--kilobytes", type=int, default=200)
    parser.add_argument("--threads", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rate", type=float, default=50)
    parser.add_argument("--rounds", type=int, default=3, help="of the readers")
    parser.add_argument("--workers", type=int, nargs="+", default=[4, 32], help="of the loader")
    parser.add_argument("--only", default="", help="ways of reading whose name holds this")
    args = parser.parse_args()
    gates.run(GATES, lambda values: measure(args, values))


def measure(args, values: dict[str, float]) -> None:
    """Prints the lines; the median of our readers' rounds and the worst of the loaders into `values`."""
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "REGION"):
        os.environ.setdefault(f"AWS_{name}", "us-east-1")
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = servers.free_port()
        server = stack.enter_context(servers.gcs(port) if args.scheme == "gs" else servers.s3())
        url = stack.enter_context(servers.far(server, args.latency_ms / 1e3, port))
        names = ("STORAGE_EMULATOR_HOST", "CLOUD_STORAGE_EMULATOR_ENDPOINT", "TENSORSTORE_GCS_HTTP_URL")
        os.environ.update(dict.fromkeys(names if args.scheme == "gs" else ("AWS_ENDPOINT_URL",), url))
        ways = {}
        for images in (False, True):
            local = write(folder, args.records, 1000 * args.kilobytes, images)
            (storage.path(f"{args.scheme}://lab") / local.name).upload(local)
        far = storage.path(f"{args.scheme}://lab/bytes.array_record")
        ways[OURS] = lambda: RangedShard(far)
        for name, options in NATIVE.items() if args.scheme == "gs" else ():
            ways[name] = lambda options=options: ArrayRecordReader(str(far), **options)
        said = {"scheme": args.scheme, "latency_ms": args.latency_ms, "kilobytes": args.kilobytes}
        rates = []
        print(json.dumps({"cpus": os.cpu_count(), "load": [round(load, 2) for load in os.getloadavg()]}), flush=True)
        for name, way in ways.items():
            for _ in range(args.rounds if name == OURS else 1) if args.only in name else ():
                found = readers(way, args.records, args.threads, args.seconds)
                if name == OURS:
                    rates.append(found["records_per_s"])
                    values["records_per_s"] = statistics.median(rates)
                print(json.dumps({"readers": name, **said, "threads": args.threads, **found}), flush=True)
        for workers in args.workers if args.only in "loader" else ():
            path = f"{args.scheme}://lab/images.array_record"
            found = loader(path, folder / "model", args.rate, args.seconds, workers)
            values["waited_share"] = max(values.get("waited_share", 0.0), found["waited_share"])
            print(json.dumps({"loader": path, **said, "rate": args.rate, **found}), flush=True)


if __name__ == "__main__":
    main()
