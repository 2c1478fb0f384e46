"""Answers: the images are read once, then all questions about them are answered side by side from the shared cache.

This is the host's part (what goes into which call, padding, cutting); the device's is `infer/decode.py`, whose letters
are used here. Shapes come in buckets, so that few programs are compiled; answers depend on them by rounding only.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vlm3_jax.data.packing import RowBudget, pack
from vlm3_jax.data.samples import Sample, unsupervised
from vlm3_jax.errors import NotFinite, UserError
from vlm3_jax.infer.decode import BROKEN, programs
from vlm3_jax.infer.sampling import GREEDY, Draw, Sampling, identity
from vlm3_jax.model.config import VLMConfig
from vlm3_jax.parallel import mesh as meshes
from vlm3_jax.processor.chat import ChatFormat
from vlm3_jax.processor.image import ImageLayout, VisionSpec
from vlm3_jax.processor.prompt import Prompt, prompt_sample

# New tokens that the caches have room for at first; longer answers make them grow.
FIRST_ROOM = 32


@dataclasses.dataclass
class Engine:
    """Answers of one model.

    `image_sets`: how many image sets (B) and `questions`: how many questions of each (Q) are answered in one
    call to the device; `max_new_tokens`: the length at which an answer is cut. `mesh`: what `params` are sharded over,
    if they are; image sets are spread over its replica and fsdp axes where these divide their number.
    """

    cfg: VLMConfig
    params: dict
    chat: ChatFormat
    spec: VisionSpec
    dtype: jnp.dtype = jnp.float32
    mesh: Mesh | None = None
    image_sets: int = 8
    questions: int = 16
    max_new_tokens: int = 256

    def __post_init__(self):
        if type(self.max_new_tokens) is not int or self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {self.max_new_tokens!r}, but must be a whole number of at least 1")
        self._programs = programs(self.cfg, self.dtype)

    def answer(
        self,
        images: Sequence[tuple[ImageLayout, ...]],
        questions: Sequence[Sequence[str]],
        sampling: Sampling = GREEDY,
    ) -> list[list[str]]:
        """The answers to all questions about each image set, in the order given."""
        prompts = [prompt_sample(layouts, asked, self.chat) for layouts, asked in zip(images, questions, strict=True)]
        tokens = self._generate(prompts, lambda i: [layout.load(self.spec) for layout in prompts[i].images], sampling)
        return [[self.chat.decode(row) for row in rows] for rows in tokens]

    def generate(
        self,
        prompts: Sequence[Prompt],
        patches: Sequence[Sequence[np.ndarray]],
        sampling: Sampling = GREEDY,
    ) -> list[list[list[int]]]:
        """New token ids of every question of every prompt, up to (not with) the first stop token.

        `patches`: for each prompt those of its images in order, what `ImageLayout.load` gives: uint8 still patches [n,
        C * p * p], or float32 [n, C * T * p * p], already normalised; one kind in all prompts. Prompts and
        questions may be of any number and length; those of similar size share a call to the device.
        """
        return self._generate(prompts, lambda i: patches[i], sampling)

    def _generate(self, prompts, load: Callable[[int], Sequence[np.ndarray]], sampling: Sampling):
        """As `generate`; the patches of a prompt are loaded when its turn comes."""
        tokens: list[list[list[int]]] = [[[] for _ in prompt.suffix_tokens] for prompt in prompts]
        for work in self._calls(prompts):
            asked = [_only(prompts[i], chosen) for i, chosen in work]
            rows = self._call(asked, [load(i) for i, _ in work], sampling)
            for b, (i, chosen) in enumerate(work):
                for q, row in zip(chosen, rows[b]):
                    tokens[i][q] = _until(row.tolist(), self.chat.stop_ids)
        return tokens

    def _calls(self, prompts: Sequence[Prompt]) -> list[list[tuple[int, list[int]]]]:
        """Work for one device call each: up to B prompts of similar size with up to Q of their questions."""
        parts = []
        for i, prompt in enumerate(prompts):
            size = sum(layout.n_patches for layout in prompt.images), len(prompt.prefix_tokens)
            # Questions of similar length share a call too: one long question widens all others beside it.
            asked = sorted(range(len(prompt.suffix_tokens)), key=lambda q: len(prompt.suffix_tokens[q]))
            for first in range(0, len(asked), self.questions):
                parts.append((size, i, asked[first : first + self.questions]))
        parts.sort(key=lambda part: part[0])
        pairs = [(i, asked) for _, i, asked in parts]
        return [pairs[first : first + self.image_sets] for first in range(0, len(pairs), self.image_sets)]

    def _call(self, prompts: list[Prompt], patches, sampling: Sampling) -> np.ndarray:
        """One batch on the device: int32 [B, Q, N], stop tokens included, -1 after them."""
        batch, suffix, lengths, start = self._pad(prompts, patches)
        identities = np.zeros((*lengths.shape, 2), np.uint32)
        if not sampling.greedy:
            for b, (prompt, arrays) in enumerate(zip(prompts, patches)):
                shown = identity([prompt.prefix_tokens, *arrays])
                for q, tokens in enumerate(prompt.suffix_tokens):
                    identities[b, q] = identity([shown, tokens])
        stops = np.array(self.chat.stop_ids, np.int32)
        batch, suffix, lengths, start, identities = self._put((batch, suffix, lengths, start, identities))
        draw, run = Draw.make(sampling, identities), self._programs
        room = min(FIRST_ROOM, self.max_new_tokens)
        context, state = run.begin(self.params, batch, suffix, lengths, start, stops, draw, room=room)
        while True:
            state = run.proceed(self.params, context, state, self.max_new_tokens, stops, draw)
            if room >= self.max_new_tokens or bool(state.done.all()):
                return self._finite(np.asarray(state.tokens))
            room = min(2 * room, self.max_new_tokens)
            state = run.grow(state, room=room)

    def _put(self, arrays):
        """Arrays with image sets as their first axis, where the mesh wants them."""
        if self.mesh is None:
            return arrays
        spread = self.image_sets % (self.mesh.shape["replica"] * self.mesh.shape["fsdp"]) == 0
        return jax.device_put(arrays, meshes.batch_sharding(self.mesh) if spread else meshes.replicated(self.mesh))

    def _finite(self, tokens: np.ndarray) -> np.ndarray:
        if (tokens == BROKEN).any():
            raise NotFinite(
                f"{self.chat.model_dir}: logits are not finite: its weights hold NaN or infinity, or values too large "
                f"for {jnp.dtype(self.dtype).name}"
            )
        return tokens

    def _pad(self, prompts: list[Prompt], patches):
        """The prefixes as a batch of B rows and the questions as int32 [B, Q, M], lengths [B, Q], start [B]."""
        B, unit = self.image_sets, self.spec.merge_size**2
        budget = RowBudget(
            tokens=_bucket(max(len(p.prefix_tokens) for p in prompts), 32),
            patches=_bucket(max(sum(layout.n_patches for layout in p.images) for p in prompts), 8 * unit),
            targets=1,
        )
        empty = [[]] * (B - len(prompts))
        rows = [[_prefix(p)] for p in prompts] + empty
        batch = pack(rows, [[arrays] for arrays in patches] + empty, budget, self.spec)
        widest = max(len(p.suffix_tokens) for p in prompts)
        longest = _bucket(max(len(s) for p in prompts for s in p.suffix_tokens), 16)
        suffix = np.zeros((B, min(_bucket(widest, 1), self.questions), longest), np.int32)
        lengths, start = np.zeros(suffix.shape[:2], np.int32), np.zeros(B, np.int32)
        for b, prompt in enumerate(prompts):
            start[b] = prompt.suffix_positions[0][0, 0]
            for q, tokens in enumerate(prompt.suffix_tokens):
                suffix[b, q, : len(tokens)], lengths[b, q] = tokens, len(tokens)
        return batch, suffix, lengths, start


def _bucket(size: int, unit: int) -> int:
    """The next size that is a power of two or half-way between two, in multiples of `unit`."""
    units = max(1, -(-size // unit))
    power = 1 << (units - 1).bit_length()
    return unit * (power * 3 // 4 if power >= 4 and units <= power * 3 // 4 else power)


def _only(prompt: Prompt, chosen: Sequence[int]) -> Prompt:
    """The prompt with the chosen questions."""
    return dataclasses.replace(
        prompt,
        suffix_tokens=tuple(prompt.suffix_tokens[q] for q in chosen),
        suffix_positions=tuple(prompt.suffix_positions[q] for q in chosen),
    )


def _prefix(prompt: Prompt) -> Sample:
    return unsupervised(prompt.prefix_tokens, prompt.prefix_positions, prompt.visual_slot, prompt.images)


def _until(row: list[int], stops: Sequence[int]) -> list[int]:
    """The tokens before the first stop token or empty place (-1)."""
    end = next((i for i, token in enumerate(row) if token in stops or token < 0), len(row))
    return row[:end]
