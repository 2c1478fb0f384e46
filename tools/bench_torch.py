r"""Our training step beside transformers + torch AdamW: one model, the same samples, both sides in one run on a CPU.

    python tools/bench_torch.py                      (about seven minutes on two idle cores; needs the test extra)
    python tools/bench_torch.py --samples 16 --scale 0.125

The model: text 8 x 512 (8 heads, 4 kv heads, mlp 1,536), vision 6 x 384, vocabulary 8,192; float32. The samples: one
image and --text text tokens each, a tenth of them supervised. Images have the sizes of the paper's depth mixture at
focal length 1000 (858 to 1,300 visual tokens), sides scaled by --scale. There: batches of --batch, padded to the
longest, sdpa attention, logits of all tokens, as transformers trains. Here: packed rows, one for each core, attention
by pairs of blocks, head on the supervised positions, cheap activations made again.

The two sides take turns, so that what else the machine does slows both. Both get huge pages for large arrays: without
them page faults take a good part of the time on either side.
"""

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
import types

import bench_train
import jax
import jax.numpy as jnp
import numpy as np
import torch
from random_inputs import image_plan, random_patches, supervised_sample, torch_model, vision_spec

from vlm3_jax import flops
from vlm3_jax.checkpoint import hf
from vlm3_jax.data.image import VisionSpec
from vlm3_jax.data.packing import RowBudget, fits, needs, pack
from vlm3_jax.data.samples import Sample
from vlm3_jax.data.video import still_patches
from vlm3_jax.model.config import VLMConfig
from vlm3_jax.model.sizes import released
from vlm3_jax.model.vlm import REMAT
from vlm3_jax.train import mesh as meshes
from vlm3_jax.train import optimizer as optimizers
from vlm3_jax.train import step as steps

# What bench_train times, at a constant rate as torch's optimizer has it here.
OPTIMIZER = types.SimpleNamespace(**vars(bench_train.OPTIMIZER) | {"schedule": "constant", "warmup": 0.0})
# Read when a process starts, and set unless it is.
HUGE_PAGES = ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
ASPECTS = (4 / 3, 3 / 2, 16 / 9)


def make_samples(cfg: VLMConfig, spec: VisionSpec, count: int, scale: float, text: int, rng) -> list[Sample]:
    """`count` samples with image sizes of the depth mixture, sides scaled; ten answers, a tenth of the text."""
    visual = rng.uniform(858, 1300, count) * scale**2
    plans = [image_plan(spec, v, ASPECTS[i % len(ASPECTS)]) for i, v in enumerate(visual)]
    return [supervised_sample(cfg, plan, rng, text, text // 10, 10) for plan in plans]


def make_rows(samples, budget) -> list[list[int]]:
    """Numbers of the samples of each row, in order: a row ends where the next sample does not fit."""
    rows: list[list[int]] = [[]]
    for number in range(len(samples)):
        if rows[-1] and not fits([samples[i] for i in [*rows[-1], number]], budget):
            rows.append([])
        rows[-1].append(number)
    return rows


def fullest(cfg: VLMConfig, samples, block: int, most: int, devices: int) -> tuple[RowBudget, list[list[int]]]:
    """The budget of at most `most` tokens a row with the least work for all samples, and the samples of each row."""

    def taken(rows, budget):
        return [needs([samples[i] for i in row], budget) for row in rows]

    def rounded(values):
        return -(-max(values) // block) * block

    found: dict[tuple[int, int], tuple[float, list[list[int]]]] = {}
    visual = max(s.n_patches / len(s.tokens) for s in samples)
    for tokens in range(rounded(len(s.tokens) for s in samples), most + 1, block):
        for patches in range(rounded(s.n_patches for s in samples), int(tokens * visual) + block, block):
            rows = make_rows(samples, RowBudget(tokens, patches, tokens))
            full = taken(rows, RowBudget(tokens, patches, tokens))
            size = rounded(n.tokens for n in full), rounded(n.patches for n in full)
            work = flops.training(cfg, flops.Lengths(*size, max(n.targets for n in full), 0, 0))
            found[size] = -(-len(rows) // devices) * work, rows
    tokens, patches = min(found, key=lambda size: found[size][0])
    rows = found[tokens, patches][1]
    loose = RowBudget(tokens, patches, tokens, pair_block=block, pairs=10**6, patch_pairs=10**6)
    full = taken(rows, loose)
    budget = RowBudget(
        tokens, patches, max(n.targets for n in full),
        pair_block=block, pairs=max(n.pairs for n in full), patch_pairs=max(n.patch_pairs for n in full),
    )  # fmt: skip
    return budget, rows


def our_batches(samples, pixels, rows, budget, spec) -> tuple[list[dict], list[int]]:
    """Batches with a row for each device (the last filled up with empty rows), and the samples in each."""
    batches, counts = [], []
    for i in range(0, len(rows), jax.device_count()):
        group = rows[i : i + jax.device_count()]
        group += [[]] * (jax.device_count() - len(group))
        shown = [[[pixels[j]] for j in row] for row in group]
        batches.append(pack([[samples[j] for j in row] for row in group], shown, budget, spec))
        counts.append(sum(map(len, group)))
    return batches, counts


def their_batch(samples, pixels, cfg: VLMConfig, spec: VisionSpec) -> dict:
    """The usual batch: padded to the longest, labels -100 except on supervised tokens."""
    longest = max(len(s.tokens) for s in samples)
    ids, mask = np.zeros((len(samples), longest), np.int64), np.zeros((len(samples), longest), np.int64)
    labels = np.full(ids.shape, -100)
    for row, s in enumerate(samples):
        n = len(s.tokens)
        ids[row, :n], mask[row, :n] = s.tokens, 1
        labels[row, s.target_slot + 1] = s.target_tokens
    ids = torch.from_numpy(ids)
    return {
        "input_ids": ids,
        "attention_mask": torch.from_numpy(mask),
        "labels": torch.from_numpy(labels),
        "mm_token_type_ids": (ids == cfg.image_token_id).int(),
        "pixel_values": torch.from_numpy(still_patches(np.concatenate(pixels), spec)),
        "image_grid_thw": torch.tensor([[1, *s.images[0].grid] for s in samples]),
    }


def their_step(model):
    """batch -> loss, after an update by torch's AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5.5e-5, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)

    def step(batch) -> float:
        model.model.rope_deltas = None
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.02)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def our_step(cfg, params, batch, remat: str):
    """((batch, samples in it) -> loss, after an update; seconds of compiling).

    Every core is a device with rows of its own: what XLA runs on one thread then runs on all of them.
    """
    mesh, tx = meshes.make_mesh(replica=jax.device_count(), fsdp=1), optimizers.make(cfg, OPTIMIZER)
    step = steps.make_step(cfg, tx, OPTIMIZER, mesh, total_samples=10**9, groups=2, dtype=jnp.float32, remat=remat)
    state, sharding = steps.create_state(cfg, params, tx, mesh), meshes.batch_sharding(mesh)
    start = time.perf_counter()
    compiled = step.lower(state, meshes.put_batch(batch, sharding), np.int32(1)).compile()

    def call(batch, count: int) -> float:
        nonlocal state
        state, metrics = compiled(state, meshes.put_batch(batch, sharding), np.int32(count))
        jax.block_until_ready(state)
        return float(metrics["loss"])

    return call, time.perf_counter() - start


def in_turn(ours, theirs, product) -> tuple[list[float], list[float]]:
    """Seconds of the calls of either side, which take turns; `product` is called after each pair."""
    seconds: tuple[list[float], list[float]] = [], []
    for number, calls in enumerate(itertools.zip_longest(ours, theirs)):
        for call, taken in zip(calls, seconds):
            if call:
                start = time.perf_counter()
                call()
                taken.append(time.perf_counter() - start)
        product()
        print(f"batch {number}: {', '.join(f'{x[-1]:.1f} s' for x in seconds)}", file=sys.stderr, flush=True)
    return seconds


class Products:
    """FLOP/s of a float32 product in jax and in torch: the best of all that were tried."""

    def __init__(self, size: int = 2048):
        self.count, self.best = 2 * size**3, [0.0, 0.0]
        a, x, product = torch.ones(size, size), jnp.ones((size, size)), jax.jit(lambda a, b: a @ b)
        self.calls = (lambda: product(x, x).block_until_ready()), (lambda: a @ a)

    def __call__(self) -> None:
        """Tries each five times."""
        for side, call in enumerate(self.calls):
            for _ in range(5):
                start = time.perf_counter()
                call()
                self.best[side] = max(self.best[side], self.count / (time.perf_counter() - start))


def padded_lengths(batch) -> flops.Lengths:
    """What a padded batch is counted to need: the padding and logits of all tokens too, and of each image its own."""
    tokens, width = batch["input_ids"].numel(), batch["input_ids"].shape[1]
    vision_pairs = sum((g[1] * g[2]) ** 2 for g in batch["image_grid_thw"].tolist())
    return flops.Lengths(tokens, len(batch["pixel_values"]), tokens, tokens * width / 2, vision_pairs)


def fill(batches, name: str) -> float:
    """Share of the places of rows that are used."""
    return float(sum((b[name] > 0).sum() for b in batches) / sum(b[name].size for b in batches))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, text in (
        ("samples", 64, "samples in all"),
        ("batch", 8, "samples of a padded batch"),
        ("text", 400, "text tokens of a sample"),
        ("tokens", 3072, "largest row of ours, tokens"),
        ("block", 128, "block of our attention"),
        ("threads", 2, "threads of torch, and devices of jax"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} ({default})")
    parser.add_argument("--scale", type=float, default=0.5, help="scale of the images' sides (0.5)")
    parser.add_argument("--remat", choices=REMAT, default="minimal", help="train.remat (minimal)")
    return parser.parse_args()


def main() -> None:
    """Both sides, one line of JSON."""
    args = arguments()
    torch.set_num_threads(args.threads)
    jax.config.update("jax_num_cpu_devices", args.threads)
    cfg, rng = released("cpu"), np.random.default_rng(0)
    spec = vision_spec(cfg)
    samples = make_samples(cfg, spec, args.samples, args.scale, args.text, rng)
    pixels = [random_patches(spec, s.images[0], rng) for s in samples]

    budget, rows = fullest(cfg, samples, args.block, args.tokens, args.threads)
    ours, counts = our_batches(samples, pixels, rows, budget, spec)
    groups = [range(i, min(i + args.batch, len(samples))) for i in range(0, len(samples), args.batch)]
    theirs = [their_batch([samples[i] for i in g], [pixels[i] for i in g], cfg, spec) for g in groups]

    with tempfile.TemporaryDirectory() as folder:
        model = torch_model(cfg, "sdpa")
        model.save_pretrained(folder)
        _, params = hf.load(folder)
    products, (run_ours, compile_s) = Products(), our_step(cfg, params, ours[0], args.remat)
    run_theirs, losses = their_step(model), ([], [])
    # A turn is one batch of ours, and as many of theirs as hold the same number of samples.
    turn = -(-len(theirs) // len(ours))
    seconds = in_turn(
        [lambda b=b, n=n: losses[0].append(run_ours(b, n)) for b, n in zip(ours, counts)],
        [
            lambda part=theirs[i : i + turn]: losses[1].extend(run_theirs(b) for b in part)
            for i in range(0, len(theirs), turn)
        ],
        products,
    )
    # The first turn of either side warms it up.
    timed = sum(counts[1:]), sum(map(len, groups[turn:]))
    needed = [flops.lengths(b) for b in ours[1:]], [padded_lengths(b) for b in theirs[turn:]]
    per_s = [n / sum(s[1:]) for n, s in zip(timed, seconds)]
    rates = [sum(flops.training(cfg, n) for n in side) / sum(s[1:]) for side, s in zip(needed, seconds)]
    ratio_of_products = products.best[0] / products.best[1]
    print(
        json.dumps(
            {
                "samples_per_s": {"ours": per_s[0], "theirs": per_s[1]},
                "ratio": per_s[0] / per_s[1],
                "gflop_per_s": {"ours": rates[0] / 1e9, "theirs": rates[1] / 1e9},
                "matmul_gflop_per_s": {"jax": products.best[0] / 1e9, "torch": products.best[1] / 1e9},
                "ratio_on_equal_flops_over_matmul_ratio": rates[0] / rates[1] / ratio_of_products,
                "first_loss": {"ours": losses[0][0], "theirs": losses[1][0]},
                "tokens": [int(min(len(s.tokens) for s in samples)), int(max(len(s.tokens) for s in samples))],
                "patches": [min(s.n_patches for s in samples), max(s.n_patches for s in samples)],
                "rows": [len(rows), budget.tokens, budget.patches], "pairs": [budget.pairs, budget.patch_pairs],
                "token_fill": fill(ours, "segments"), "patch_fill": fill(ours, "patch_images"), "compile_s": compile_s,
                "seconds": {"ours": seconds[0], "theirs": seconds[1]},
            },
            indent=2,
        )
    )  # fmt: skip


if __name__ == "__main__":
    name, value = HUGE_PAGES
    if name not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {name: value})
    main()
