"""The two sides of bench_torch.py; it starts this file once for each, as a process that takes its turns on demand.

A side writes one line of JSON about itself when it is ready, and answers every line it reads ("turn N" or "product")
with another: the seconds and the loss of the turn, or the FLOP/s of a product of two matrices.
"""

import argparse
import json
import sys
import time
import types

import bench_train
import jax
import jax.numpy as jnp
import numpy as np
import torch
from random_inputs import random_layout, random_patches, supervised_sample, torch_model

from vlm3_jax.checkpoint import hf
from vlm3_jax.data.packing import RowBudget, fits, needs, pack
from vlm3_jax.data.samples import Sample
from vlm3_jax.model import flops
from vlm3_jax.model.config import VLMConfig
from vlm3_jax.model.sizes import released
from vlm3_jax.parallel import mesh as meshes
from vlm3_jax.processor.image import VisionSpec
from vlm3_jax.processor.video import still_patches
from vlm3_jax.train import optimizer as optimizers
from vlm3_jax.train import step as steps

# What bench_train times, at a constant rate as torch's optimizer has it here.
OPTIMIZER = types.SimpleNamespace(**vars(bench_train.OPTIMIZER) | {"schedule": "constant", "warmup": 0.0})
ASPECTS = (4 / 3, 3 / 2, 16 / 9)
# Side of the matrices whose product is timed.
PRODUCT = 2048


def make_samples(cfg: VLMConfig, spec: VisionSpec, count: int, scale: float, text: int, rng) -> list[Sample]:
    """`count` samples with image sizes of the depth mixture, sides scaled; ten answers, a tenth of the text."""
    visual = rng.uniform(858, 1300, count) * scale**2
    layouts = [random_layout(spec, v, ASPECTS[i % len(ASPECTS)]) for i, v in enumerate(visual)]
    return [supervised_sample(cfg, layout, rng, text, text // 10, 10) for layout in layouts]


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


def padded_lengths(batch) -> flops.Lengths:
    """What a padded batch is counted to need: the padding and logits of all tokens too, and of each image its own."""
    tokens, width = batch["input_ids"].numel(), batch["input_ids"].shape[1]
    vision_pairs = sum((g[1] * g[2]) ** 2 for g in batch["image_grid_thw"].tolist())
    return flops.Lengths(tokens, len(batch["pixel_values"]), tokens, tokens * width / 2, vision_pairs)


def fill(batches, name: str) -> float:
    """Share of the places of rows that are used."""
    return float(sum((b[name] > 0).sum() for b in batches) / sum(b[name].size for b in batches))


class Ours:
    """Packed rows, one for each core."""

    def __init__(self, args: argparse.Namespace, cfg: VLMConfig, spec: VisionSpec, samples, pixels):
        jax.config.update("jax_num_cpu_devices", args.threads)
        _, params = hf.load(args.model)
        budget, rows = fullest(cfg, samples, args.block, args.tokens, args.threads)
        self.batches, self.counts = our_batches(samples, pixels, rows, budget, spec)
        self.step, compile_s = our_step(cfg, params, self.batches[0], args.remat)
        self.flops = [flops.training(cfg, flops.lengths(b)) for b in self.batches]
        self.told = {
            "rows": [len(rows), budget.tokens, budget.patches],
            "pairs": [budget.pairs, budget.patch_pairs],
            "token_fill": fill(self.batches, "segments"),
            "patch_fill": fill(self.batches, "patch_images"),
            "compile_s": compile_s,
        }
        x, product = jnp.ones((PRODUCT, PRODUCT)), jax.jit(lambda a, b: a @ b)
        self.product = lambda: product(x, x).block_until_ready()

    def turn(self, number: int) -> float:
        """The loss of a batch."""
        return self.step(self.batches[number], self.counts[number])


class Theirs:
    """Batches padded to the longest."""

    def __init__(self, args: argparse.Namespace, cfg: VLMConfig, spec: VisionSpec, samples, pixels):
        torch.set_num_threads(args.threads)
        model = torch_model(cfg, "sdpa")
        model.save_pretrained(args.model)
        groups = [range(i, min(i + args.batch, len(samples))) for i in range(0, len(samples), args.batch)]
        self.batches = [their_batch([samples[i] for i in g], [pixels[i] for i in g], cfg, spec) for g in groups]
        self.counts = [len(g) for g in groups]
        self.flops = [flops.training(cfg, padded_lengths(b)) for b in self.batches]
        self.step, self.told = their_step(model), {}
        a = torch.ones(PRODUCT, PRODUCT)
        self.product = lambda: a @ a

    def turn(self, number: int) -> float:
        """The loss of a batch."""
        return self.step(self.batches[number])


def rate_of_products(product, times: int = 5) -> float:
    """FLOP/s of the fastest of some float32 products."""

    def seconds() -> float:
        start = time.perf_counter()
        product()
        return time.perf_counter() - start

    return 2 * PRODUCT**3 / min(seconds() for _ in range(times))


def main() -> None:
    """Makes a side ready and does what the lines say."""
    args = argparse.Namespace(**json.loads(sys.argv[1]))
    answers, sys.stdout = sys.stdout, sys.stderr

    def tell(value) -> None:
        print(json.dumps(value), file=answers, flush=True)

    cfg, rng = released("cpu"), np.random.default_rng(0)
    spec = VisionSpec.of(cfg)
    samples = make_samples(cfg, spec, args.samples, args.scale, args.text, rng)
    pixels = [random_patches(spec, s.images[0], rng) for s in samples]
    side = {"ours": Ours, "theirs": Theirs}[args.side](args, cfg, spec, samples, pixels)
    lengths = [len(s.tokens) for s in samples]
    patches = [s.n_patches for s in samples]
    sizes = {"tokens": [min(lengths), max(lengths)], "patches": [min(patches), max(patches)]}
    tell({"counts": side.counts, "flops": side.flops, "told": side.told | sizes})
    for line in sys.stdin:
        what, *number = line.split()
        if what == "product":
            tell(rate_of_products(side.product))
        else:
            start = time.perf_counter()
            loss = side.turn(int(number[0]))
            tell([time.perf_counter() - start, loss])


if __name__ == "__main__":
    main()
