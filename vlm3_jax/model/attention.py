"""Attention as one function: who may see whom is described by ids and lists of blocks, prepared once for all layers."""

import dataclasses
import functools
import importlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from vlm3_jax.errors import UserError
from vlm3_jax.model.block_pairs import Pairs
from vlm3_jax.model.block_pairs import attend as block_pairs
from vlm3_jax.model.layers import Locally, run_as_it_is
from vlm3_jax.shapes import Array

# Scores of so many (query, key) pairs a row are computed at once; longer rows go in chunks of queries.
MAX_PAIRS = 1 << 22
BACK_ENDS = ("auto", "xla", "pallas")
_LOW = float(jnp.finfo(jnp.float32).min)


@functools.partial(jax.tree_util.register_dataclass, data_fields=("segments", "questions", "order"), meta_fields=())
@dataclasses.dataclass(frozen=True)
class Ids:
    """What decides visibility, int32 [B, S] each.

    `segments`: the sample (or image) a token belongs to, 0 for padding. `questions`: 0 for the shared prefix, else the
    number of the independent question. `order`: place in the row for causal attention, or None.
    """

    segments: Array
    questions: Array | None = None
    order: Array | None = None


def sees(queries: Ids, keys: Ids) -> Array:
    """Elementwise, bool: same segment, not later, and a question sees only the shared prefix and itself."""
    mask = queries.segments == keys.segments
    if queries.order is not None:
        mask &= keys.order <= queries.order
    if queries.questions is not None:
        mask &= (keys.questions == 0) | (keys.questions == queries.questions)
    return mask


def visible(queries: Ids, keys: Ids) -> Array:
    """bool [..., S, T]: who `sees` whom."""
    return sees(jax.tree.map(lambda x: x[..., :, None], queries), jax.tree.map(lambda x: x[..., None, :], keys))


def listed(batch: dict, name: str) -> Pairs | None:
    """The pairs of blocks that the host has listed under `name` ("pair": text, "patch_pair": images), if it has."""
    return Pairs(batch[f"{name}_starts"], batch[f"{name}_keys"]) if f"{name}_keys" in batch else None


@dataclasses.dataclass(frozen=True)
class BackEnd:
    """What works through pairs of blocks: `name` as in `train.attention`, `platform` as jax names the kind of device.

    "auto" takes the Pallas kernel of the platform if there is one and the blocks suit it, else XLA. With `interpret`
    kernels run by an interpreter (as in `pallas_call`), for tests without the device. `forward_only`: nobody asks for
    a gradient.
    """

    name: str = "auto"
    platform: str = "cpu"
    interpret: object = False
    forward_only: bool = False

    def kernels(self, block: int) -> str | None:
        """The module of `model/kernels` that takes blocks of so many tokens (0: no pairs are listed); None: XLA.

        UserError if the name is unknown, or "pallas" and there is no kernel for this.
        """
        if self.name not in BACK_ENDS:
            raise UserError(f"train.attention: {self.name!r} is unknown; choose one of {', '.join(BACK_ENDS)}")
        # A TPU has 128 lanes; Triton's tiles are powers of two, and larger ones do not fit a program's registers.
        suits = {"tpu": block % 128 == 0, "gpu": block in (16, 32, 64, 128)}
        if self.name != "xla" and block and (suits.get(self.platform) or self.interpret):
            return self.platform
        if self.name != "pallas":
            return None
        if self.platform not in suits:
            raise UserError(f"train.attention: there is no kernel for {self.platform} devices; use auto or xla")
        raise UserError(
            f"train.attention is pallas, but data.pair_block is {block}: set it to 128, with "
            "data.pairs and data.patch_pairs as `vlm3 data mix` proposes them, or use auto or xla"
        )


def prepare(
    ids: Ids, pairs: Pairs | None = None, locally: Locally = run_as_it_is, back_end: BackEnd | None = None
) -> Callable:
    """Self-attention (q [B, S, H, C], k, v [B, S, K, C]) -> [B, S, H, C] within a row, for any number of layers.

    `pairs`, from the host: the pairs of blocks that can see each other, as sparse rows; the work is then theirs instead
    of S * S. They are worked through one by one, by each device for its own rows (`locally`), by `back_end` (None: as
    "auto" finds the default device). Scores and softmax are float32.
    """
    S = ids.segments.shape[1]
    if pairs is not None:
        back_end = back_end or BackEnd(platform=jax.default_backend())
        if module := back_end.kernels(S // (pairs.starts.shape[1] - 1)):
            return _by_kernels(module, back_end.interpret, ids, pairs, locally)
        attend = functools.partial(block_pairs, visible=visible, forward_only=back_end.forward_only)
        return lambda q, k, v: locally(attend)(q, k, v, ids, pairs)
    size = max(1, MAX_PAIRS // S)
    if size >= S:
        mask = visible(ids, ids)
        return _named(lambda q, k, v: _attend(q, k, v, mask))
    return _named(_by_chunks(ids, -(-S // size)))


def _named(attend: Callable) -> Callable:
    """Its output under the name that remat keeps; those with a backward pass of their own name it there, once."""
    return lambda q, k, v: checkpoint_name(attend(q, k, v), "attended")


def _by_kernels(module: str, interpret, ids: Ids, pairs: Pairs, locally: Locally) -> Callable:
    # Imported where they are used: the rest of the package does without Pallas, which takes its time to import.
    attend, kernels = (importlib.import_module(f"vlm3_jax.model.kernels.{name}") for name in ("attend", module))
    orders = attend.both_orders(pairs)
    run = locally(functools.partial(attend.attend, kernels=kernels, sees=sees, interpret=interpret), heads=3)
    return lambda q, k, v: run(q, k, v, ids, orders)


def _by_chunks(ids: Ids, chunks: int) -> Callable:
    """Dense attention for long rows: a chunk of queries at a time, masks made and scores recomputed chunk by chunk."""
    S = ids.segments.shape[1]
    size = -(-S // chunks)

    def split(x):
        x = jnp.pad(x, [(0, 0), (0, chunks * size - S)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], chunks, size, *x.shape[2:]), 1, 0)

    def attend(q, k, v):
        @jax.checkpoint
        def chunk(item):
            q, part = item
            return _attend(q, k, v, visible(part, ids))

        out = jax.lax.map(chunk, (split(q), jax.tree.map(split, ids)))
        return jnp.moveaxis(out, 0, 1).reshape(q.shape[0], chunks * size, *q.shape[2:])[:, :S]

    return attend


def _attend(q_BSHC, k_BTKC, v_BTKC, mask_BST):
    """Softmax attention with grouped kv heads; a query that sees nothing gets the mean of all values (never used)."""
    (B, S, H, C), (_, T, K, _) = q_BSHC.shape, k_BTKC.shape
    G = H // K
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    # The queries of all heads of a group side by side: plain batched products, which CPUs run up to twice as fast.
    q = q_BSHC.reshape(B, S, K, G, C).transpose(0, 2, 3, 1, 4).reshape(B, K, G * S, C)
    k, v = (x.transpose(0, 2, 1, 3) for x in (k_BTKC, v_BTKC))
    scores = product("bkxc,bktc->bkxt", q, k).reshape(B, K, G, S, T) * C**-0.5
    scores = jnp.where(mask_BST[:, None, None], scores, _LOW)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype).reshape(B, K, G * S, T)
    out = product("bkxt,bktc->bkxc", weights, v).reshape(B, K, G, S, C)
    return out.transpose(0, 3, 1, 2, 4).reshape(B, S, H, C).astype(q.dtype)
