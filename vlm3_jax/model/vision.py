"""The vision tower: patches -> blocks -> merger, with one more merger at each DeepStack tap."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from vlm3_jax.model import rope
from vlm3_jax.model.attention import BackEnd, Ids, listed, prepare
from vlm3_jax.model.config import VLMConfig
from vlm3_jax.model.layers import Group, Locally, interpolate, layer_norm, run_as_it_is
from vlm3_jax.model.params import vision_stacks
from vlm3_jax.shapes import Array, Float, UInt8


class VisionBlock(Group):
    """Pre-norm attention within an image and a tanh-GELU MLP."""

    def __call__(self, x_BPD: Float[Array, "B P D"], cos, sin, attend) -> Float[Array, "B P D"]:
        """[B, P, D] -> [B, P, D]."""
        h = layer_norm(x_BPD, self.norm1, self.norm1_bias)
        qkv = checkpoint_name(self.linear("qkv", h, "bpd,dthc->bpthc"), "qkv")
        q, k = (rope.rotate(qkv[:, :, i].astype(jnp.float32), cos, sin).astype(h.dtype) for i in (0, 1))
        h = attend(q, k, qkv[:, :, 2])
        x_BPD = x_BPD + self.linear("proj", h, "bphc,hcd->bpd")
        h = layer_norm(x_BPD, self.norm2, self.norm2_bias)
        h = jax.nn.gelu(checkpoint_name(self.linear("fc1", h, "bpd,df->bpf"), "hidden"), approximate=True)
        return x_BPD + self.linear("fc2", h, "bpf,fd->bpd")


class Merger(Group):
    """2 x 2 patches -> one visual token, exact (erf) GELU between two linears.

    The main merger normalises each patch before they are joined, a tap's merger after.
    """

    def __call__(self, x_BPD: Float[Array, "B P D"], unit: int, joined_norm: bool) -> Float[Array, "B V out"]:
        """[B, P, D] -> [B, P / unit, out], where `unit` patches in a row make one token."""
        B, P, D = x_BPD.shape
        if not joined_norm:
            x_BPD = layer_norm(x_BPD, self.norm, self.norm_bias)
        x = x_BPD.reshape(B, P // unit, unit * D)
        if joined_norm:
            x = layer_norm(x, self.norm, self.norm_bias)
        x = jax.nn.gelu(self.linear("fc1", x, "bvi,ij->bvj"), approximate=False)
        return self.linear("fc2", x, "bvi,ij->bvj")


class VisionTower(nnx.Module):
    """Patches of several images in a row -> visual tokens and DeepStack features."""

    def __init__(self, cfg: VLMConfig, params: dict, locally: Locally = run_as_it_is, back_end: BackEnd | None = None):
        self.cfg, self.locally, self.back_end = cfg, locally, back_end
        self.ends = Group({k: params[k] for k in ("patch", "patch_bias", "table")})
        self.stacks = nnx.List([VisionBlock(params[name]) for name, _ in vision_stacks(cfg.vision)])
        self.merger = Merger(params["merger"])
        self.tap_mergers = Merger(params["tap_mergers"]) if cfg.vision.taps else None

    def embed(self, patches_BPX: UInt8[Array, "B P X"] | Float[Array, "B P X"], dtype) -> Float[Array, "B P D"]:
        """uint8 still patches [B, P, C*p*p] or float ones [B, P, T*C*p*p] (already normalised) -> [B, P, D].

        Both temporal slices of a still image hold the same pixels, so their weights are summed.
        """
        cfg, weight_TXD = self.cfg, self.ends.patch[...].astype(jnp.float32)
        if patches_BPX.dtype == jnp.uint8:
            # float32 until the first product: the pixels' differences are small beside their mean.
            mean, std = (jnp.repeat(jnp.array(v, jnp.float32), cfg.vision.patch_size**2) for v in (cfg.mean, cfg.std))
            x = (patches_BPX.astype(jnp.float32) * jnp.float32(1 / 255) - mean) / std
            weight = weight_TXD.sum(0)
        else:
            x, weight = patches_BPX, _temporal_last(weight_TXD, cfg.vision.in_channels)
        return jnp.einsum("bpx,xd->bpd", x.astype(dtype), weight.astype(dtype)) + self.ends.patch_bias[...].astype(
            dtype
        )

    def __call__(
        self, patches, batch: dict, dtype, remat, keep=lambda x: None
    ) -> tuple[Float[Array, "B V out"], Float[Array, "taps B V out"] | None, list]:
        """Visual tokens [B, V, out], taps [taps, B, V, out] and the intermediates.

        `batch` holds the patch_* and table_* arrays. `keep` says what to keep of every block's output [B, P, D].
        """
        v = self.cfg.vision
        x = self.embed(patches, dtype)
        table = self.ends.table[...].astype(jnp.float32)
        # Every device looks up its own rows in the whole table; cut tables would send activations around instead.
        look_up = self.locally(lambda index, weight, table: interpolate(table, index, weight), 1)
        x = x + look_up(batch["table_index"], batch["table_weight"], table).astype(dtype)
        cos, sin = rope.vision_rotary(v, batch["patch_positions"])
        attend = prepare(
            Ids(batch["patch_images"]), pairs=listed(batch, "patch_pair"), locally=self.locally, back_end=self.back_end
        )
        taps, intermediates = [], []
        for number, stack in enumerate(self.stacks):
            x, of_blocks = _scan_blocks(stack, x, cos, sin, attend, remat, keep, self.locally(_unchanged))
            intermediates.append(of_blocks)
            if number < len(v.taps):
                taps.append(x)
        unit = v.merge_size**2
        tokens = self.merger(x, unit, joined_norm=False)
        if not taps:
            return tokens, None, intermediates
        graph, state = nnx.split(self.tap_mergers)
        merge = jax.vmap(lambda state, x: nnx.merge(graph, state)(x, unit, joined_norm=True))
        return tokens, merge(state, jnp.stack(taps)), intermediates


def _temporal_last(weight_TXD, channels: int):
    """[T, C*p*p, D] -> [C*T*p*p, D], the order of transformers' float patches."""
    T, X, D = weight_TXD.shape
    return weight_TXD.reshape(T, channels, X // channels, D).transpose(1, 0, 2, 3).reshape(T * X, D)


def _unchanged(x):
    return x


def _scan_blocks(stack: VisionBlock, x, cos, sin, attend, remat, keep, stay):
    graph, state = nnx.split(stack)

    def body(x, layer):
        x = stay(nnx.merge(graph, layer)(stay(x), cos, sin, attend))
        return x, keep(x)

    return jax.lax.scan(remat(body), x, state)
