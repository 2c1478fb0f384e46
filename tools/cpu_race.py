"""Shows sums that come out wrong on CPUs, with jax alone; or trains the demo's first steps again and again.

On two cores:

    python tools/cpu_race.py                          # jax alone, as it comes: some calls are wrong
    python tools/cpu_race.py --fixed                  # with the flag that `import vlm3_jax` sets: none
    python tools/cpu_race.py --step --repeats 8       # the demo's first steps, same seed and data: all equal
    XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type=+reduce python tools/cpu_race.py --step    # without the flag

docs/cpu_race.md says what was seen. Exit code 1 if anything was wrong or differed.
"""

import argparse
import collections
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent


def wrong_sums(calls: int) -> int:
    """How many of `calls` sums over an array and its copy, a broadcast axis, are off by more than rounding."""
    import jax
    import jax.numpy as jnp

    x = np.random.default_rng(0).standard_normal((768, 512), np.float32)
    total = jax.jit(lambda x: jnp.sum(jnp.square(jnp.broadcast_to(x, (2, 768, 512)))))
    right = 2 * np.square(x, dtype=np.float64).sum()
    values = collections.Counter(float(total(x)) for _ in range(calls))
    wrong = {value: times for value, times in values.items() if abs(value - right) > 1e-5 * right}
    for value, times in sorted(wrong.items(), key=lambda item: -item[1])[:5]:
        print(f"  {times} times {value / right:.4f} of what is right")
    print(f"{sum(wrong.values())} of {calls} sums are wrong; jax {jax.__version__}, {os.cpu_count()} cores")
    return sum(wrong.values())


def different_runs(repeats: int, steps: int, devices: int) -> int:
    """How many of `repeats` runs of the demo's first `steps` steps differ from the most frequent one.

    Compared are loss and gradient norm of every step. One process, seed and data; each run has a workdir of its own.
    """
    import jax

    jax.config.update("jax_num_cpu_devices", devices)
    from vlm3_jax import config as configs
    from vlm3_jax.train.loop import train

    runs = []
    with tempfile.TemporaryDirectory() as folder:
        # Compiled once for all runs.
        jax.config.update("jax_compilation_cache_dir", folder)
        scenes = pathlib.Path(folder) / "scenes"
        size = ["--count=96", "--width=128", "--height=96", "--focal=128"]
        command = [sys.executable, "-m", "vlm3_jax.cli", "data", "build", f"--out={scenes}", *size]
        paths = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": paths})
        for number in range(repeats):
            config = configs.load("demo")
            config.workdir, config.seed = f"{folder}/{number}", 3
            config.mesh.cpu_devices, config.mesh.replica, config.mesh.fsdp = devices, devices, 1
            for component in config.data.components.values():
                component.path = str(scenes)
            config.eval.components = {}
            config.train.max_steps, config.train.save_every, config.train.export = steps, 10 * steps, ""
            if not train(config.lock()):
                # What is complete still tells something.
                print(f"stopped in run {number}: {len(runs)} complete runs are compared")
                break
            rows = [json.loads(line) for line in pathlib.Path(config.workdir, "metrics.jsonl").read_text().splitlines()]
            runs.append(tuple((row["loss"], row["grad_norm"]) for row in rows if "grad_norm" in row))
    for number, values in enumerate(zip(*runs, strict=True), 1):
        found = collections.Counter(values).most_common(3)
        if len(found) > 1:
            print(f"  step {number}: (loss, gradient norm), times: {found}")
    if not runs:
        return 1
    print(f"{len(set(runs))} different runs of {len(runs)}; {steps} steps, {devices} devices, jax {jax.__version__}")
    return len(runs) - collections.Counter(runs).most_common(1)[0][1]


def main() -> int:
    """Runs what the command line asks for; 1 if something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1000, help="sums to compute")
    parser.add_argument("--fixed", action="store_true", help="import vlm3_jax first")
    parser.add_argument("--step", action="store_true", help="step the demo instead")
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--devices", type=int, default=1, help="CPU devices")
    args = parser.parse_args()
    if args.fixed or args.step:
        import checkout  # noqa: F401

        import vlm3_jax  # noqa: F401
    bad = different_runs(args.repeats, args.steps, args.devices) if args.step else wrong_sums(args.calls)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
