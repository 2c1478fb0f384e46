"""The decoder: grouped-query attention with q/k norms, SwiGLU, DeepStack features added after the first layers."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from vlm3_jax.model import moe, rope
from vlm3_jax.model.config import VLMConfig
from vlm3_jax.model.layers import Group, Locally, embed, rms_norm, run_as_it_is, take_unique
from vlm3_jax.model.params import text_stacks
from vlm3_jax.shapes import Array, Bool, Float, Float32, Int

# (q [B, S, H, C], k, v [B, S, K, C], the layer's cache) -> (output [B, S, H, C], new cache)
Attend = Callable


class TextLayer(Group):
    """One decoder layer. Attention itself is passed in, so that training and cached decoding share the layer."""

    def __call__(
        self, x_BSD: Float[Array, "B S D"], cos, sin, attend: Attend, cache, eps: float, feed_forward: Callable,
        narrow: Callable | None = None,
    ) -> tuple[Float[Array, "B W D"], object, object]:  # fmt: skip
        """[B, S, D] -> ([B, W, D], new cache of the layer, use of its experts or None).

        `narrow` [B, S, any, ...] -> [B, W, any, ...]: which tokens are wanted; all have keys and values, only these
        ask and go on. None: all, W = S.
        """
        h = rms_norm(x_BSD, self.norm1, eps)
        asking, turn = h, (cos, sin)
        if narrow is not None:
            x_BSD, asking, *turn = (narrow(x) for x in (x_BSD, h, cos, sin))
        names = (("q_proj", "bsd,dhc->bshc"), ("k_proj", "bsd,dkc->bskc"), ("v_proj", "bsd,dkc->bskc"))
        q, k, v = (
            checkpoint_name(self.linear(name, of, contract), "qkv")
            for (name, contract), of in zip(names, (asking, h, h), strict=True)
        )
        q, k = rms_norm(q, self.q_norm, eps), rms_norm(k, self.k_norm, eps)
        h, cache = attend(rope.rotate(q, *turn), rope.rotate(k, cos, sin), v, cache)
        x_BSD = x_BSD + self.linear("o_proj", h, "bshc,hcd->bsd")
        h = rms_norm(x_BSD, self.norm2, eps)
        h, use = feed_forward(self, h)
        return x_BSD + h, cache, use


def mlp(layer: Group, x_BSD: Float[Array, "B S D"]) -> tuple[Float[Array, "B S D"], None]:
    """SwiGLU, [B, S, D] -> [B, S, D]; there are no experts whose use could be told."""
    gate, up = (
        checkpoint_name(layer.linear(name, x_BSD, "bsd,df->bsf"), "hidden") for name in ("gate_proj", "up_proj")
    )
    return layer.linear("down_proj", jax.nn.silu(gate) * up, "bsf,fd->bsd"), None


def _layers(params):
    """A stack's parameters as a layer: stacked ones as one whose parameters have a layer axis, a list as a list."""
    return nnx.List(map(TextLayer, params)) if isinstance(params, list) else TextLayer(params)


def _one_by_one(layers, run, x, items, narrow):
    """The layers of a list; `items` are lists (or None) of what belongs to each, as is what comes back beside x."""
    found = []
    for number, layer in enumerate(layers):
        own = (None if of_layers is None else of_layers[number] for of_layers in items)
        x, new = run(x, (layer, *own), narrow if number == len(layers) - 1 else None)
        found.append(new)
    return x, tuple(map(list, zip(*found, strict=True)))


def _scanned(stack, run, x, items, remat):
    """The layers of a stack: whatever belongs to a layer has a leading layer axis."""
    graph, state = nnx.split(stack)

    def body(x, item):
        layer, *own = item
        return run(x, (nnx.merge(graph, layer), *own))

    return jax.lax.scan(remat(body), x, (state, *items))


def _nothing(x, use):
    return None


class Decoder(nnx.Module):
    """Token embeddings -> hidden states after the final norm."""

    def __init__(self, cfg: VLMConfig, params: dict, locally: Locally = run_as_it_is):
        self.cfg, self.locally = cfg, locally
        self.ends = Group({k: v for k, v in params.items() if not isinstance(v, dict | list)})
        names = [name for name, _ in text_stacks(cfg.text, len(cfg.vision.taps))]
        self.stacks = nnx.Dict({name: _layers(params[name]) for name in names})

    def embed(self, tokens_BS: Int[Array, "B S"], dtype) -> Float[Array, "B S D"]:
        """int [B, S] -> [B, S, D]."""
        # Every device looks up its own rows in the whole table; a cut table would send activations around instead.
        look_up = self.locally(lambda tokens, table: embed(table, tokens), 1)
        return look_up(tokens_BS, self.ends.embed[...]).astype(dtype)

    def __call__(
        self, x_BSD: Float[Array, "B S D"], positions_B3S: Int[Array, "B 3 S"], attend: Attend, cache=None,
        taps: Float[Array, "taps B V D"] | None = None, slots=None, valid: Bool[Array, "B S"] | None = None,
        keep=_nothing, remat=lambda f: f, narrow: Callable | None = None,
    ) -> tuple[Float[Array, "B W D"], dict, dict]:  # fmt: skip
        """Hidden states [B, W, D] (W = S, or fewer by `narrow`), the new cache ({stack: per-layer leaves}) and the
        intermediates.

        `taps` [taps, B, V, D] is added after the first layers at the places that `slots` = (visual_index, visual_slot)
        names; None for text alone. `keep` says what to keep of every layer, from its output [B, S, D] and the use of
        its experts (sums [E] of `moe.use` over `valid` [B, S]; None without experts): {stack: with leading layer axis}.

        A stack whose parameters are a list of layers runs layer by layer, its cache and what is kept are lists too: a
        CPU copies what a loop takes from a stack. Of these the very last layer may be told what is wanted (`narrow`).
        """
        text = self.cfg.text
        cos, sin = rope.text_rotary(text, positions_B3S, x_BSD.dtype)
        feed_forward = mlp
        if text.experts:
            feed_forward = functools.partial(
                moe.feed_forward, k=text.experts_per_token, valid_BS=valid, locally=self.locally
            )
        stay = self.locally(lambda x: x)

        def run(x, item, narrow=None):
            layer, layer_cache, tap = item
            x, layer_cache, use = layer(stay(x), cos, sin, attend, layer_cache, text.rms_norm_eps, feed_forward, narrow)
            if tap is not None:
                x = x + take_unique(tap.astype(x.dtype), *slots)
            return stay(x), (layer_cache, keep(x, use))

        new_cache, intermediates = {}, {}
        last = list(self.stacks)[-1]
        for name, stack in self.stacks.items():
            items = None if cache is None else cache[name], taps if name == "layers_tap" else None
            if isinstance(stack, nnx.List):
                x_BSD, found = _one_by_one(stack, run, x_BSD, items, narrow if name == last else None)
            else:
                x_BSD, found = _scanned(stack, run, x_BSD, items, remat)
            new_cache[name], intermediates[name] = found
        return rms_norm(x_BSD, self.ends.norm, text.rms_norm_eps), new_cache, intermediates

    def logits(self, h: Float[Array, "*batch D"]) -> Float32[Array, "*batch vocabulary"]:
        """[..., D] -> float32 [..., vocabulary], with the embedding table as head where the weights are tied."""
        head = self.ends.embed if self.cfg.text.tie_word_embeddings else self.ends.head
        return jnp.einsum("...d,vd->...v", h, head[...].astype(h.dtype), preferred_element_type=jnp.float32)
