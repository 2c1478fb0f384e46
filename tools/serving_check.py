"""Whether vLLM gives the tokens that we give, on an export, with the prompts and pictures that its protocols say.

    python tools/serving_check.py ours MODEL OUT --prompts=50        (prompts of 0 to 2 images, and our answers)
    VENV_OF_VLLM/bin/python tools/serving_check.py vllm MODEL OUT    (vLLM's, compared; exit code 1 if they differ)

Greedy, float32, at most --tokens new tokens. Pictures are of rendered scenes, resized as the protocols have it and
handed over as PNG, as a client of a server would. An answer may differ from where the two best tokens are closer than
1e-4 in log probability: what is first there is a matter of rounding. The second side imports nothing of ours, so it
runs in vLLM's own environment.
"""

import argparse
import json
import os
import pathlib
import shutil
import sys

TIE = 1e-4
# vLLM tries out the largest picture that the processor allows before it starts; ours are smaller.
MAX_PIXELS = 1_000_000
TEXTS = ("What is depth?", "How many sides has a cube?", "Name three colours.", "Say something about {} chairs.")


def ours(args) -> None:
    """Writes prompts.jsonl, the pictures and ours.jsonl."""
    import numpy as np

    import vlm3_jax
    from vlm3_jax import pretrained
    from vlm3_jax.processor.prompt import prompt_sample

    rows, rng = [], np.random.default_rng(0)
    opened = pretrained.open(args.model)
    while len(rows) < args.prompts:
        rows += _asked(opened, args.out, len(rows), rng)
    rows = rows[: args.prompts]
    model = vlm3_jax.load(args.model, max_new_tokens=args.tokens)
    engine, answers = model._engine, []
    for row in rows:
        shown = [str(args.out / name) for name in row["images"]]
        prompt = prompt_sample(_as_they_are(shown, opened.spec), row["question"], engine.chat)
        patches = [layout.load(opened.spec) for layout in prompt.images]
        (found,) = engine.generate([prompt], [patches])
        answers.append({"id": row["id"], "tokens": found[0], "stops": [int(stop) for stop in engine.chat.stop_ids]})
    for name, written in (("prompts.jsonl", rows), ("ours.jsonl", answers)):
        (args.out / name).write_text("".join(json.dumps(row) + "\n" for row in written))
    print(f"{len(rows)} prompts in {args.out}, {sum(len(row['tokens']) for row in answers)} new tokens")


def _asked(opened, out: pathlib.Path, first: int, rng) -> list[dict]:
    """A text, and a question of each task about one scene."""
    from vlm3_jax import records, synth, tasks
    from vlm3_jax.processor.image import image_layout
    from vlm3_jax.tasks.protocol import RELEASE

    seed = int(rng.integers(1 << 30))
    scene = synth.record(seed, 0, synth.SynthOptions(width=320, height=240, focal_px=280.0))
    rows = [{"id": f"{first}-text", "images": [], "question": TEXTS[seed % len(TEXTS)].format(seed % 97)}]
    for name in ("depth", "objects", "correspondence", "pose"):
        protocol = opened.protocols.get(name) or RELEASE[name]
        shown = records.unify(scene, protocol.resize)
        examples = tasks.get(name).alone(tasks.get(name).examples(shown, rng, protocol))[:1]
        for example in examples:
            names = [f"{first}-{name}-{view}.png" for view in example.views]
            for view, file in zip(example.views, names, strict=True):
                image_layout(shown.views[view], opened.spec).picture().save(out / file)
            rows.append({"id": f"{first}-{name}", "images": names, "question": example.question})
    return rows


def _as_they_are(paths, spec):
    """The layouts of pictures that have the size in which they are shown."""
    from vlm3_jax.camera import Camera
    from vlm3_jax.processor.image import image_layout
    from vlm3_jax.records import ImageRef, View

    refs = [ImageRef.of_bytes(pathlib.Path(path).read_bytes(), path) for path in paths]
    return [image_layout(View(ref, Camera.from_fov(ref.width, ref.height, 60.0)), spec) for ref in refs]


def vllm(args) -> int:
    """Answers the same prompts by vLLM and compares the tokens; 1 if some differ."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
    from PIL import Image
    from vllm import LLM, SamplingParams

    rows, mine = ([json.loads(line) for line in (args.out / name).open()] for name in ("prompts.jsonl", "ours.jsonl"))
    llm = LLM(
        str(_bounded(args.model, args.out / "model")),
        dtype="float32",
        max_model_len=4096,
        enforce_eager=True,
        limit_mm_per_prompt={"image": 2, "video": 0},
    )
    chats = []
    for row in rows:
        pictures = [Image.open(args.out / name).convert("RGB") for name in row["images"]]
        content = [{"type": "image_pil", "image_pil": picture} for picture in pictures]
        chats.append([{"role": "user", "content": [*content, {"type": "text", "text": row["question"]}]}])
    settings = SamplingParams(temperature=0, max_tokens=args.tokens, logprobs=2)
    found = [one.outputs[0] for one in llm.chat(chats, settings, use_tqdm=False)]
    told = [_compared(row, own, one) for row, own, one in zip(rows, mine, found, strict=True)]
    counts = {word: sum(one == word for one in told) for word in ("equal", "tie", "different")}
    shown = [sum(len(row["images"]) == count for row in rows) for count in range(3)]
    print(f"{len(rows)} prompts ({shown[0]}, {shown[1]} and {shown[2]} with 0, 1 and 2 images): {counts}")
    return int(counts["different"] > 0)


def _compared(row: dict, own: dict, theirs) -> str:
    """ "equal", "tie" (from a place on where rounding decides) or "different", which is printed."""
    tokens = list(theirs.token_ids)
    stop = next((k for k, token in enumerate(tokens) if token in own["stops"]), len(tokens))
    tokens, mine = tokens[:stop], own["tokens"]
    if tokens == mine:
        return "equal"
    place = next((k for k, pair in enumerate(zip(tokens, mine)) if pair[0] != pair[1]), min(len(tokens), len(mine)))
    best = sorted((one.logprob for one in theirs.logprobs[place].values()), reverse=True)[:2]
    word = "tie" if best[0] - best[1] < TIE else "different"
    print(f"{row['id']}: {word} from token {place} on, the two best {best[0] - best[1]:.2e} apart")
    return word


def _bounded(model: str, folder: pathlib.Path) -> pathlib.Path:
    """The model with pictures of at most MAX_PIXELS: its files linked, the processor's settings changed."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in pathlib.Path(model).resolve().iterdir():
        (folder / file.name).symlink_to(file)
    path = folder / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    settings["size"]["longest_edge"] = min(MAX_PIXELS, settings["size"]["longest_edge"])
    path.unlink()
    path.write_text(json.dumps(settings))
    return folder


def main() -> int:
    """One of the sides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=("ours", "vllm"))
    parser.add_argument("model", help="an export: a folder in Hugging Face's form")
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=48)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    return (ours if args.side == "ours" else vllm)(args) or 0


if __name__ == "__main__":
    sys.exit(main())
