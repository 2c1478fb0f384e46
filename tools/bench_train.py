r"""Training speed of any size on random batches: samples/s, MFU and memory. Needs neither grain nor ml_collections.

    python tools/bench_train.py --size cpu --rows 1 --tokens 1024 --patches 2048 --visual 256 --text 200
    python tools/bench_train.py --size 4b --rows 1 --tokens 7168 --patches 16384 --visual 1102 \
        --text 1185 --dtype bfloat16 --pair-block 128

A sample is one image of about --visual tokens, then --text tokens of which --answers are supervised in --questions
turns. Useful FLOPs as in vlm3_jax/model/flops.py: no recomputation, attention by true lengths, head on supervised
positions. With --pair-block attention works through pairs of blocks, by the kernel for the device or what --attention
names.
"""

import argparse
import dataclasses
import json
import sys
import time
import types

import checkout  # noqa: F401
import jax
import jax.numpy as jnp
import numpy as np
from random_inputs import random_layout, random_patches, supervised_sample

from vlm3_jax.data.packing import RowBudget, fits, needs, pack
from vlm3_jax.model import flops
from vlm3_jax.model import params as parameters
from vlm3_jax.model.attention import BACK_ENDS
from vlm3_jax.model.config import VLMConfig
from vlm3_jax.model.sizes import NAMES, released
from vlm3_jax.model.vlm import REMAT
from vlm3_jax.parallel import mesh as meshes
from vlm3_jax.processor.image import VisionSpec
from vlm3_jax.train import optimizer as optimizers
from vlm3_jax.train import step as steps

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# Plain AdamW of the recipe (vlm3_jax/config.py needs ml_collections).
OPTIMIZER = types.SimpleNamespace(
    learning_rate=5.5e-5, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, clip=0.02,
    schedule="cosine", warmup=0.1, final=0.0, tail=0.25,
)  # fmt: skip


def random_batch(cfg: VLMConfig, args) -> tuple[dict, int]:
    """Full rows of equal samples, and how many samples they hold."""
    rng, spec = np.random.default_rng(0), VisionSpec.of(cfg)
    budget = RowBudget(
        args.tokens, args.patches, args.targets, pair_block=args.pair_block, pairs=args.pairs or 1 << 30,
        patch_pairs=args.patch_pairs or 1 << 30,
    )  # fmt: skip
    layout = random_layout(spec, args.visual)
    sample = supervised_sample(cfg, layout, rng, args.text, args.answers, args.questions)
    if not fits([sample], budget):
        raise SystemExit(f"one sample ({len(sample.tokens)} tokens, {sample.n_patches} patches) does not fit a row")
    row = [sample]
    while fits([*row, sample], budget):
        row.append(sample)
    taken = needs(row, budget)
    budget = dataclasses.replace(
        budget, pairs=args.pairs or taken.pairs, patch_pairs=args.patch_pairs or taken.patch_pairs
    )
    pixels = [[random_patches(spec, layout, rng)] for _ in row]
    batch = pack([row], [pixels], budget, spec)
    return {k: np.repeat(x, args.rows, 0) for k, x in batch.items()}, len(row) * args.rows


def random_state(cfg: VLMConfig, tx, mesh) -> steps.TrainState:
    """Random weights made on the devices themselves, each shard where it lies."""
    shardings = steps.state_shardings(cfg, tx, mesh)
    rows = parameters.table(cfg)

    def make(key):
        keys = jax.random.split(key, len(rows))
        flat = {r.path: 0.02 * jax.random.normal(k, r.shape) + (r.init == "ones") for r, k in zip(rows, keys)}
        params = parameters.nest(flat)
        zero = jnp.zeros((), jnp.int32)
        return steps.TrainState(params, tx.init(params), zero, zero)

    return jax.jit(make, out_shardings=shardings)(jax.random.key(0))


def say(text: str) -> None:
    """To stderr at once: a run that is cut short has told what it knew."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Compiles, steps and prints one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=NAMES, default="cpu")
    for name, default, text in (
        ("rows", 1, "rows of the batch"), ("tokens", 1024, "tokens of a row"), ("patches", 2048, "patches of a row"),
        ("targets", 512, "supervised tokens of a row"), ("visual", 256, "visual tokens of a sample"),
        ("text", 200, "text tokens of a sample"), ("answers", 100, "supervised tokens of a sample"),
        ("questions", 10, "turns of a sample"), ("steps", 5, "timed steps"), ("tensor", 1, "tensor axis of the mesh"),
        ("pair-block", 0, "tokens of a block in the lists of pairs; 0: attention over whole rows"),
        ("pairs", 0, "pairs of text blocks a row; 0: as many as it has"),
        ("patch-pairs", 0, "pairs of image blocks a row; 0: as many as it has"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} ({default})")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32")
    parser.add_argument("--remat", choices=REMAT, default="full")
    parser.add_argument("--attention", choices=BACK_ENDS, default="auto", help="train.attention (auto)")
    args = parser.parse_args()
    cfg = released(args.size)
    mesh = meshes.make_mesh(tensor=args.tensor)
    tx = optimizers.make(cfg, OPTIMIZER)
    back_end = meshes.back_end(mesh, args.attention)
    run = steps.make_step(
        cfg, tx, OPTIMIZER, mesh, total_samples=10**9, groups=2, dtype=DTYPES[args.dtype], remat=args.remat,
        back_end=back_end,
    )  # fmt: skip
    arrays, samples = random_batch(cfg, args)
    useful = flops.training(cfg, flops.lengths(arrays))
    batch = meshes.put_batch(arrays, meshes.batch_sharding(mesh))
    state = random_state(cfg, tx, mesh)
    start = time.perf_counter()
    compiled = run.lower(state, batch, np.int32(samples)).compile()
    compile_s, memory = time.perf_counter() - start, compiled.memory_analysis()
    sizes = [size / 2**30 for size in (memory.argument_size_in_bytes, memory.temp_size_in_bytes)]
    say(f"compiled in {compile_s:.0f} s; {sizes[0]:.1f} GiB of state and batch, {sizes[1]:.1f} GiB of temporaries")
    start = time.perf_counter()
    state, metrics = compiled(state, batch, np.int32(samples))
    jax.block_until_ready(metrics)
    say(f"first step: {time.perf_counter() - start:.3f} s, loss {float(metrics['loss']):.3f}")
    times = []
    for _ in range(args.steps):
        start = time.perf_counter()
        state, metrics = compiled(state, batch, np.int32(samples))
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - start)
        say(f"step: {times[-1]:.3f} s")
    peak, source = flops.peak(jax.devices()[0])
    median = float(np.median(times))
    print(
        json.dumps(
            {
                "size": args.size,
                "parameters": parameters.count(cfg),
                "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
                "attention": back_end.kernels(args.pair_block) or "xla",
                "samples_per_step": samples,
                "step_s": {"median": median, "min": min(times), "max": max(times)},
                "samples_per_s": samples / median,
                "useful_tflop_per_sample": useful / samples / 1e12,
                "mfu": useful / median / peak / jax.device_count(),
                "peak": f"{peak / 1e12:.2f} TFLOP/s ({source})",
                "compile_s": compile_s,
                "state_gib": sizes[0],
                "temporary_gib": sizes[1],
                "loss": float(metrics["loss"]),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
