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
        self, x_BSD: Float[Array, "B S D"], cos, sin, attend: Attend, cache, eps: float, feed_forward: Callable
    ) -> tuple[Float[Array, "B S D"], object, object]:
        """[B, S, D] -> ([B, S, D], new cache of the layer, use of its experts or None)."""
        h = rms_norm(x_BSD, self.norm1, eps)
        names = (("q_proj", "bsd,dhc->bshc"), ("k_proj", "bsd,dkc->bskc"), ("v_proj", "bsd,dkc->bskc"))
        q, k, v = (checkpoint_name(self.linear(name, h, contract), "qkv") for name, contract in names)
        q, k = rms_norm(q, self.q_norm, eps), rms_norm(k, self.k_norm, eps)
        h, cache = attend(rope.rotate(q, cos, sin), rope.rotate(k, cos, sin), v, cache)
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


def _nothing(x, use):
    return None


class Decoder(nnx.Module):
    """Token embeddings -> hidden states after the final norm."""

    def __init__(self, cfg: VLMConfig, params: dict, locally: Locally = run_as_it_is):
        self.cfg, self.locally = cfg, locally
        self.ends = Group({k: v for k, v in params.items() if not isinstance(v, dict)})
        self.stacks = nnx.Dict({k: TextLayer(params[k]) for k, _ in text_stacks(cfg.text, len(cfg.vision.taps))})

    def embed(self, tokens_BS: Int[Array, "B S"], dtype) -> Float[Array, "B S D"]:
        """int [B, S] -> [B, S, D]."""
        # Every device looks up its own rows in the whole table; a cut table would send activations around instead.
        look_up = self.locally(lambda tokens, table: embed(table, tokens), 1)
        return look_up(tokens_BS, self.ends.embed[...]).astype(dtype)

    def __call__(
        self, x_BSD: Float[Array, "B S D"], positions_B3S: Int[Array, "B 3 S"], attend: Attend, cache=None,
        taps: Float[Array, "taps B V D"] | None = None, slots=None, valid: Bool[Array, "B S"] | None = None,
        keep=_nothing, remat=lambda f: f,
    ) -> tuple[Float[Array, "B S D"], dict, dict]:  # fmt: skip
        """Hidden states [B, S, D], the new cache ({stack: per-layer leaves}) and the intermediates.

        `taps` [taps, B, V, D] is added after the first layers at the places that `slots` = (visual_index, visual_slot)
        names; None for text alone. `keep` says what to keep of every layer, from its output [B, S, D] and the use of
        its experts (sums [E] of `moe.use` over `valid` [B, S]; None without experts): {stack: with leading layer axis}.
        """
        text = self.cfg.text
        cos, sin = rope.text_rotary(text, positions_B3S, x_BSD.dtype)
        feed_forward = mlp
        if text.experts:
            feed_forward = functools.partial(
                moe.feed_forward, k=text.experts_per_token, valid_BS=valid, locally=self.locally
            )
        stay = self.locally(lambda x: x)
        new_cache, intermediates = {}, {}
        for name, stack in self.stacks.items():
            graph, state = nnx.split(stack)
            extra = taps if name == "layers_tap" else None

            def body(x, item, graph=graph):
                layer, layer_cache, tap = item
                layer = nnx.merge(graph, layer)
                x, layer_cache, use = layer(stay(x), cos, sin, attend, layer_cache, text.rms_norm_eps, feed_forward)
                if tap is not None:
                    x = x + take_unique(tap.astype(x.dtype), *slots)
                return stay(x), (layer_cache, keep(x, use))

            layer_caches = None if cache is None else cache[name]
            x_BSD, (new_cache[name], intermediates[name]) = jax.lax.scan(
                remat(body), x_BSD, (state, layer_caches, extra)
            )
        return rms_norm(x_BSD, self.ends.norm, text.rms_norm_eps), new_cache, intermediates

    def logits(self, h: Float[Array, "*batch D"]) -> Float32[Array, "*batch vocabulary"]:
        """[..., D] -> float32 [..., vocabulary], with the embedding table as head where the weights are tied."""
        head = self.ends.embed if self.cfg.text.tie_word_embeddings else self.ends.head
        return jnp.einsum("...d,vd->...v", h, head[...].astype(h.dtype), preferred_element_type=jnp.float32)
