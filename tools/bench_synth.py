"""Measure how many synthetic images a second one process makes (labels and PNG encoding included).

python tools/bench_synth.py [--seconds 10] [--size 160x120 --size 640x480]
"""

import argparse
import platform
import time

from vlm3_jax.records import to_bytes
from vlm3_jax.synth import SynthOptions, record


def measure(options: SynthOptions, seconds: float, seed: int = 0) -> dict[str, float]:
    """Images (two a record) a second of processor time and of wall time, mean bytes of a record, records made."""
    record(seed, 0, options)
    start, used, made, size = time.perf_counter(), time.process_time(), 0, 0
    while time.perf_counter() - start < seconds or made == 0:
        made += 1
        size += len(to_bytes(record(seed, made, options)))
    wall, cpu = time.perf_counter() - start, time.process_time() - used
    return {"per_core": 2 * made / cpu, "per_wall": 2 * made / wall, "bytes": size / made, "records": made}


def main():
    """Parse the flags and print a line a size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to measure each size (default 10)")
    parser.add_argument("--size", action="append", metavar="WxH", help="image size; repeatable (160x120 and 640x480)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the data set (default 0)")
    args = parser.parse_args()
    print(f"one process, {platform.machine()}, Python {platform.python_version()}")
    for size in args.size or ["160x120", "640x480"]:
        width, height = map(int, size.lower().split("x"))
        options = SynthOptions(width=width, height=height, focal_px=float(width))
        result = measure(options, args.seconds, args.seed)
        print(
            f"{size}: {result['per_core']:.1f} images/s per core ({result['per_wall']:.1f} by the wall clock), "
            f"{result['bytes'] / 1024:.0f} KiB a record, {result['records']} records"
        )


if __name__ == "__main__":
    main()
