"""The device's part of answering: images and prefix once, the questions beside each other, then token after token.

Letters: B image sets, Q questions each, S prefix tokens, M tokens of a question, N room for new tokens, U = M + N own
tokens of a question, L layers, H heads, K kv heads, G = H / K, C head size. Caches are [L, B, K, S, C] for the prefix
and [L, B, Q, K, U, C] for the questions' own tokens, so that a step reads them as they lie and writes one column.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vlm3_jax.infer.sampling import choose
from vlm3_jax.model.attention import Ids, prepare
from vlm3_jax.model.config import VLMConfig
from vlm3_jax.model.vlm import VLM
from vlm3_jax.shapes import Array

# In place of a token whose logits are not finite.
BROKEN = -2
_LOW = float(jnp.finfo(jnp.float32).min)


@functools.partial(jax.tree_util.register_dataclass, data_fields=("caches", "seen", "lengths", "start"), meta_fields=())
@dataclasses.dataclass(frozen=True)
class Context:
    """What decoding reads only.

    caches: {stack: (k, v)} of the prefix; seen: bool [B, S], which of its tokens are real; lengths: int32 [B, Q] of the
    questions (0: nobody asks); start: int32 [B], the position of a question's first token.
    """

    caches: dict
    seen: Array
    lengths: Array
    start: Array


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("step", "tokens", "done", "own", "used"), meta_fields=()
)
@dataclasses.dataclass(frozen=True)
class State:
    """What a step changes.

    step: number of tokens chosen; tokens: int32 [B, Q, N], -1 where none is, `BROKEN` where logits were not finite;
    done: bool [B, Q]; own: {stack: (k, v)} of the questions' own tokens; used: bool [B, Q, vocabulary], tokens that
    occur in prompt or answer (None if greedy).
    """

    step: Array
    tokens: Array
    done: Array
    own: dict
    used: Array | None


class Programs(NamedTuple):
    """The compiled functions of one model shape.

    begin(params, batch, suffix [B, Q, M], lengths [B, Q], start [B], stops, draw, room=N)
        -> (Context, State with one token)
    proceed(params, context, state, limit, stops, draw) -> State: on until all are done, or have `limit` or N tokens;
        `state` is donated
    grow(state, room=N) -> State

    `stops` int32 [any] are the tokens that end an answer; `draw` is None for greedy answers, else a `sampling.Draw`.
    """

    begin: Callable
    proceed: Callable
    grow: Callable


@functools.cache
def programs(cfg: VLMConfig, dtype) -> Programs:
    """One set for all engines of a shape: weights before and after training share the compiled code."""
    return Programs(
        jax.jit(functools.partial(_begin, cfg, dtype), static_argnames="room"),
        jax.jit(functools.partial(_proceed, cfg, dtype), donate_argnames="state"),
        jax.jit(_grow, static_argnames="room"),
    )


def _begin(cfg, dtype, params, batch, suffix, lengths, start, stops, draw, room):
    model = VLM(cfg, params, dtype)
    B, Q, M = suffix.shape
    context = Context(_prefill(model, batch), batch["segments"] > 0, lengths, start)
    asked = jnp.arange(M) < lengths[..., None]
    causal = jnp.tril(jnp.ones((M, M), bool))
    seen = asked[:, :, None] & causal
    positions = start[:, None, None] + jnp.broadcast_to(jnp.arange(M), (B, Q, M))
    hidden, fresh = _extend(model, suffix, positions, context, None, None, seen)
    hidden = jnp.take_along_axis(hidden, jnp.maximum(lengths - 1, 0)[..., None, None], 2)[:, :, 0]
    own = jax.tree.map(lambda x: _padded(x, 4, M + room), fresh)
    used = None if draw is None else _occurring(batch["tokens"], context.seen, suffix, asked, cfg.text.vocab_size)
    tokens = jnp.full((B, Q, room), -1, jnp.int32)
    state = State(jnp.zeros((), jnp.int32), tokens, lengths == 0, own, used)
    return context, _write(model, state, hidden, stops, draw)


def _proceed(cfg, dtype, params, context, state, limit, stops, draw):
    model = VLM(cfg, params, dtype)
    N = state.tokens.shape[-1]
    limit = jnp.minimum(limit, N)

    def going(state):
        return (state.step < limit) & ~state.done.all()

    def one(state):
        U = jax.tree.leaves(state.own)[0].shape[4]
        column = U - N + state.step - 1
        current = jax.lax.dynamic_index_in_dim(state.tokens, state.step - 1, 2)
        columns = jnp.arange(U)
        own_seen = (columns < context.lengths[..., None]) | ((columns >= U - N) & (columns < column))
        place = (context.start[:, None] + context.lengths + state.step - 1)[..., None]
        itself = jnp.ones((*current.shape, 1), bool)
        hidden, fresh = _extend(model, jnp.maximum(current, 0), place, context, state.own, own_seen, itself)
        own = jax.tree.map(lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new, column, 4), state.own, fresh)
        return _write(model, dataclasses.replace(state, own=own), hidden[:, :, 0], stops, draw)

    return jax.lax.while_loop(going, one, state)


def _write(model: VLM, state: State, hidden, stops, draw) -> State:
    """Chooses the next token of every question from its last hidden state [B, Q, D] and puts it down."""
    logits = model.text.logits(hidden)
    token = choose(logits, draw, state.step, state.used)
    # The largest of logits with a NaN among them is NaN.
    token = jnp.where(jnp.isfinite(logits.max(-1)), token, BROKEN)
    token = jnp.where(state.done, -1, token)
    used = state.used
    if used is not None:
        b, q = jnp.indices(token.shape)
        used = used.at[b, q, token].max(~state.done)
    tokens = jax.lax.dynamic_update_slice_in_dim(state.tokens, token[..., None], state.step, 2)
    done = state.done | jnp.isin(token, stops) | (token == BROKEN)
    return State(state.step + 1, tokens, done, state.own, used)


def _grow(state: State, room: int) -> State:
    """The same with room for `room` tokens."""
    more = room - state.tokens.shape[-1]
    own = jax.tree.map(lambda x: _padded(x, 4, x.shape[4] + more), state.own)
    return dataclasses.replace(state, own=own, tokens=_padded(state.tokens, 2, room, -1))


def _padded(x, axis: int, size: int, value=0):
    widths = [(0, 0)] * x.ndim
    widths[axis] = 0, size - x.shape[axis]
    return jnp.pad(x, widths, constant_values=value)


def _occurring(prefix, prefix_seen, suffix, asked, vocabulary: int):
    """bool [B, Q, vocabulary]: which tokens a question and its prefix hold."""
    b, q, _ = jnp.indices(suffix.shape)
    in_prefix = jnp.zeros((len(prefix), vocabulary), bool).at[jnp.arange(len(prefix))[:, None], prefix].max(prefix_seen)
    own = jnp.zeros((*suffix.shape[:2], vocabulary), bool).at[b, q, suffix].max(asked)
    return in_prefix[:, None] | own


def _prefill(model: VLM, batch) -> dict:
    """Keys and values of the prefix: {stack: (k, v) [L, B, K, S, C]}."""
    visual, taps = model.see(batch)
    order = jnp.broadcast_to(jnp.arange(batch["tokens"].shape[1]), batch["tokens"].shape)
    attend = prepare(Ids(batch["segments"], None, order))

    def keep(q, k, v, _):
        return attend(q, k, v), tuple(x.swapaxes(1, 2) for x in (k, v))

    slots = batch["visual_index"], batch["visual_slot"]
    return model.text(model.embed(batch, visual), batch["positions"], keep, taps=taps, slots=slots)[1]


def _extend(model: VLM, tokens, positions, context: Context, own, own_seen, fresh_seen):
    """Runs M more tokens of every question: (hidden [B, Q, M, D], their keys and values {stack: [L, B, Q, K, M, C]}).

    tokens and positions [B, Q, M]; they see the prefix, of the question's earlier tokens `own` (None: there are none)
    those in `own_seen` [B, Q, U], and of themselves `fresh_seen` [B, Q, M, M].
    """
    B, Q, M = tokens.shape
    prefix_seen = context.seen[:, None, None]

    def attend(q, k, v, caches):
        prefix, own = caches
        q, k, v = (x.reshape(B, Q, M, -1, x.shape[-1]) for x in (q, k, v))
        fresh = tuple(x.swapaxes(2, 3) for x in (k, v))
        K, C = k.shape[3:]
        # All questions' queries against the shared keys in one product, [B, K, Q * M * G, C].
        q = q.reshape(B, Q, M, K, -1, C).transpose(0, 1, 3, 2, 4, 5)
        G = q.shape[4]
        side_by_side = q.swapaxes(1, 2).reshape(B, K, Q * M * G, C)
        shared = (x.reshape(B, K, Q, M * G, -1).swapaxes(1, 2) for x in _part(side_by_side, *prefix, prefix_seen))
        q = q.reshape(B, Q, K, M * G, C)
        parts = [tuple(shared), _part(q, *fresh, jnp.repeat(fresh_seen, G, 2)[:, :, None])]
        if own is not None:
            parts.append(_part(q, *own, own_seen[:, :, None, None]))
        out = _join(parts).astype(k.dtype).reshape(B, Q, K, M, G, C)
        return out.transpose(0, 1, 3, 2, 4, 5).reshape(B, Q * M, K * G, C), fresh

    x = model.text.embed(tokens.reshape(B, Q * M), model.dtype)
    axes = jnp.broadcast_to(positions.reshape(B, 1, Q * M), (B, 3, Q * M))
    caches = {name: (prefix, None if own is None else own[name]) for name, prefix in context.caches.items()}
    hidden, fresh, _ = model.text(x, axes, attend, cache=caches)
    return hidden.reshape(B, Q, M, -1), fresh


def _part(q, k, v, seen):
    """Attention to some of the keys: (largest score, sum of weights [..., X, 1] each, weighted values [..., X, C]).

    q [..., X, C], k and v [..., T, C], seen [..., 1 or X, T]; weights are exp(score - largest), float32 sums. Where
    nothing is seen the largest score is the lowest float, and `_join` leaves the part out.
    """
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    scores = jnp.where(seen, product("...xc,...tc->...xt", q, k) * q.shape[-1] ** -0.5, _LOW)
    largest = scores.max(-1, keepdims=True)
    weights = jnp.exp(scores - largest)
    return largest, weights.sum(-1, keepdims=True), product("...xt,...tc->...xc", weights.astype(v.dtype), v)


def _join(parts):
    """One softmax over the keys of all parts: [..., X, C], float32."""
    largest = functools.reduce(jnp.maximum, (part[0] for part in parts))
    scales = [jnp.exp(part[0] - largest) for part in parts]
    total = sum(scale * part[1] for scale, part in zip(scales, parts))
    return sum(scale * part[2] for scale, part in zip(scales, parts)) / total
