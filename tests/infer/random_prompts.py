"""Random prompts for transformers' generate() and for ours, on models whose answers vary."""

import copy
import dataclasses
import functools
import pathlib
import tempfile
import types

import numpy as np
import torch

from tests.model import reference as ref
from vlm3_jax.checkpoint import hf
from vlm3_jax.infer.engine import Engine
from vlm3_jax.processor.prompt import Prompt

# (width, height), some of which both processors resize.
SIZES = ((24, 40), (16, 16), (33, 17), (64, 24), (8, 56), (40, 40))
NEVER = 10_000
LOUDNESS = {"embed_tokens": 0.05, "language_model.norm": 20.0, "o_proj": 10.0, "q_norm": 3.0}


@functools.cache
def lively(kind: str) -> ref.Pair:
    """A pair of `reference` with quiet embeddings and loud layers: as it is, it tends to repeat one token for ever."""
    pair = ref.pair(kind)
    model = copy.deepcopy(pair.theirs)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "visual" not in name:
                p.mul_(next((scale for part, scale in LOUDNESS.items() if part in name), 1.0))
    folder = pathlib.Path(tempfile.mkdtemp(prefix="vlm3-lively-"))
    model.save_pretrained(folder)
    ref.processor(None).save_pretrained(folder)
    cfg, params = hf.load(folder)
    return ref.Pair(model, folder, cfg, params, pair.spec)


@dataclasses.dataclass(frozen=True, eq=False)
class Asked:
    """Parts (text tokens and uint8 images) that questions share, and the questions' tokens."""

    shared: list[np.ndarray]
    questions: list[np.ndarray]

    def prompt(self, spec) -> tuple[Prompt, list[np.ndarray]]:
        """Ours, and its images' patches."""
        samples = [ref.to_sample([*self.shared, question], spec) for question in self.questions]
        n = len(samples[0].tokens) - len(self.questions[0])
        one = samples[0]
        prompt = Prompt(
            one.images, one.tokens[:n], one.positions[:, :n], one.visual_slot,
            tuple(s.tokens[n:] for s in samples), tuple(s.positions[:, n:] for s in samples),
        )  # fmt: skip
        return prompt, [layout.load(spec) for layout in one.images]


def with_questions(prompt: Prompt, tokens, positions) -> Prompt:
    """The prompt with other questions."""
    return dataclasses.replace(
        prompt, suffix_tokens=tuple(x.astype(np.int32) for x in tokens), suffix_positions=tuple(positions)
    )


def random_prompts(rng, count: int) -> list[Asked]:
    """0 to 4 images of all sizes with text around them, then 2 to 4 questions of 1 to 80 tokens each."""
    found = []
    for i in range(count):
        shared = [rng.integers(0, 280, rng.integers(1, 9) if i else 0)]
        for _ in range(i % 5):
            width, height = SIZES[rng.integers(len(SIZES))]
            image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            shared += [image, rng.integers(0, 280, rng.integers(0, 6))]
        lengths = np.exp(rng.uniform(0, np.log(81), 2 + i % 3)).astype(int)
        lengths[0] = (1, 80)[i] if i < 2 else lengths[0]
        found.append(Asked(shared, [rng.integers(0, 280, n) for n in lengths]))
    return found


@dataclasses.dataclass(frozen=True)
class Greedy:
    """transformers' answer and by how much each token led over the second best."""

    tokens: list[int]
    gaps: list[float]

    def agrees(self, tokens: list[int]) -> int:
        """How many tokens are the same; fails if they part where the lead was clear."""
        for i, (ours, theirs, gap) in enumerate(zip(tokens, self.tokens, self.gaps)):
            if ours != theirs:
                assert gap < 1e-4, f"token {i} is {ours}, transformers says {theirs} with a lead of {gap}"
                return i
        assert len(tokens) == len(self.tokens)
        return len(tokens)


def their_answer(pair: ref.Pair, parts, new: int, **settings) -> Greedy:
    """transformers' greedy continuation of one prompt, alone in its batch; `settings` go to generate()."""
    inputs = ref.their_inputs(pair, parts)
    pair.theirs.model.rope_deltas = None
    out = pair.theirs.generate(
        **inputs, max_new_tokens=new, do_sample=False, return_dict_in_generate=True, output_logits=True, **settings
    )
    best = torch.cat(out.logits).topk(2).values
    return Greedy(out.sequences[0, inputs["input_ids"].shape[1] :].tolist(), (best[:, 0] - best[:, 1]).tolist())


def make_engine(pair: ref.Pair, stops=(NEVER,), **settings) -> Engine:
    """An engine without a tokenizer: prompts are tokens."""
    return Engine(pair.cfg, pair.params, types.SimpleNamespace(stop_ids=stops), pair.spec, **settings)
