r"""Speed of answering, ours and transformers' on the same random weights in one run. Needs torch.

    python tools/bench_generate.py --size cpu --sets 8 --questions 8 --visual 80 --text 30 --new 32

Every image set is one image, every question of it --text tokens; no stop token. transformers gets all prompts as one
batch, the image once for each question. First token: a call for one token, packing and padding included. Tokens/s: the
other tokens, from the difference to a call for --new tokens. Medians of --rounds in which all sides take turns. On a
CPU that others use too, take --clock processor and one thread for all (OMP_NUM_THREADS=1 taskset -c 0).
"""

import argparse
import json
import pathlib
import tempfile
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import torch
from random_inputs import random_layout, random_patches, torch_model

from vlm3_jax.checkpoint import hf
from vlm3_jax.infer.engine import Engine
from vlm3_jax.infer.sampling import GREEDY, Sampling
from vlm3_jax.model.config import VLMConfig
from vlm3_jax.model.sizes import NAMES, released
from vlm3_jax.processor.chat import Encoding
from vlm3_jax.processor.image import VisionSpec
from vlm3_jax.processor.prompt import Prompt, positions
from vlm3_jax.processor.video import still_patches


def make_prompts(cfg: VLMConfig, spec: VisionSpec, args) -> tuple[list[Prompt], list[list[np.ndarray]]]:
    """One image of about --visual tokens each, and its random pixels as patches."""
    rng, low = np.random.default_rng(0), min(cfg.image_token_id, cfg.vision_start_token_id)
    layout = random_layout(spec, args.visual)
    n, prompts, patches = layout.n_visual, [], []
    for _ in range(args.sets):
        shared = [*rng.integers(0, low, 3), cfg.vision_start_token_id, *[cfg.image_token_id] * n]
        shared = np.array([*shared, cfg.vision_end_token_id], np.int32)
        axes = positions(Encoding(shared, np.zeros_like(shared), ((4, n),), ()), (layout,))
        places = np.broadcast_to(np.arange(args.text, dtype=np.int32) + axes.max() + 1, (3, args.text))
        asked = tuple(rng.integers(0, low, (args.questions, args.text)).astype(np.int32))
        slots = np.arange(4, 4 + n, dtype=np.int32)
        prompts.append(Prompt((layout,), shared, axes, slots, asked, (places,) * args.questions))
        patches.append([random_patches(spec, layout, rng)])
    return prompts, patches


def their_inputs(cfg: VLMConfig, spec: VisionSpec, prompts, patches) -> dict:
    """All prompts as one batch, the image in each of them."""
    ids, pixels, grids = [], [], []
    for prompt, (array,) in zip(prompts, patches):
        values = still_patches(array, spec)
        for question in prompt.suffix_tokens:
            ids.append(np.concatenate([prompt.prefix_tokens, question]))
            pixels.append(values)
            grids.append([1, *prompt.images[0].grid])
    ids = torch.tensor(np.stack(ids)).long()
    return {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "image_grid_thw": torch.tensor(grids),
        "mm_token_type_ids": (ids == cfg.image_token_id).int(), "pixel_values": torch.tensor(np.concatenate(pixels)),
    }  # fmt: skip


def main() -> None:
    """Warms up, takes turns and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=NAMES, default="cpu")
    for name, default, help in (
        ("sets", 8, "image sets in a call"), ("questions", 8, "questions about each"), ("visual", 80, "visual tokens"),
        ("text", 30, "tokens of a question"), ("new", 32, "new tokens"), ("rounds", 3, "timed rounds"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{help} ({default})")
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall", help="what seconds are")
    args = parser.parse_args()
    clock = {"wall": time.perf_counter, "processor": time.process_time}[args.clock]
    theirs = torch_model(released(args.size)).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        cfg, params = hf.load(pathlib.Path(folder))
    spec = VisionSpec.of(cfg)
    prompts, patches = make_prompts(cfg, spec, args)
    inputs = their_inputs(cfg, spec, prompts, patches)
    params = jax.tree.map(jnp.asarray, params)

    def ours(sampling):
        def run(new):
            chat = types.SimpleNamespace(stop_ids=(cfg.text.vocab_size,))
            engine = Engine(cfg, params, chat, spec, image_sets=args.sets, questions=args.questions, max_new_tokens=new)
            return [row for rows in engine.generate(prompts, patches, sampling) for row in rows]

        return run

    def transformers(new):
        theirs.model.rope_deltas = None
        out = theirs.generate(**inputs, max_new_tokens=new, min_new_tokens=new, do_sample=False)
        return out[:, inputs["input_ids"].shape[1] :].tolist()

    sides = {
        "transformers": transformers,
        "greedy": ours(GREEDY),
        "temperature": ours(Sampling(temperature=1.0)),
        "temperature, top_k, top_p": ours(Sampling(temperature=0.7, top_k=20, top_p=0.8)),
    }
    times = {(side, new): [] for side in sides for new in (1, args.new)}
    answers = {side: run(new) for new in (1, args.new) for side, run in sides.items()}
    for _ in range(args.rounds):
        for side, new in times:
            start = clock()
            sides[side](new)
            times[side, new].append(clock() - start)
    asked, report = args.sets * args.questions, {}
    for side in sides:
        first, whole = (float(np.median(times[side, new])) for new in (1, args.new))
        report[side] = {
            "first_token_s": first,
            "all_s": {"median": whole, "min": min(times[side, args.new]), "max": max(times[side, args.new])},
            "decode_tokens_per_s": asked * (args.new - 1) / (whole - first),
            "tokens_per_s": asked * args.new / whole,
        }
    same = np.mean([a == b for one, two in zip(answers["transformers"], answers["greedy"]) for a, b in zip(one, two)])
    print(json.dumps({"answers": asked, "equal_greedy_tokens": float(same), **report}, indent=2))


if __name__ == "__main__":
    main()
