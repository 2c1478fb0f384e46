"""Rotary position embeddings: interleaved M-RoPE of the decoder and the 2-D rotary of the vision tower."""

import jax.numpy as jnp
import numpy as np

from vlm3_jax.model.config import TextConfig, VisionConfig
from vlm3_jax.shapes import Array, Float, Float32, Int


def text_frequencies(text: TextConfig) -> tuple[np.ndarray, np.ndarray]:
    """Inverse frequencies, float32 [C/2], and which of the three position axes (t, h, w) drives each, int [C/2].

    Interleaved M-RoPE: h takes the frequencies 1, 4, 7, ... and w 2, 5, 8, ... up to three times its section, t the
    rest.
    """
    half = text.head_dim // 2
    exponent = np.arange(0, text.head_dim, 2, dtype=np.float32) / np.float32(text.head_dim)
    axis = np.zeros(half, np.int32)
    for number in (1, 2):
        axis[number : text.mrope_section[number] * 3 : 3] = number
    return (1.0 / np.float32(text.rope_theta) ** exponent).astype(np.float32), axis


def text_rotary(
    text: TextConfig, positions_B3S: Int[Array, "B 3 S"], dtype
) -> tuple[Float[Array, "B S 1 C"], Float[Array, "B S 1 C"]]:
    """cos and sin [B, S, 1, C] of the decoder in `dtype`; the angles are float32, cast last as in transformers."""
    frequencies, axis = text_frequencies(text)
    chosen_BSC = jnp.moveaxis(positions_B3S, 1, -1)[..., axis].astype(jnp.float32)
    return _cos_sin(chosen_BSC * frequencies, dtype)


def vision_rotary(
    vision: VisionConfig, positions_BP2: Int[Array, "B P 2"]
) -> tuple[Float32[Array, "B P 1 C"], Float32[Array, "B P 1 C"]]:
    """cos and sin [B, P, 1, C] of the vision tower, float32: half of the head follows the row, half the column."""
    quarter = vision.head_dim // 2
    exponent = np.arange(0, quarter, 2, dtype=np.float32) / np.float32(quarter)
    frequencies = (1.0 / np.float32(vision.rope_theta) ** exponent).astype(np.float32)
    angles = positions_BP2.astype(jnp.float32)[..., None] * frequencies
    return _cos_sin(angles.reshape(*angles.shape[:2], -1), jnp.float32)


def _cos_sin(angles, dtype):
    angles = jnp.concatenate([angles, angles], -1)[:, :, None, :]
    return jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype)


def rotate(
    x_BSHC: Float[Array, "B S H C"], cos: Float[Array, "B S 1 C"], sin: Float[Array, "B S 1 C"]
) -> Float[Array, "B S H C"]:
    """Rotates the pairs (i, i + C/2) of each head by the given angles, in the dtype of cos and sin."""
    x = x_BSHC.astype(cos.dtype)
    first, second = jnp.split(x, 2, -1)
    return (x * cos + jnp.concatenate([-second, first], -1) * sin).astype(x_BSHC.dtype)
