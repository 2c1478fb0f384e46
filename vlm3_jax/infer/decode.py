"""The device's part of answering: images and prefix once, the questions beside each other, then token after token.

Letters: B image sets, Q places for questions about each, R questions put into places at once, S prefix tokens, M tokens
of a question, N room for new tokens, U own tokens of a question (its M and its N), D tokens of a place that go through
the model at once, L layers, H heads, K kv heads, G = H / K, C head size.

Caches are keys [B, K, C, S] and values [B, K, S, C] for the prefix, [B, Q, K, C, U] and [B, Q, K, U, C] for the
questions' own tokens, so that a step reads them as they lie and writes a few columns. Where a model's layers are a list
there is one of each for every layer, else they have a leading axis L.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vlm3_jax.infer import beside
from vlm3_jax.infer.sampling import choose
from vlm3_jax.model.attention import BackEnd, Ids, listed, prepare
from vlm3_jax.model.config import VLMConfig
from vlm3_jax.model.vlm import VLM
from vlm3_jax.parallel import mesh as meshes
from vlm3_jax.shapes import Array

# In place of a token whose logits are not finite.
BROKEN = -2


@functools.partial(jax.tree_util.register_dataclass, data_fields=("caches", "seen", "start", "tokens"), meta_fields=())
@dataclasses.dataclass(frozen=True)
class Context:
    """What all questions about an image set read, and nobody changes.

    caches: {stack: (k, v)} of the prefix; seen: bool [B, S], which of its tokens are real; start: int32 [B], the
    position of a question's first token; tokens: int32 [B, S].
    """

    caches: dict
    seen: Array
    start: Array
    tokens: Array


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("tokens", "count", "lengths", "done", "own", "used", "keys"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True)
class State:
    """What is in the places.

    tokens: int32 [B, Q, N], -1 where none is, `BROKEN` where logits were not finite; count: int32 [B, Q] of them;
    lengths: int32 [B, Q] of the questions; done: bool [B, Q], also where nobody asks; own: {stack: (k, v)} of the
    questions' own tokens; used: bool [B, Q, vocabulary], tokens that occur in prompt or answer, and keys: uint32 [B, Q,
    2] of `sampling.Draw` (both None if greedy).
    """

    tokens: Array
    count: Array
    lengths: Array
    done: Array
    own: dict
    used: Array | None
    keys: Array | None


class Until(NamedTuple):
    """When decoding stops: answers have `longest` tokens at most; as soon as `wake` places of image sets for which
    others are `waiting` (bool [B]) are done, these may take them; after `steps` steps.
    """

    longest: Array | int
    wake: Array | int
    waiting: Array
    steps: Array | int


class Fed(NamedTuple):
    """Tokens that are tried behind a question and the beginning of its answer, W for each of R.

    tokens, `offsets` of their positions from the question's first token, and their `columns` (beyond the end: nobody's)
    among the own ones: int32 [B, R, W]; seen: bool [B, R, W, U], which columns each sees, its own among them.
    """

    tokens: Array
    offsets: Array
    columns: Array
    seen: Array


class Programs(NamedTuple):
    """The compiled functions of one model shape.

    see(params, batch) -> visual tokens and taps; read(params, seen, batch, start [B]) -> Context
    open(context, places=Q, columns=U, room=N, drawn=bool) -> State without questions
    fill(params, context, state, suffix [B, R, M], lengths [B, R], place [B, R], longest, stops, draw) -> State, where
        these questions (those of length 0: none) have taken the places and have their first token
    proceed(params, context, state, until, stops, draw) -> State: on until all are done, or as `until` has it, or an
        answer is as long as its room
    verify(params, context, state, drafts [B, Q, D - 1], until, stops) -> State: one pass, in which each place gets its
        next token and, as far as its drafts (-1: none) are what greedy decoding chooses, those after it
    grow(state, room=N) -> State
    take(state, place [B, R], more=n) -> State of these places alone, with n more own columns; `state` stays as it is
    follow(params, context, state, fed, alphabet [A]) -> (State with what was fed in its columns, log-probabilities that
        each token of the alphabet comes next [B, R, W, A])

    `state` is donated. `stops` int32 [any] are the tokens that end an answer; `draw` is None for greedy answers, else a
    `sampling.Draw`, whose keys [B, R, 2] only `fill` reads.
    """

    see: Callable
    read: Callable
    open: Callable
    fill: Callable
    proceed: Callable
    verify: Callable
    grow: Callable
    take: Callable
    follow: Callable


@functools.cache
def programs(cfg: VLMConfig, dtype, mesh: Mesh | None = None, spread: bool = False) -> Programs:
    """One set for all engines of a shape: weights before and after training share the compiled code.

    On a `mesh` image sets are `spread` over its rows, or every row of devices holds all.
    """

    def make(f, *static, donate=None, bound=True):
        given = functools.partial(f, cfg, dtype) if bound else f

        def settled(*args, **kwargs):
            return _settled(given(*args, **kwargs), mesh, spread)

        settled.__name__ = f.__name__.strip("_")
        return jax.jit(settled, static_argnames=static, donate_argnums=() if donate is None else (donate,))

    return Programs(
        make(_see),
        make(_read),
        make(_open, "places", "columns", "room", "drawn"),
        make(_fill, donate=2),
        make(_proceed, donate=2),
        make(_verify, donate=2),
        make(_grow, "room", bound=False),
        make(_take, "more", bound=False),
        make(_follow, donate=2),
    )


def _settled(result, mesh: Mesh | None, spread: bool):
    """The caches of a result where the mesh wants them: then what a program gives is laid out as what it is given."""
    if mesh is None or not isinstance(result, Context | State | tuple):
        return result
    if isinstance(result, tuple):
        return tuple(_settled(part, mesh, spread) for part in result)
    field, axis = ("caches", -4) if isinstance(result, Context) else ("own", -5)

    def rows(x, axis, heads=None):
        return jax.lax.with_sharding_constraint(x, meshes.rows_sharding(mesh, x.shape, axis if spread else None, heads))

    caches = jax.tree.map(lambda x: rows(x, axis % x.ndim, x.ndim - 3), getattr(result, field))
    others = {f.name: getattr(result, f.name) for f in dataclasses.fields(result) if f.name != field}
    return dataclasses.replace(result, **{field: caches}, **jax.tree.map(lambda x: rows(x, 0), others))


def _back_end() -> BackEnd:
    return BackEnd(platform=jax.default_backend(), forward_only=True)


def _see(cfg, dtype, params, batch):
    return VLM(cfg, params, dtype, back_end=_back_end()).see(batch)


def _read(cfg, dtype, params, seen, batch, start) -> Context:
    """Keys and values of the prefix."""
    model, (visual, taps) = VLM(cfg, params, dtype), seen
    order = jnp.broadcast_to(jnp.arange(batch["tokens"].shape[1]), batch["tokens"].shape)
    attend = prepare(Ids(batch["segments"], None, order), listed(batch, "pair"), back_end=_back_end())

    def keep(q, k, v, _):
        return attend(q, k, v), (k.transpose(0, 2, 3, 1), v.swapaxes(1, 2))

    slots = batch["visual_index"], batch["visual_slot"]
    caches = model.text(model.embed(batch, visual), batch["positions"], keep, taps=taps, slots=slots)[1]
    return Context(caches, batch["segments"] > 0, start, batch["tokens"])


def _open(cfg, dtype, context: Context, places: int, columns: int, room: int, drawn: bool) -> State:
    B = len(context.start)

    def own(prefix):
        *L, _, K, C, _ = prefix[0].shape
        shape = *L, B, places, K
        return tuple(jnp.zeros((*shape, *last), dtype) for last in ((C, columns), (columns, C)))

    zeros = jnp.zeros((B, places), jnp.int32)
    return State(
        tokens=jnp.full((B, places, room), -1, jnp.int32),
        count=zeros,
        lengths=zeros,
        done=jnp.ones((B, places), bool),
        own=jax.tree.map(own, context.caches, is_leaf=beside.is_pair),
        used=jnp.zeros((B, places, cfg.text.vocab_size), bool) if drawn else None,
        keys=jnp.zeros((B, places, 2), jnp.uint32) if drawn else None,
    )


def _fill(cfg, dtype, params, context, state, suffix, lengths, place, longest, stops, draw) -> State:
    model = VLM(cfg, params, dtype)
    (B, R, M), N = suffix.shape, state.tokens.shape[2]
    order = jnp.arange(M)
    asked = order < lengths[..., None]
    positions = context.start[:, None, None] + jnp.broadcast_to(order, suffix.shape)
    own = beside.Own(fresh_seen=asked[:, :, None] & jnp.tril(jnp.ones((M, M), bool)))
    hidden, fresh = beside.extend(model, suffix, positions, context, own, last=jnp.maximum(lengths - 1, 0))
    # Rows without a question go nowhere.
    there = jnp.arange(B)[:, None], jnp.where(lengths > 0, place, state.done.shape[1])
    used = keys = None
    if draw is not None:
        occurring = _occurring(context, suffix, asked, cfg.text.vocab_size)
        used, keys = state.used.at[there].set(occurring), state.keys.at[there].set(draw.keys)
    token = _chosen(model.text.logits(hidden[:, :, 0]), draw, 0, None if draw is None else occurring)
    if draw is not None:
        used = used.at[*there, token].set(True)
    begun = jnp.full((B, R, N), -1, jnp.int32).at[:, :, 0].set(token)
    return State(
        tokens=state.tokens.at[there].set(begun),
        count=state.count.at[there].set(1),
        lengths=state.lengths.at[there].set(lengths),
        done=state.done.at[there].set(_ends(token, stops) | (longest <= 1)),
        own=beside.put_rows(state.own, fresh, there),
        used=used,
        keys=keys,
    )


def _proceed(cfg, dtype, params, context, state, until, stops, draw) -> State:
    model = VLM(cfg, params, dtype)
    N = state.tokens.shape[2]

    def going(carry):
        step, state = carry
        full = ~state.done & (state.count >= N)
        freed = (state.done & until.waiting[:, None]).sum()
        return ~state.done.all() & ~full.any() & (freed < until.wake) & (step < until.steps)

    def one(carry):
        step, state = carry
        return step + 1, _pass(model, context, state, drafts, until.longest, stops, draw)

    drafts = jnp.zeros((*state.done.shape, 0), jnp.int32)
    return jax.lax.while_loop(going, one, (jnp.int32(0), state))[1]


def _verify(cfg, dtype, params, context, state, drafts, until, stops) -> State:
    return _pass(VLM(cfg, params, dtype), context, state, drafts, until.longest, stops, None)


def _pass(model: VLM, context, state: State, drafts, longest, stops, draw) -> State:
    """The last token of every place and its drafts through the model: their keys and values, and new tokens."""
    B, Q, N = state.tokens.shape
    D = 1 + drafts.shape[2]
    order = jnp.arange(D)
    current = jnp.take_along_axis(state.tokens, jnp.maximum(state.count - 1, 0)[..., None], 2)
    fed = jnp.maximum(jnp.concatenate([current, drafts], 2), 0)
    # Where the token that goes in now has its keys; those after it are of tokens that proved wrong.
    column = (state.lengths + jnp.maximum(state.count - 1, 0))[..., None]
    positions = context.start[:, None, None] + column + order
    itself = jnp.broadcast_to(jnp.tril(jnp.ones((D, D), bool)), (B, Q, D, D))
    own = beside.Own(itself, state.own, column + order)
    hidden, caches = beside.extend(model, fed, positions, context, own)
    logits = model.text.logits(hidden)
    if draw is None:
        token = _chosen(logits, None, None, None)
    else:
        draw = dataclasses.replace(draw, keys=state.keys)
        token = _chosen(logits[:, :, 0], draw, state.count, state.used)[..., None]
    ends = _ends(token, stops)
    right = jnp.concatenate([~state.done[..., None], token[..., :-1] == drafts], 2)
    before = jnp.cumsum(ends, 2) - ends
    places = state.count[..., None] + order
    new = (jnp.cumprod(right, 2) > 0) & (before == 0) & (places < jnp.minimum(longest, N))
    b, q = (x[..., None] for x in jnp.indices((B, Q)))
    used = None if draw is None else state.used.at[b, q, jnp.maximum(token, 0)].max(new)
    count = state.count + new.sum(2)
    return State(
        tokens=state.tokens.at[b, q, jnp.where(new, places, N)].set(token),
        count=count,
        lengths=state.lengths,
        done=state.done | (new & ends).any(2) | (count >= longest),
        own=caches,
        used=used,
        keys=state.keys,
    )


def _chosen(logits, draw, step, used):
    """int32: the next tokens, `BROKEN` where logits [..., vocabulary] are not finite."""
    # The largest of logits with a NaN among them is NaN.
    return jnp.where(jnp.isfinite(logits.max(-1)), choose(logits, draw, step, used), BROKEN)


def _ends(token, stops):
    return jnp.isin(token, stops) | (token == BROKEN)


def _grow(state: State, room: int) -> State:
    """The same with room for `room` tokens."""
    more = room - state.tokens.shape[2]
    tokens = jnp.pad(state.tokens, ((0, 0), (0, 0), (0, more)), constant_values=-1)
    return dataclasses.replace(state, own=_wider(state.own, more), tokens=tokens)


def _wider(own: dict, more: int) -> dict:
    """The same caches with `more` columns."""

    def pad(x, axis):
        widths = [(0, 0)] * x.ndim
        widths[axis] = 0, more
        return jnp.pad(x, widths)

    return jax.tree.map(lambda x: (pad(x[0], -1), pad(x[1], -2)), own, is_leaf=beside.is_pair)


def _take(state: State, place, more: int) -> State:
    b = np.arange(len(place))[:, None]
    own = jax.tree.map(lambda x: x[..., b, place, :, :, :], state.own)
    others = {name: getattr(state, name)[b, place] for name in ("tokens", "count", "lengths", "done")}
    return State(own=_wider(own, more), used=None, keys=None, **others)


def _follow(cfg, dtype, params, context, state, fed: Fed, alphabet):
    model = VLM(cfg, params, dtype)
    itself = jnp.broadcast_to(jnp.eye(fed.tokens.shape[2], dtype=bool), (*fed.tokens.shape, fed.tokens.shape[2]))
    own = beside.Own(itself, state.own, fed.columns, fed.seen)
    hidden, caches = beside.extend(model, fed.tokens, context.start[:, None, None] + fed.offsets, context, own)
    logits = model.text.logits(hidden)
    logs = jnp.take(logits, alphabet, -1) - jax.nn.logsumexp(logits, -1, keepdims=True)
    return dataclasses.replace(state, own=caches), logs


def _occurring(context: Context, suffix, asked, vocabulary: int):
    """bool [B, R, vocabulary]: which tokens a question and its prefix hold."""
    b, q, _ = jnp.indices(suffix.shape)
    rows = np.arange(len(context.tokens))[:, None]
    in_prefix = jnp.zeros((len(rows), vocabulary), bool).at[rows, context.tokens].max(context.seen)
    own = jnp.zeros((*suffix.shape[:2], vocabulary), bool).at[b, q, suffix].max(asked)
    return in_prefix[:, None] | own
