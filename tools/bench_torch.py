r"""Our training step beside transformers + torch AdamW: one model, the same samples, both sides in one run on a CPU.

    python tools/bench_torch.py                      (about ten minutes on two idle cores; needs the test extra)
    python tools/bench_torch.py --samples 16 --scale 0.125

The model: text 8 x 512 (8 heads, 4 kv heads, mlp 1,536), vision 6 x 384, vocabulary 8,192; float32. The samples: one
image and --text text tokens each, a tenth of them supervised. Images have the sizes of the paper's depth mixture at
focal length 1000 (858 to 1,300 visual tokens), sides scaled by --scale. There: batches of --batch, padded to the
longest, sdpa attention, logits of all tokens, as transformers trains. Here: packed rows, attention by pairs of blocks,
head on the supervised positions.
"""

import argparse
import json
import math
import tempfile
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from vlm3_jax import flops
from vlm3_jax.checkpoint import hf
from vlm3_jax.data.chat import Encoding
from vlm3_jax.data.image import ImagePlan, VisionSpec
from vlm3_jax.data.packing import RowBudget, fits, needs, pack
from vlm3_jax.data.records import ImageRef
from vlm3_jax.data.samples import Sample, positions
from vlm3_jax.model.config import VLMConfig
from vlm3_jax.model.sizes import released
from vlm3_jax.train import mesh as meshes
from vlm3_jax.train import optimizer as optimizers
from vlm3_jax.train import step as steps

OPTIMIZER = types.SimpleNamespace(
    learning_rate=5.5e-5, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, clip=0.02, schedule="constant", warmup=0.0,
    final=0.0, tail=0.25,
)  # fmt: skip
ASPECTS = (4 / 3, 3 / 2, 16 / 9)


def make_samples(cfg: VLMConfig, count: int, scale: float, text: int, rng) -> list[Sample]:
    """`count` samples with image sizes of the depth mixture, sides scaled."""
    samples, v = [], cfg.vision
    for number in range(count):
        visual, aspect = rng.uniform(858, 1300) * scale**2, ASPECTS[number % len(ASPECTS)]
        rows = max(1, round(math.sqrt(visual / aspect)))
        grid = rows * v.merge_size, max(1, round(visual / rows)) * v.merge_size
        size = grid[1] * v.patch_size, grid[0] * v.patch_size
        plan = ImagePlan(ImageRef(*size, "random"), size, size, grid, v.merge_size)
        n = plan.n_visual
        tokens = rng.integers(0, cfg.image_token_id - 1, n + text).astype(np.int32)
        tokens[0], tokens[n + 1], tokens[1 : n + 1] = (
            cfg.vision_start_token_id,
            cfg.vision_end_token_id,
            cfg.image_token_id,
        )
        encoding = Encoding(tokens, np.zeros_like(tokens), ((1, n),), ())
        # Ten answers, spread over the text.
        slots = np.concatenate(
            [np.arange(n + end - text // 100, n + end) for end in np.linspace(text // 10, text, 10, dtype=int)]
        )
        samples.append(
            Sample(
                f"{number}",
                0,
                tokens,
                positions(encoding, (plan,)),
                encoding.questions,
                np.arange(1, 1 + n, dtype=np.int32),
                (plan,),
                (slots - 1).astype(np.int32),
                tokens[slots],
                np.ones(len(slots), np.float32),
                np.zeros(len(slots), bool),
            )
        )
    return samples


def make_rows(samples, budget) -> list[list[int]]:
    """Numbers of the samples of each row, in order: a row ends where the next sample does not fit."""
    rows: list[list[int]] = [[]]
    for number in range(len(samples)):
        if rows[-1] and not fits([samples[i] for i in [*rows[-1], number]], budget):
            rows.append([])
        rows[-1].append(number)
    return rows


def their_model(cfg: VLMConfig, folder) -> Qwen3VLForConditionalGeneration:
    """transformers' model of the same config with random weights, saved for our side."""
    t, v = cfg.text, cfg.vision
    rope = {
        "rope_type": "default",
        "rope_theta": t.rope_theta,
        "mrope_section": list(t.mrope_section),
        "mrope_interleaved": True,
    }
    config = Qwen3VLConfig(
        text_config=dict(
            vocab_size=t.vocab_size,
            hidden_size=t.hidden_size,
            intermediate_size=t.intermediate_size,
            head_dim=t.head_dim,
            num_hidden_layers=t.layers,
            num_attention_heads=t.heads,
            num_key_value_heads=t.kv_heads,
            rope_parameters=rope,
            rms_norm_eps=t.rms_norm_eps,
        ),
        vision_config=dict(
            depth=v.depth,
            hidden_size=v.hidden_size,
            intermediate_size=v.intermediate_size,
            num_heads=v.heads,
            num_position_embeddings=v.table_side**2,
            deepstack_visual_indexes=list(v.taps),
            patch_size=v.patch_size,
            spatial_merge_size=v.merge_size,
            temporal_patch_size=v.temporal_patch_size,
            out_hidden_size=v.out_hidden_size,
        ),
        image_token_id=cfg.image_token_id,
        video_token_id=cfg.video_token_id,
        tie_word_embeddings=t.tie_word_embeddings,
        vision_start_token_id=cfg.vision_start_token_id,
        vision_end_token_id=cfg.vision_end_token_id,
    )
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(config)
    model.save_pretrained(folder)
    return model


def their_batch(samples, pixels, cfg: VLMConfig) -> dict:
    """The usual batch: padded to the longest, labels -100 except on supervised tokens."""
    longest, v = max(len(s.tokens) for s in samples), cfg.vision
    ids, mask = np.zeros((len(samples), longest), np.int64), np.zeros((len(samples), longest), np.int64)
    labels = np.full(ids.shape, -100)
    for row, s in enumerate(samples):
        n = len(s.tokens)
        ids[row, :n], mask[row, :n] = s.tokens, 1
        labels[row, s.target_slot + 1] = s.target_tokens
    still = (np.concatenate(pixels).astype(np.float32) / 255 - 0.5) / 0.5
    still = still.reshape(len(still), v.in_channels, 1, v.patch_size**2).repeat(v.temporal_patch_size, 2)
    ids = torch.from_numpy(ids)
    return {
        "input_ids": ids,
        "attention_mask": torch.from_numpy(mask),
        "labels": torch.from_numpy(labels),
        "mm_token_type_ids": (ids == cfg.image_token_id).int(),
        "pixel_values": torch.from_numpy(still.reshape(len(still), -1)),
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
    """(seconds of all batches but the first, loss of the first, seconds of compiling)."""
    mesh, tx = meshes.make_mesh(), optimizers.make(cfg, OPTIMIZER)
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
        ("tokens", 2048, "tokens of our row"),
        ("block", 128, "block of our attention"),
        ("threads", 2, "threads of torch"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} ({default})")
    parser.add_argument("--scale", type=float, default=0.5, help="scale of the images' sides (0.5)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cfg, rng = released("cpu"), np.random.default_rng(0)
    v = cfg.vision
    spec = VisionSpec(v.patch_size, v.merge_size, v.temporal_patch_size, 1, 2**30, cfg.mean, cfg.std, v.table_side)
    samples = make_samples(cfg, args.samples, args.scale, args.text, rng)
    pixels = [rng.integers(0, 256, (s.n_patches, v.patch_values), np.uint8) for s in samples]

    visual = max(s.n_patches / len(s.tokens) for s in samples)
    patches = -(-int(args.tokens * visual) // args.block) * args.block
    loose = RowBudget(args.tokens, patches, args.tokens, pair_block=args.block, pairs=10**6, patch_pairs=10**6)
    rows = make_rows(samples, loose)
    taken = [needs([samples[i] for i in row], loose) for row in rows]
    budget = RowBudget(
        args.tokens, -(-max(t.patches for t in taken) // args.block) * args.block, max(t.targets for t in taken),
        pair_block=args.block, pairs=max(t.pairs for t in taken), patch_pairs=max(t.patch_pairs for t in taken),
    )  # fmt: skip
    ours = [pack([[samples[i] for i in row]], [[[pixels[i]] for i in row]], budget, spec) for row in rows]
    groups = [range(i, min(i + args.batch, len(samples))) for i in range(0, len(samples), args.batch)]
    theirs = [their_batch([samples[i] for i in g], [pixels[i] for i in g], cfg) for g in groups]

    with tempfile.TemporaryDirectory() as folder:
        model = their_model(cfg, folder)
        _, params = hf.load(folder)
    torch_rate, jax_rate = matmul_rates()
    their_s, their_loss = run_theirs(model, theirs)
    del model
    our_s, our_loss, compile_s = run_ours(cfg, params, ours, [len(r) for r in rows])
    # The same samples were in neither first batch; check the loss on ours.
    timed_ours, timed_theirs = len(samples) - len(rows[0]), len(samples) - len(groups[0])
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
    fill = np.mean([len(samples[i].tokens) for row in rows for i in row]) * len(samples) / (len(rows) * args.tokens)
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
                "rows": len(rows), "token_fill": fill, "compile_s": compile_s,
                "seconds": {"ours": our_s, "theirs": their_s},
            },
            indent=2,
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
