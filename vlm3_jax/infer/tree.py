"""The probabilities of a number's digits: a tree of continuations, grown on the cache of the images and the question.

A greedy answer tells one number; the model has an opinion on all others. Up to the number's first digit the answer is
taken as it is, then every likely digit is followed, level by level, all questions side by side: a node is one token
that sees the images, the question and the nodes above it.

Letters as in `infer/decode.py`: Q questions, S prefix tokens, M tokens of a question with its answer's head, U own
tokens, W nodes of a level, A tokens that numbers are made of, K kv heads, G queries a head.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vlm3_jax.data.packing import RowBudget, pack
from vlm3_jax.data.samples import unsupervised
from vlm3_jax.infer.engine import Engine
from vlm3_jax.model.attention import Ids, prepare
from vlm3_jax.model.vlm import VLM
from vlm3_jax.processor.image import ImageLayout
from vlm3_jax.processor.prompt import prompt_sample

CHARACTERS = "0123456789."
_FIRST = re.compile(r"\.?\d")
# Questions of one call: their scores against the prefix are kept at once.
QUESTIONS = 8


@dataclasses.dataclass(frozen=True)
class TreePlan:
    """`width`: nodes of a level that are followed at most, `least`: the probability of the least likely of them.

    `levels`: tokens of a number at most; `decimals`: digits behind the point after which nothing is followed.
    """

    width: int = 16
    least: float = 0.003
    levels: int = 6
    decimals: int = 2


@dataclasses.dataclass(frozen=True, eq=False)
class Numbers:
    """What a model may write in place of a number: `texts` with their `probabilities` float64 [n] (sum at most 1).

    None where its answer holds no number. A number that was not followed to its end counts as if it ended there.
    """

    texts: tuple[str, ...] = ()
    probabilities: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))

    @property
    def values(self) -> np.ndarray:
        """The numbers, float64 [n]."""
        return np.array([float(text) for text in self.texts])

    @property
    def unit(self) -> float:
        """What the last digit of the most probable one counts."""
        return 10.0 ** -len(self.texts[int(np.argmax(self.probabilities))].partition(".")[2])


def explore(
    engine: Engine, layout: ImageLayout, questions: Sequence[str], answers: Sequence[str], plan: TreePlan = TreePlan()
) -> list[Numbers]:
    """The first number of each answer (the greedy ones, as text) about one image, in all its likely forms."""
    alphabet = _alphabet(engine)
    heads = [None if (start := _FIRST.search(text)) is None else text[: start.start()] for text in answers]
    found = [Numbers()] * len(questions)
    asked = [number for number, head in enumerate(heads) if head is not None]
    if not asked:
        return found
    prompt = prompt_sample((layout,), [questions[number] for number in asked], engine.chat)
    tokens = [
        [*suffix.tolist(), *engine.chat.encode_text(heads[number])]
        for number, suffix in zip(asked, prompt.suffix_tokens, strict=True)
    ]
    run = _programs(engine.cfg, jnp.dtype(engine.dtype))
    cache = run.read(engine.params, _prefix(engine, prompt))
    start = int(prompt.suffix_positions[0][0, 0])
    for first in range(0, len(asked), QUESTIONS):
        part = tokens[first : first + QUESTIONS]
        for number, numbers in zip(asked[first:], _grow(engine, run, cache, start, part, alphabet, plan)):
            found[number] = numbers
    return found


def _alphabet(engine: Engine) -> np.ndarray:
    """The token of each of `CHARACTERS`, int32 [A]: Qwen's tokenizer splits numbers into digits."""
    ids = [engine.chat.encode_text(character) for character in CHARACTERS]
    assert all(len(one) == 1 for one in ids), "a digit is more than one token"
    return np.array(ids, np.int32)[:, 0]


def _prefix(engine: Engine, prompt) -> dict[str, np.ndarray]:
    """The images and what stands before them as a batch of one row, whose sizes are rounded up."""
    patches = [layout.load(engine.spec) for layout in prompt.images]
    unit = engine.spec.merge_size**2
    n_patches = _rounded(sum(layout.n_patches for layout in prompt.images), 16 * unit)
    budget = RowBudget(tokens=_rounded(len(prompt.prefix_tokens), 64), patches=n_patches, targets=1)
    sample = unsupervised(prompt.prefix_tokens, prompt.prefix_positions, prompt.visual_slot, prompt.images)
    return pack([[sample]], [[patches]], budget, engine.spec)


def _rounded(size: int, unit: int) -> int:
    return -(-size // unit) * unit


@dataclasses.dataclass
class _Node:
    """`text` of the number so far; `path`: the columns of the nodes above it and its own."""

    text: str
    probability: float
    path: tuple[int, ...] = ()


def _grow(engine, run, cache, start: int, tokens: list[list[int]], alphabet, plan: TreePlan) -> list[Numbers]:
    """The tree of each question whose tokens, the answer's head among them, are given."""
    Q, longest = QUESTIONS, _rounded(max(map(len, tokens)), 32)
    suffix, lengths = np.zeros((Q, longest), np.int32), np.zeros(Q, np.int32)
    for q, row in enumerate(tokens):
        suffix[q, : len(row)], lengths[q] = row, len(row)
    room = plan.width * (plan.levels - 1)
    own, logs = run.begin(engine.params, cache, suffix, lengths, np.int32(start), alphabet, room=room)
    leaves: list[list[tuple[str, float]]] = [[] for _ in tokens]
    level = [[_Node("", 1.0)] for _ in tokens]
    probabilities = np.exp(np.asarray(logs))[:, None]
    for depth in range(plan.levels):
        nodes = [
            _children(parents, probabilities[q], leaves[q], plan, last=depth == plan.levels - 1)
            for q, parents in enumerate(level)
        ]
        if not any(nodes):
            break
        column = longest + depth * plan.width
        new = np.zeros((Q, plan.width), np.int32)
        above = np.zeros((Q, plan.width, longest + room), bool)
        for q, row in enumerate(nodes):
            above[q, : len(row), : lengths[q]] = True
            for w, node in enumerate(row):
                new[q, w] = alphabet[CHARACTERS.index(node.text[-1])]
                above[q, w, list(node.path)] = True
                node.path = (*node.path, column + w)
        places = start + lengths + depth
        own, logs = run.step(engine.params, cache, own, new, places, above, np.int32(column), alphabet)
        probabilities, level = np.exp(np.asarray(logs)), nodes
    return [_numbers(found) for found in leaves]


def _children(parents: list[_Node], probabilities, leaves: list, plan: TreePlan, last: bool) -> list[_Node]:
    """The nodes below, the likely ones; all other ways on become leaves, as does an end of the number."""
    found = []
    for parent, row in zip(parents, probabilities):
        if _is_number(parent.text):
            leaves.append((parent.text, parent.probability * max(0.0, 1.0 - float(row.sum()))))
        for character, share in zip(CHARACTERS, row.tolist()):
            if character != "." or "." not in parent.text:
                found.append(_Node(parent.text + character, parent.probability * share, parent.path))
    found.sort(key=lambda node: -node.probability)
    followed = []
    for node in found:
        done = len(node.text.partition(".")[2]) >= plan.decimals
        if not done and not last and node.probability >= plan.least and len(followed) < plan.width:
            followed.append(node)
        # How many digits a number before its point will have is not known; behind it, further ones change little.
        elif _is_number(node.text) and "." in node.text:
            leaves.append((node.text, node.probability))
    return followed


def _numbers(leaves: list[tuple[str, float]]) -> Numbers:
    return Numbers(tuple(text for text, _ in leaves), np.array([probability for _, probability in leaves]))


def _is_number(text: str) -> bool:
    return any(character.isdigit() for character in text)


@dataclasses.dataclass(frozen=True)
class _Programs:
    """read(params, batch) -> cache; begin(params, cache, suffix, lengths, start, alphabet, room) and
    step(params, cache, own, tokens, places, above, column, alphabet) -> (own, logs of the alphabet [Q, A], [Q, W, A]).
    """

    read: object
    begin: object
    step: object


@functools.cache
def _programs(cfg, dtype) -> _Programs:
    return _Programs(
        jax.jit(functools.partial(_read, cfg, dtype)),
        jax.jit(functools.partial(_begin, cfg, dtype), static_argnames="room"),
        jax.jit(functools.partial(_step, cfg, dtype), donate_argnames="own"),
    )


def _read(cfg, dtype, params, batch):
    """({stack: (k, v) [L, K, S, C]}, which tokens are real [S])."""
    model = VLM(cfg, params, dtype)
    visual, taps = model.see(batch)
    order = jnp.broadcast_to(jnp.arange(batch["tokens"].shape[1]), batch["tokens"].shape)
    attend = prepare(Ids(batch["segments"], None, order))

    def keep(q, k, v, _):
        return attend(q, k, v), tuple(x[0].swapaxes(0, 1) for x in (k, v))

    slots = batch["visual_index"], batch["visual_slot"]
    caches = model.text(model.embed(batch, visual), batch["positions"], keep, taps=taps, slots=slots)[1]
    return caches, batch["segments"][0] > 0


def _begin(cfg, dtype, params, cache, suffix, lengths, start, alphabet, room):
    model = VLM(cfg, params, dtype)
    Q, M = suffix.shape
    real = jnp.arange(M) < lengths[:, None]
    fresh_seen = real[:, None] & jnp.tril(jnp.ones((M, M), bool))
    places = jnp.broadcast_to(start + jnp.arange(M), (Q, M))
    hidden, fresh = _extend(model, suffix, places, cache, None, None, fresh_seen)
    own = jax.tree.map(lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, room), (0, 0)]), fresh)
    last = jnp.take_along_axis(hidden, jnp.maximum(lengths - 1, 0)[:, None, None], 1)[:, 0]
    return own, _logs(model, last, alphabet)


def _step(cfg, dtype, params, cache, own, tokens, places, above, column, alphabet):
    model = VLM(cfg, params, dtype)
    Q, W = tokens.shape
    itself = jnp.broadcast_to(jnp.eye(W, dtype=bool), (Q, W, W))
    places = jnp.broadcast_to(places[:, None], (Q, W))
    hidden, fresh = _extend(model, tokens, places, cache, own, above, itself)
    own = jax.tree.map(lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new, column, x.ndim - 2), own, fresh)
    return own, _logs(model, hidden, alphabet)


def _logs(model: VLM, hidden, alphabet):
    logits = model.text.logits(hidden)
    return jnp.take(logits, alphabet, -1) - jax.nn.logsumexp(logits, -1, keepdims=True)


def _is_pair(x) -> bool:
    return isinstance(x, tuple)


def _extend(model: VLM, tokens, places, cache, own, own_seen, fresh_seen):
    """Runs tokens [Q, X] at `places`: (hidden [Q, X, D], their keys and values {stack: [L, Q, K, X, C]}).

    Where a stack is a list of layers there is one pair for each, without the axis L.

    They see the prefix, of `own` [L, Q, K, U, C] (None: nothing) what `own_seen` [Q, X, U] says, and of themselves what
    `fresh_seen` [Q, X, X] does.
    """
    Q, X = tokens.shape
    prefixes, prefix_seen = cache
    seen = [jnp.broadcast_to(prefix_seen, (Q, X, len(prefix_seen))), own_seen, fresh_seen]
    seen = jnp.concatenate([part for part in seen if part is not None], -1)[:, None, None]

    def attend(q, k, v, caches):
        (prefix_k, prefix_v), own = caches
        q, k, v = (x.reshape(Q, X, -1, x.shape[-1]) for x in (q, k, v))
        fresh = tuple(x.swapaxes(1, 2) for x in (k, v))
        K, C = k.shape[2:]
        q = q.reshape(Q, X, K, -1, C).transpose(0, 2, 3, 1, 4)
        product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        parts = [product("qkgxc,ksc->qkgxs", q, prefix_k)]
        parts += [product("qkgxc,qkuc->qkgxu", q, keys) for keys in ([] if own is None else [own[0]]) + [fresh[0]]]
        scores = jnp.where(seen, jnp.concatenate(parts, -1) * C**-0.5, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, -1).astype(v.dtype)
        cuts = np.cumsum([part.shape[-1] for part in parts])[:-1].tolist()
        first, *others = jnp.split(weights, cuts, -1)
        out = product("qkgxs,ksc->qkgxc", first, prefix_v)
        for share, values in zip(others, ([] if own is None else [own[1]]) + [fresh[1]], strict=True):
            out += product("qkgxu,qkuc->qkgxc", share, values)
        out = out.astype(v.dtype).transpose(0, 3, 1, 2, 4)
        return out.reshape(1, Q * X, -1, C), fresh

    x = model.text.embed(tokens.reshape(1, Q * X), model.dtype)
    axes = jnp.broadcast_to(places.reshape(1, 1, Q * X), (1, 3, Q * X))
    earlier = jax.tree.map(lambda _: None, prefixes, is_leaf=_is_pair) if own is None else own
    caches = jax.tree.map(lambda *both: both, prefixes, earlier, is_leaf=_is_pair)
    hidden, fresh, _ = model.text(x, axes, attend, cache=caches)
    return hidden.reshape(Q, X, -1), fresh
