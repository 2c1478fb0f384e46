"""The decoder: grouped-query attention with q/k norms, SwiGLU, DeepStack features added after the first layers."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from vlm3_jax.model import rope
from vlm3_jax.model.config import VLMConfig
from vlm3_jax.model.layers import Group, embed, rms_norm, take_unique
from vlm3_jax.params import text_stacks

# (q [B, S, H, C], k, v [B, S, K, C], the layer's cache) -> (output [B, S, H, C], new cache)
Attend = Callable


class TextLayer(Group):
    """One decoder layer. Attention itself is passed in, so that training and cached decoding share the layer."""

    def __call__(self, x_BSD, cos, sin, attend: Attend, cache, eps: float):
        """[B, S, D] -> ([B, S, D], new cache of the layer)."""
        h = rms_norm(x_BSD, self.norm1, eps)
        q = rms_norm(self.linear("q_proj", h, "bsd,dhc->bshc"), self.q_norm, eps)
        k = rms_norm(self.linear("k_proj", h, "bsd,dkc->bskc"), self.k_norm, eps)
        v = self.linear("v_proj", h, "bsd,dkc->bskc")
        h, cache = attend(rope.rotate(q, cos, sin), rope.rotate(k, cos, sin), v, cache)
        x_BSD = x_BSD + self.linear("o_proj", h, "bshc,hcd->bsd")
        h = rms_norm(x_BSD, self.norm2, eps)
        h = jax.nn.silu(self.linear("gate_proj", h, "bsd,df->bsf")) * self.linear("up_proj", h, "bsd,df->bsf")
        return x_BSD + self.linear("down_proj", h, "bsf,fd->bsd"), cache


class Decoder(nnx.Module):
    """Token embeddings -> hidden states after the final norm."""

    def __init__(self, cfg: VLMConfig, params: dict):
        self.cfg = cfg
        self.ends = Group({k: v for k, v in params.items() if not isinstance(v, dict)})
        self.stacks = nnx.Dict({k: TextLayer(params[k]) for k, _ in text_stacks(cfg.text, len(cfg.vision.taps))})

    def embed(self, tokens_BS, dtype):
        """int [B, S] -> [B, S, D]."""
        return embed(self.ends.embed[...], tokens_BS).astype(dtype)

    def __call__(self, x_BSD, positions_B3S, attend: Attend, cache=None, taps=None, slots=None, remat=lambda f: f):
        """Hidden states [B, S, D] and the new cache ({stack: per-layer leaves}).

        `taps` [taps, B, V, D] is added after the first layers at the places that `slots` = (visual_index, visual_slot)
        names; None for text alone.
        """
        text = self.cfg.text
        cos, sin = rope.text_rotary(text, positions_B3S, x_BSD.dtype)
        new_cache = {}
        for name, stack in self.stacks.items():
            graph, state = nnx.split(stack)
            extra = taps if name == "layers_tap" else None

            def body(x, item, graph=graph):
                layer, layer_cache, tap = item
                x, layer_cache = nnx.merge(graph, layer)(x, cos, sin, attend, layer_cache, text.rms_norm_eps)
                if tap is not None:
                    x = x + take_unique(tap.astype(x.dtype), *slots)
                return x, layer_cache

            layer_caches = None if cache is None else cache[name]
            x_BSD, new_cache[name] = jax.lax.scan(remat(body), x_BSD, (state, layer_caches, extra))
        return rms_norm(x_BSD, self.ends.norm, text.rms_norm_eps), new_cache

    def logits(self, h):
        """[..., D] -> float32 [..., vocabulary], with the embedding table as head where the weights are tied."""
        head = self.ends.embed if self.cfg.text.tie_word_embeddings else self.ends.head
        return jnp.einsum("...d,vd->...v", h, head[...].astype(h.dtype), preferred_element_type=jnp.float32)
