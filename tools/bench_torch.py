r"""Our training step beside transformers + torch AdamW: one model, the same samples, both sides in one run on a CPU.

    python tools/bench_torch.py                      (about ten minutes on two idle cores; needs the test extra)
    python tools/bench_torch.py --samples 16 --scale 0.125

The model: text 8 x 512 (8 heads, 4 kv heads, mlp 1,536), vision 6 x 384, vocabulary 8,192; float32. The samples: one
image and --text text tokens each, a tenth of them supervised. Images have the sizes of the paper's depth mixture at
focal length 1000 (858 to 1,300 visual tokens), sides scaled by --scale. There: batches of --batch, padded to the
longest, sdpa attention, logits of all tokens, as transformers trains. Here: packed rows, one for each core, attention
by pairs of blocks, head on the supervised positions.
"""

import argparse
import json
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
from vlm3_jax.train import mesh as meshes
from vlm3_jax.train import optimizer as optimizers
from vlm3_jax.train import step as steps

# What bench_train times, at a constant rate as torch's optimizer has it here.
OPTIMIZER = types.SimpleNamespace(**vars(bench_train.OPTIMIZER) | {"schedule": "constant", "warmup": 0.0})
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


def fullest(samples, block: int, most: int) -> tuple[RowBudget, list[list[int]]]:
    """The row of at most `most` tokens that the samples fill best, and the samples of each row."""
    visual = max(s.n_patches / len(s.tokens) for s in samples)
    longest = max(len(s.tokens) for s in samples)

    def rows_of(tokens):
        patches = -(-int(tokens * visual) // block) * block
        return make_rows(samples, RowBudget(tokens, patches, tokens))

    tokens = min(range(-(-longest // block) * block, most + 1, block), key=lambda size: len(rows_of(size)) * size)
    rows = rows_of(tokens)
    loose = RowBudget(tokens, 10**4 * block, tokens, pair_block=block, pairs=10**6, patch_pairs=10**6)
    taken = [needs([samples[i] for i in row], loose) for row in rows]
    budget = RowBudget(
        tokens, -(-max(t.patches for t in taken) // block) * block, max(t.targets for t in taken),
        pair_block=block, pairs=max(t.pairs for t in taken), patch_pairs=max(t.patch_pairs for t in taken),
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


def run_theirs(model, batches) -> tuple[float, float]:
    """(seconds of all batches but the first, loss of the first)."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5.5e-5, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    first = start = None
    for batch in batches:
        model.model.rope_deltas = None
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.02)
        optimizer.step()
        optimizer.zero_grad()
        if first is None:
            first, start = loss.item(), time.perf_counter()
    return time.perf_counter() - start, first


def run_ours(cfg, params, batches, counts) -> tuple[float, float, float]:
    """(seconds of all batches but the first, loss of the first, seconds of compiling).

    Every core is a device with rows of its own: what XLA runs on one thread then runs on all of them.
    """
    mesh, tx = meshes.make_mesh(replica=jax.device_count(), fsdp=1), optimizers.make(cfg, OPTIMIZER)
    step = steps.make_step(cfg, tx, OPTIMIZER, mesh, total_samples=10**9, groups=2, dtype=jnp.float32, remat="none")
    state, sharding = steps.create_state(cfg, params, tx, mesh), meshes.batch_sharding(mesh)
    start = time.perf_counter()
    compiled = step.lower(state, meshes.put_batch(batches[0], sharding), np.int32(1)).compile()
    compile_s, first = time.perf_counter() - start, None
    for batch, count in zip(batches, counts):
        state, metrics = compiled(state, meshes.put_batch(batch, sharding), np.int32(count))
        if first is None:
            first, start = float(metrics["loss"]), time.perf_counter()
    jax.block_until_ready(state)
    return time.perf_counter() - start, first, compile_s


def matmul_rates(size: int = 2048) -> tuple[float, float]:
    """FLOP/s of a float32 product in torch and in jax, best of five."""
    a, x = torch.ones(size, size), jnp.ones((size, size))
    product = jax.jit(lambda a, b: a @ b)
    product(x, x).block_until_ready()

    def best(call):
        times = []
        for _ in range(5):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return 2 * size**3 / min(times)

    return best(lambda: a @ a), best(lambda: product(x, x).block_until_ready())


def main() -> None:
    """Both sides, one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, text in (
        ("samples", 64, "samples in all"),
        ("batch", 4, "samples of a padded batch"),
        ("text", 400, "text tokens of a sample"),
        ("tokens", 3072, "largest row of ours, tokens"),
        ("block", 128, "block of our attention"),
        ("threads", 2, "threads of torch, and devices of jax"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} ({default})")
    parser.add_argument("--scale", type=float, default=0.5, help="scale of the images' sides (0.5)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    jax.config.update("jax_num_cpu_devices", args.threads)
    cfg, rng = released("cpu"), np.random.default_rng(0)
    spec = vision_spec(cfg)
    samples = make_samples(cfg, spec, args.samples, args.scale, args.text, rng)
    pixels = [random_patches(spec, s.images[0], rng) for s in samples]

    budget, rows = fullest(samples, args.block, args.tokens)
    ours, counts = our_batches(samples, pixels, rows, budget, spec)
    groups = [range(i, min(i + args.batch, len(samples))) for i in range(0, len(samples), args.batch)]
    theirs = [their_batch([samples[i] for i in g], [pixels[i] for i in g], cfg, spec) for g in groups]

    with tempfile.TemporaryDirectory() as folder:
        model = torch_model(cfg, "sdpa")
        model.save_pretrained(folder)
        _, params = hf.load(folder)
    torch_rate, jax_rate = matmul_rates()
    their_s, their_loss = run_theirs(model, theirs)
    del model
    our_s, our_loss, compile_s = run_ours(cfg, params, ours, counts)
    # The same samples were in neither first batch; check the loss on ours.
    timed_ours, timed_theirs = len(samples) - counts[0], len(samples) - len(groups[0])
    useful = [flops.training(cfg, flops.lengths(b)) for b in ours]
    padded = [
        flops.Lengths(
            x["input_ids"].numel(),
            len(x["pixel_values"]),
            x["input_ids"].numel(),
            x["input_ids"].numel() * x["input_ids"].shape[1] / 2,
            sum((g[1] * g[2]) ** 2 for g in x["image_grid_thw"].tolist()),
        )
        for x in theirs
    ]
    our_rate = sum(useful[1:]) / our_s
    their_rate = sum(flops.training(cfg, n) for n in padded[1:]) / their_s
    filled = sum((batch["segments"] > 0).sum() for batch in ours) / sum(batch["segments"].size for batch in ours)
    seen = sum((batch["patch_images"] > 0).sum() for batch in ours) / sum(b["patch_images"].size for b in ours)
    print(
        json.dumps(
            {
                "samples_per_s": {"ours": timed_ours / our_s, "theirs": timed_theirs / their_s},
                "ratio": timed_ours / our_s / (timed_theirs / their_s),
                "gflop_per_s": {"ours": our_rate / 1e9, "theirs": their_rate / 1e9},
                "matmul_gflop_per_s": {"jax": jax_rate / 1e9, "torch": torch_rate / 1e9},
                "ratio_on_equal_flops_over_matmul_ratio": our_rate / their_rate / (jax_rate / torch_rate),
                "first_loss": {"ours": our_loss, "theirs": their_loss},
                "tokens": [int(min(len(s.tokens) for s in samples)), int(max(len(s.tokens) for s in samples))],
                "patches": [min(s.n_patches for s in samples), max(s.n_patches for s in samples)],
                "rows": [len(rows), budget.tokens, budget.patches], "pairs": [budget.pairs, budget.patch_pairs],
                "token_fill": float(filled), "patch_fill": float(seen), "compile_s": compile_s,
                "seconds": {"ours": our_s, "theirs": their_s},
            },
            indent=2,
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
