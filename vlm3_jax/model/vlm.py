"""Qwen3-VL: the vision tower's tokens stand in the decoder's sequence, its taps are added after the first layers.

A row holds several samples and several images; `data/packing.py` (`pack`) says what the arrays of a batch are, and
`shapes.py` what the letters of shapes stand for.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from vlm3_jax.model import moe
from vlm3_jax.model.attention import BackEnd, Ids, listed, prepare
from vlm3_jax.model.config import VLMConfig
from vlm3_jax.model.layers import Locally, run_as_it_is, take_unique
from vlm3_jax.model.text import Decoder
from vlm3_jax.model.vision import VisionTower
from vlm3_jax.shapes import Array, Float, Float32

REMAT = ("none", "minimal", "full", "offload")
# What `checkpoint_name` marks in layers and attention: results of the products that cost most to make again. The inputs
# of the layers are kept always.
NAMED = ("qkv", "attended", "hidden")


def rematerialize(name: str):
    """Wraps a layer: which activations the backward pass finds.

    "none": all of them; "minimal": the named ones, so no large product is made twice; "full": none, everything is made
    again; "offload": the named ones, kept in the host's memory meanwhile.
    """
    if name == "none":
        return lambda body: body
    policies = jax.checkpoint_policies
    policy = {
        "full": None,
        "minimal": policies.save_only_these_names(*NAMED),
        "offload": policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[], names_which_can_be_offloaded=list(NAMED),
            offload_src="device", offload_dst="pinned_host",
        ),
    }[name]  # fmt: skip
    # Inside scan nothing else could be folded into the recomputation, so the barrier against it is not needed.
    return functools.partial(jax.checkpoint, policy=policy, prevent_cse=False)


class VLM(nnx.Module):
    """Both towers around given parameters (nested dict as in the parameter table; arrays, tracers or shapes).

    The module is a view of its parameters: building it inside a jitted function costs nothing. `locally` is for
    rows that are spread over devices, `back_end` for attention over pairs of blocks (`attention.prepare`).
    """

    def __init__(
        self, cfg: VLMConfig, params: dict, dtype=jnp.float32, remat: str = "none", locally: Locally = run_as_it_is,
        back_end: BackEnd | None = None,
    ):  # fmt: skip
        self.cfg, self.dtype, self.remat, self.locally, self.back_end = cfg, dtype, remat, locally, back_end
        self.vision = VisionTower(cfg, params["vision"], locally, back_end)
        self.text = Decoder(cfg, params["text"], locally)

    def see(self, batch: dict) -> tuple[Float[Array, "B V D"], Float[Array, "taps B V D"] | None]:
        """Visual tokens [B, V, D] and taps [taps, B, V, D] of the batch's patches."""
        return self.vision(batch["patches"], batch, self.dtype, rematerialize(self.remat))[:2]

    def embed(self, batch: dict, visual: Float[Array, "B V D"]) -> Float[Array, "B S D"]:
        """Token embeddings [B, S, D] with the visual tokens in their places."""
        x = self.text.embed(batch["tokens"], self.dtype)
        is_visual = batch["visual_index"] < visual.shape[1]
        return jnp.where(is_visual[..., None], take_unique(visual, batch["visual_index"], batch["visual_slot"]), x)

    def hidden(self, batch: dict) -> Float[Array, "B S D"]:
        """Hidden states [B, S, D] after the final norm, for training and for scoring whole sequences."""
        return self.hidden_and_balance(batch)[0]

    def hidden_and_balance(self, batch: dict) -> tuple[Float[Array, "B S D"], Float32[Array, ""]]:
        """Hidden states [B, S, D] and the load-balance loss of the experts (0 without experts)."""
        visual, taps = self.see(batch)
        hidden, uses = self._decode(batch, visual, taps, lambda x, use: use)
        if not self.cfg.text.experts:
            return hidden, jnp.zeros((), jnp.float32)
        counts, probabilities = (jnp.concatenate(part) for part in zip(*uses.values()))
        return hidden, moe.balance_loss(counts, probabilities, (batch["segments"] > 0).sum())

    def intermediates(self, batch: dict) -> dict[str, jax.Array]:
        """Everything between pixels and logits, by name in the order of the computation; for finding differences."""
        dtype, named = self.dtype, {"vision.patch_embed": self.vision.embed(batch["patches"], self.dtype)}
        visual, taps, of_blocks = self.vision(batch["patches"], batch, dtype, lambda f: f, keep=lambda x: x)
        blocks = jnp.concatenate(of_blocks)
        named |= {f"vision.blocks.{i}": x for i, x in enumerate(blocks)} | {"vision.merger": visual}
        for tap, x in zip(sorted(self.cfg.vision.taps), () if taps is None else taps):
            named[f"vision.deepstack.{self.cfg.vision.taps.index(tap)}"] = x
        named["text.embed"] = self.embed(batch, visual)
        hidden, of_layers = self._decode(batch, visual, taps, lambda x, use: x)
        named |= {f"text.layers.{i}": x for i, x in enumerate(jnp.concatenate(list(of_layers.values())))}
        return named | {"text.norm": hidden, "logits": self.text.logits(hidden)}

    def _decode(self, batch: dict, visual, taps, keep):
        """Hidden states of whole rows, and what `keep` keeps of the layers."""
        order = jnp.broadcast_to(jnp.arange(batch["tokens"].shape[1]), batch["tokens"].shape)
        ids = Ids(batch["segments"], batch["questions"], order)
        attend = prepare(ids, listed(batch, "pair"), self.locally, self.back_end)

        def causal(q, k, v, cache):
            return attend(q, k, v), cache

        hidden, _, intermediates = self.text(
            self.embed(batch, visual), batch["positions"], causal, taps=taps,
            slots=(batch["visual_index"], batch["visual_slot"]), valid=batch["segments"] > 0, keep=keep,
            remat=rematerialize(self.remat),
        )  # fmt: skip
        return hidden, intermediates

    def logits(self, batch: dict) -> Float32[Array, "B S vocabulary"]:
        """float32 [B, S, vocabulary]: for tests and tools; training looks at the supervised positions only."""
        return self.text.logits(self.hidden(batch))
