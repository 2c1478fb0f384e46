"""Qwen3-VL: the vision tower's tokens stand in the decoder's sequence, its taps are added after the first layers.

Shape letters: B rows, S tokens of a row, P patches, V visual tokens, D width, H heads, K kv heads, C head size. A row
holds several samples and several images; see `data/packing.py` for the arrays of a batch.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from vlm3_jax.model import moe
from vlm3_jax.model.attention import Ids, prepare
from vlm3_jax.model.config import VLMConfig
from vlm3_jax.model.layers import take_unique
from vlm3_jax.model.text import Decoder
from vlm3_jax.model.vision import VisionTower

REMAT = ("none", "full", "minimal")


def rematerialize(name: str):
    """Wraps a layer: "none" keeps all activations, "full" recomputes all, "minimal" keeps matrix products only."""
    if name == "none":
        return lambda body: body
    policy = {"full": None, "minimal": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}[name]
    # Inside scan nothing else could be folded into the recomputation, so the barrier against it is not needed.
    return functools.partial(jax.checkpoint, policy=policy, prevent_cse=False)


class VLM(nnx.Module):
    """Both towers around given parameters (nested dict as in the parameter table; arrays, tracers or shapes).

    The module is a view of its parameters: building it inside a jitted function costs nothing. `locally` wraps what
    every device does on its own rows (sorting tokens by expert); leave it where nothing is sharded.
    """

    def __init__(
        self, cfg: VLMConfig, params: dict, dtype=jnp.float32, remat: str = "none", locally: Callable = lambda f: f
    ):
        self.cfg, self.dtype, self.remat = cfg, dtype, remat
        self.vision = VisionTower(cfg, params["vision"])
        self.text = Decoder(cfg, params["text"], locally)

    def see(self, batch: dict):
        """Visual tokens [B, V, D] and taps [taps, B, V, D] of the batch's patches."""
        return self.vision(batch["patches"], batch, self.dtype, rematerialize(self.remat))[:2]

    def embed(self, batch: dict, visual):
        """Token embeddings [B, S, D] with the visual tokens in their places."""
        x = self.text.embed(batch["tokens"], self.dtype)
        is_visual = batch["visual_index"] < visual.shape[1]
        return jnp.where(is_visual[..., None], take_unique(visual, batch["visual_index"], batch["visual_slot"]), x)

    def hidden(self, batch: dict):
        """Hidden states [B, S, D] after the final norm, for training and for scoring whole sequences."""
        return self.hidden_and_balance(batch)[0]

    def hidden_and_balance(self, batch: dict):
        """Hidden states [B, S, D] and the load-balance loss of the experts (0 without experts)."""
        visual, taps = self.see(batch)
        hidden, told = self._decode(batch, visual, taps, lambda x, use: use)
        if not self.cfg.text.experts:
            return hidden, jnp.zeros((), jnp.float32)
        counts, probabilities = (jnp.concatenate(part) for part in zip(*told.values()))
        return hidden, moe.balance_loss(counts, probabilities, (batch["segments"] > 0).sum())

    def intermediates(self, batch: dict) -> dict[str, jax.Array]:
        """Everything between pixels and logits, by name in the order of the computation; for finding differences."""
        dtype, named = self.dtype, {"vision.patch_embed": self.vision.embed(batch["patches"], self.dtype)}
        visual, taps, of_blocks = self.vision(batch["patches"], batch, dtype, lambda f: f, tell=lambda x: x)
        blocks = jnp.concatenate(of_blocks)
        named |= {f"vision.blocks.{i}": x for i, x in enumerate(blocks)} | {"vision.merger": visual}
        for tap, x in zip(sorted(self.cfg.vision.taps), () if taps is None else taps):
            named[f"vision.deepstack.{self.cfg.vision.taps.index(tap)}"] = x
        named["text.embed"] = self.embed(batch, visual)
        hidden, of_layers = self._decode(batch, visual, taps, lambda x, use: x)
        named |= {f"text.layers.{i}": x for i, x in enumerate(jnp.concatenate(list(of_layers.values())))}
        return named | {"text.norm": hidden, "logits": self.text.logits(hidden)}

    def _decode(self, batch: dict, visual, taps, tell):
        """Hidden states of whole rows, and what `tell` keeps of the layers."""
        order = jnp.broadcast_to(jnp.arange(batch["tokens"].shape[1]), batch["tokens"].shape)
        attend = prepare(Ids(batch["segments"], batch["questions"], order), batch.get("blocks"))

        def causal(q, k, v, cache):
            return attend(q, k, v), cache

        hidden, _, told = self.text(
            self.embed(batch, visual), batch["positions"], causal, taps=taps,
            slots=(batch["visual_index"], batch["visual_slot"]), valid=batch["segments"] > 0, tell=tell,
            remat=rematerialize(self.remat),
        )  # fmt: skip
        return hidden, told

    def logits(self, batch: dict):
        """float32 [B, S, vocabulary]: for tests and tools; training looks at the supervised positions only."""
        return self.text.logits(self.hidden(batch))
