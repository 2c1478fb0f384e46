"""Answers: the images are read once, then all questions about them are answered side by side from the shared cache.

Letters: B image sets, Q questions each, S prefix tokens, M tokens of a question, N new tokens, L layers, K kv heads, C
head size. Shapes come in buckets, so that few programs are compiled; greedy answers depend on them by rounding only.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vlm3_jax.data.chat import ChatFormat
from vlm3_jax.data.image import ImagePlan, VisionSpec
from vlm3_jax.data.packing import RowBudget, pack
from vlm3_jax.data.samples import Prompt, Sample, prompt_sample
from vlm3_jax.model.attention import Ids, prepare
from vlm3_jax.model.config import VLMConfig
from vlm3_jax.model.vlm import VLM


@dataclasses.dataclass
class Engine:
    """Greedy answers of one model.

    `image_sets`: how many image sets (B) and `questions`: how many questions of each (Q) are answered in one
    call to the device; `max_new_tokens`: the length at which an answer is cut. `params` may be sharded over a mesh.
    """

    cfg: VLMConfig
    params: dict
    chat: ChatFormat
    spec: VisionSpec
    dtype: jnp.dtype = jnp.float32
    image_sets: int = 8
    questions: int = 16
    max_new_tokens: int = 256

    def __post_init__(self):
        self._run = _compiled(self.cfg, self.dtype, self.max_new_tokens, tuple(int(i) for i in self.chat.stop_ids))

    def answer(self, images: Sequence[tuple[ImagePlan, ...]], questions: Sequence[Sequence[str]]) -> list[list[str]]:
        """The answers to all questions about each image set, in the order given."""
        answers: list[list[str]] = [[""] * len(asked) for asked in questions]
        for work in self._calls(images, questions):
            prompts = [prompt_sample(images[i], [questions[i][q] for q in asked], self.chat) for i, asked in work]
            tokens = self._generate(prompts, [images[i] for i, _ in work])
            for (i, asked), rows in zip(work, tokens):
                for q, row in zip(asked, rows):
                    answers[i][q] = self.chat.decode(row)
        return answers

    def _calls(self, images, questions) -> Iterator[list[tuple[int, list[int]]]]:
        """Work for one device call each: up to B image sets of similar size with up to Q of their questions."""
        parts = []
        for i, asked in enumerate(questions):
            for first in range(0, len(asked), self.questions):
                size = sum(plan.n_patches for plan in images[i])
                parts.append((size, i, list(range(first, min(first + self.questions, len(asked))))))
        parts.sort(key=lambda part: part[0])
        for first in range(0, len(parts), self.image_sets):
            yield [(i, asked) for _, i, asked in parts[first : first + self.image_sets]]

    def _generate(self, prompts: list[Prompt], images) -> list[list[list[int]]]:
        """New token ids of every question, up to (not with) the first stop token."""
        batch, suffix, lengths, start = self._pad(prompts, images)
        tokens = np.asarray(self._run(self.params, batch, suffix, lengths, start))
        stops = set(self.chat.stop_ids)
        cut = [[_until(row.tolist(), stops) for row in rows] for rows in tokens]
        return [rows[: len(p.suffix_tokens)] for rows, p in zip(cut, prompts)]

    def _pad(self, prompts, images):
        spec, B = self.spec, self.image_sets
        budget = RowBudget(
            tokens=_bucket(max(len(p.prefix_tokens) for p in prompts), 32),
            patches=_bucket(max(sum(plan.n_patches for plan in p.images) for p in prompts), 8 * spec.merge_size**2),
            targets=1,
        )
        rows = [[_as_sample(p)] for p in prompts] + [[]] * (B - len(prompts))
        pixels = [[[plan.load(spec) for plan in plans]] for plans in images] + [[]] * (B - len(prompts))
        batch = pack(rows, pixels, budget, spec)
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


def _as_sample(prompt: Prompt) -> Sample:
    nothing = np.zeros(0, np.int32)
    return Sample(
        "", 0, prompt.prefix_tokens, prompt.prefix_positions, np.zeros_like(prompt.prefix_tokens), prompt.visual_slot,
        prompt.images, nothing, nothing, nothing.astype(np.float32), nothing.astype(bool),
    )  # fmt: skip


def _until(row: list[int], stops: set[int]) -> list[int]:
    end = next((i for i, token in enumerate(row) if token in stops), len(row))
    return row[:end]


def _prefill(model: VLM, batch):
    """Keys and values of the prefix: {stack: (k, v) [L, B, S, K, C]}."""
    visual, taps = model.see(batch)
    order = jnp.broadcast_to(jnp.arange(batch["tokens"].shape[1]), batch["tokens"].shape)
    attend = prepare(Ids(batch["segments"], None, order))

    def keep(q, k, v, _):
        return attend(q, k, v), (k, v)

    slots = batch["visual_index"], batch["visual_slot"]
    return model.text(model.embed(batch, visual), batch["positions"], keep, taps=taps, slots=slots)[1]


def _extend(model: VLM, tokens, positions, prefix, prefix_seen, own, own_seen, column):
    """Runs M more tokens of each question on the cached prefix and the question's own earlier tokens.

    tokens [B, Q, M], positions [B, Q, M]; `own` {stack: (k, v) [L, B, Q, U, K, C]} holds the questions' own keys and
    values, the new ones put at `column`; prefix_seen bool [B, S], own_seen bool [B, Q, M, U]. Returns (hidden, own).
    """
    B, Q, M = tokens.shape

    def shared(q, k, v, cache):
        (prefix_k, prefix_v), (own_k, own_v) = cache
        k, v = (x.reshape(B, Q, M, *x.shape[2:]) for x in (k, v))
        own_k = jax.lax.dynamic_update_slice_in_dim(own_k, k, column, 2)
        own_v = jax.lax.dynamic_update_slice_in_dim(own_v, v, column, 2)
        out = _attend_shared(q, prefix_k, prefix_v, prefix_seen, own_k, own_v, own_seen)
        return out, (own_k, own_v)

    x = model.text.embed(tokens.reshape(B, Q * M), model.dtype)
    axes = jnp.broadcast_to(positions.reshape(B, 1, Q * M), (B, 3, Q * M))
    cache = {name: (prefix[name], own[name]) for name in prefix}
    hidden, own, _ = model.text(x, axes, shared, cache=cache)
    return hidden.reshape(B, Q, M, -1), own


def _attend_shared(q, prefix_k, prefix_v, prefix_seen, own_k, own_v, own_seen):
    """One softmax over the shared prefix [B, S] and each question's own keys [B, Q, U]; q is [B, Q * M, H, C]."""
    B, Q, M, _ = own_seen.shape
    K, C = prefix_k.shape[-2:]
    q = q.reshape(B, Q, M, K, -1, C)
    low = jnp.finfo(jnp.float32).min
    score = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    on_prefix = score("bqmkgc,bskc->bqkgms", q, prefix_k) * C**-0.5
    on_own = score("bqmkgc,bqukc->bqkgmu", q, own_k) * C**-0.5
    on_prefix = jnp.where(prefix_seen[:, None, None, None, None], on_prefix, low)
    on_own = jnp.where(own_seen[:, :, None, None], on_own, low)
    weights = jax.nn.softmax(jnp.concatenate([on_prefix, on_own], -1), -1).astype(q.dtype)
    weights = jnp.split(weights, [prefix_k.shape[1]], -1)
    out = score("bqkgms,bskc->bqmkgc", weights[0], prefix_v) + score("bqkgmu,bqukc->bqmkgc", weights[1], own_v)
    return out.reshape(B, Q * M, -1, C).astype(q.dtype)


@functools.cache
def _compiled(cfg: VLMConfig, dtype, new: int, stops: tuple[int, ...]):
    """One jitted function for all engines of a shape: weights before and after training share the compiled code."""
    return jax.jit(functools.partial(_answer, cfg, dtype, new, stops))


def _answer(cfg, dtype, new, stops, params, batch, suffix, lengths, start):
    """New tokens int32 [B, Q, N] by greedy choice; after a stop token the rest of a row is that token."""
    model = VLM(cfg, params, dtype)
    (B, Q, M), text = suffix.shape, cfg.text
    prefix = _prefill(model, batch)
    prefix_seen = batch["segments"] > 0
    own = {
        name: tuple(jnp.zeros((k.shape[0], B, Q, M + new, text.kv_heads, text.head_dim), dtype) for _ in "kv")
        for name, (k, _) in prefix.items()
    }
    columns = jnp.arange(M + new)
    in_question = columns < lengths[..., None]
    causal = columns[None, :] <= jnp.arange(M)[:, None]
    positions = start[:, None, None] + jnp.broadcast_to(jnp.arange(M), (B, Q, M))
    seen = in_question[:, :, None] & causal
    hidden, own = _extend(model, suffix, positions, prefix, prefix_seen, own, seen, 0)
    last = jnp.take_along_axis(hidden, jnp.maximum(lengths - 1, 0)[..., None, None], 2)[:, :, 0]
    stops = jnp.array(stops)

    def choose(hidden):
        return jnp.argmax(model.text.logits(hidden), -1).astype(jnp.int32)

    def going(carry):
        step, _, _, _, done = carry
        return (step < new) & ~done.all()

    def one(carry):
        step, tokens, current, own, done = carry
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, current[..., None], step, 2)
        done = done | jnp.isin(current, stops)
        generated = (columns >= M) & (columns <= M + step)
        place = (start[:, None] + lengths + step)[..., None]
        seen = (in_question | generated)[:, :, None]
        hidden, own = _extend(model, current[..., None], place, prefix, prefix_seen, own, seen, M + step)
        following = jnp.where(done, current, choose(hidden[:, :, 0]))
        return step + 1, tokens, following, own, done

    first = (jnp.zeros((), jnp.int32), jnp.full((B, Q, new), stops[0], jnp.int32), choose(last), own, lengths == 0)
    return jax.lax.while_loop(going, one, first)[1]
