"""How the next token is chosen: greedy, or drawn after penalty, temperature, top-k and top-p as in transformers."""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vlm3_jax.errors import UserError
from vlm3_jax.files import Fields


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Settings of one call. The default is greedy.

    temperature: logits are divided by it, 0 takes the most probable token; top_k: only so many of the most probable
    tokens (and what ties with the last of them), 0 for all; top_p: of these only the fewest whose probabilities reach
    it; repetition_penalty: logits of tokens that occurred in prompt or answer are divided by it if positive, else
    multiplied; seed: a draw depends on it, the prompt (images included), the question and the step, not on what else is
    asked in the same call. So a question asked twice gets one answer, and another with another seed.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    repetition_penalty: float = 1.0

    def __post_init__(self):
        rules = [
            ("temperature", 0 <= self.temperature < float("inf"), "0 (greedy) or a positive number"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", 0 <= self.top_k < 2**31 and self.top_k == int(self.top_k), "a whole number, 0 for no limit"),
            ("seed", 0 <= self.seed < 2**32 and self.seed == int(self.seed), "a whole number from 0 to 2**32 - 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < float("inf"), "a positive number, 1 for none"),
        ]
        for name, holds, expected in rules:
            if not holds:
                raise UserError(f"sampling: {name} is {getattr(self, name)}, expected {expected}")

    @classmethod
    def from_dir(cls, model_dir, **given) -> "Sampling":
        """What the checkpoint's generation_config.json proposes, with `given` settings (None: not given) in its place.

        Settings that neither names do nothing: temperature 1, no top_k and no top_p. (transformers' own top_k is then
        50.)
        """
        fields = _stored(model_dir)
        stored = {
            name: fields.number(name) for name in ("temperature", "top_p", "repetition_penalty") if name in fields
        }
        stored |= {"top_k": fields.integer("top_k", 0)} if "top_k" in fields else {}
        try:
            cls(**stored)
        except UserError as error:
            raise UserError(f"{fields.name}: {str(error).removeprefix('sampling: ')}") from None
        given = {name: value for name, value in given.items() if value is not None}
        return cls(**{"temperature": 1.0} | stored | given)

    @property
    def greedy(self) -> bool:
        """Whether tokens are simply the most probable ones."""
        return self.temperature == 0 and self.repetition_penalty == 1


GREEDY = Sampling()


def stored_max_new_tokens(model_dir) -> int | None:
    """The length of answers that the checkpoint's generation_config.json names, if it does."""
    return _stored(model_dir).integer("max_new_tokens", default=None)


def _stored(model_dir) -> Fields:
    """What generation_config.json holds."""
    path = pathlib.Path(model_dir) / "generation_config.json"
    return Fields.read(path, null=True) if path.exists() else Fields({}, str(path))


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("keys", "temperature", "top_p", "top_k", "repetition_penalty"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True)
class Draw:
    """Sampling as arrays, so that other values need no other program.

    keys: uint32 [B, Q, 2], one for each question; None in a draw for whatever is in the places.
    """

    keys: np.ndarray | None
    temperature: np.ndarray
    top_p: np.ndarray
    top_k: np.ndarray
    repetition_penalty: np.ndarray

    @classmethod
    def make(cls, sampling: Sampling, identities: np.ndarray | None) -> "Draw | None":
        """For questions with the given `identity`s, uint32 [B, Q, 2] (None: without keys); None if greedy."""
        if sampling.greedy:
            return None
        return cls(
            None if identities is None else _keys(np.uint32(sampling.seed), identities),
            np.float32(sampling.temperature),
            np.float32(sampling.top_p),
            np.int32(sampling.top_k),
            np.float32(sampling.repetition_penalty),
        )


def identity(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """uint32 [2]: a hash of the contents of arrays."""
    digest = hashlib.blake2b(digest_size=8)
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return np.frombuffer(digest.digest(), np.uint32)


@jax.jit
def _keys(seed, identities):
    def one(words):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), words[0]), words[1])
        return jax.random.key_data(key)

    return jax.vmap(jax.vmap(one))(identities)


def choose(logits, draw: Draw | None, step, used):
    """The next tokens int32 [B, Q] from logits [B, Q, V] (if greedy: [..., V]).

    `step`: how many were chosen before, int32 [B, Q] or for all; `used` bool [B, Q, V]: what the penalty applies to.
    """
    if draw is None:
        return jnp.argmax(logits, -1).astype(jnp.int32)
    scores = penalize(logits, used, draw.repetition_penalty)

    def sample(scores):
        def one(key, step, scores):
            key = jax.random.fold_in(jax.random.wrap_key_data(key), step)
            return jax.random.categorical(key, scores).astype(jnp.int32)

        scores = warp(scores, draw.temperature, draw.top_k, draw.top_p)
        return jax.vmap(jax.vmap(one))(draw.keys, jnp.broadcast_to(step, scores.shape[:-1]), scores)

    return jax.lax.cond(draw.temperature > 0, sample, lambda scores: jnp.argmax(scores, -1).astype(jnp.int32), scores)


def penalize(logits, used, penalty):
    """Logits [..., V] of the tokens in `used` made less likely by `penalty`."""
    return jnp.where(used, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def warp(logits, temperature, top_k, top_p):
    """float32 logits [..., V] of the tokens to draw from, -inf for all others; the settings are scalars.

    No sorting: the value of the last token to keep is found by halving the range of floats, 32 passes over the
    vocabulary each for top_k and top_p, and none where these are off.
    """
    logits = logits.astype(jnp.float32) / temperature
    logits = jax.lax.cond(top_k > 0, lambda x: _top_k(x, top_k), lambda x: x, logits)
    return jax.lax.cond(top_p < 1, lambda x: _top_p(x, top_p), lambda x: x, logits)


def _top_k(logits, k):
    """Keeps what is at least as large as the k-th largest value."""
    k = jnp.minimum(k, logits.shape[-1])
    order = _order(logits)
    last = _largest(order, lambda kept: kept.sum(-1, keepdims=True) >= k)
    return jnp.where(order >= last, logits, -jnp.inf)


def _top_p(logits, p):
    """Keeps the fewest most probable tokens whose probabilities add up to at least p.

    Of equally probable tokens at the end those with the largest ids are kept, as a stable ascending sort has it.
    """
    order, probability = _order(logits), jax.nn.softmax(logits, -1)

    def mass(kept):
        return jnp.where(kept, probability, 0).sum(-1, keepdims=True)

    last = _largest(order, lambda kept: mass(kept) >= p)
    tied, above = order == last, order > last
    after = jnp.flip(jnp.cumsum(jnp.flip(tied, -1), -1), -1) - tied
    kept = above | (tied & (mass(above) + after * probability < p))
    return jnp.where(kept, logits, -jnp.inf)


def _order(x):
    """int32 with the order of the floats x; +0 and -0 are one value."""
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x), jnp.int32)
    return jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)


def _largest(order, enough):
    """The largest int32 t [..., 1] for which enough(order >= t); `enough` holds for the lowest t if for any."""

    def halve(_, bounds):
        low, high = bounds
        # The mean rounded up, without overflow.
        middle = (low >> 1) + (high >> 1) + ((low | high) & 1)
        holds = enough(order >= middle)
        return jnp.where(holds, middle, low), jnp.where(holds, high, middle - 1)

    shape = (*order.shape[:-1], 1)
    bounds = jnp.full(shape, jnp.iinfo(jnp.int32).min), jnp.full(shape, jnp.iinfo(jnp.int32).max)
    return jax.lax.fori_loop(0, 32, halve, bounds)[0]
