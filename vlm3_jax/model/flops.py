"""Useful floating-point operations: no recomputation, attention by true lengths, head on supervised tokens only."""

import dataclasses
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vlm3_jax.model.config import VLMConfig
from vlm3_jax.model.params import GROUPS, Param

# Dense bf16 peak of one device, FLOP/s, from the makers' data sheets (half of what they say with sparsity); the longest
# name that a device's begins with counts.
PEAK_BF16 = {
    "NVIDIA B200": 2250e12,
    "NVIDIA GH200": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA A100": 312e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


@dataclasses.dataclass(frozen=True)
class Lengths:
    """What the count needs of a batch: tokens, patches, supervised tokens, and summed squares of lengths."""

    tokens: int
    patches: int
    targets: int
    text_pairs: float
    vision_pairs: float

    def __add__(self, other: "Lengths") -> "Lengths":
        return Lengths(*map(sum, zip(dataclasses.astuple(self), dataclasses.astuple(other))))


def lengths(batch: dict[str, np.ndarray]) -> Lengths:
    """Counts of a packed batch. Causal pairs: n (n + 1) / 2 a segment; a question of its own sees prefix and itself."""
    text_pairs = 0.0
    for segments, questions in zip(batch["segments"], batch["questions"]):
        for segment in range(1, int(segments.max(initial=0)) + 1):
            text_pairs += visible_pairs(questions[segments == segment])
    vision_pairs = sum(int((np.bincount(row)[1:] ** 2).sum()) for row in batch["patch_images"])
    return Lengths(
        tokens=int((batch["segments"] > 0).sum()),
        patches=int((batch["patch_images"] > 0).sum()),
        targets=int((batch["target_weight"] > 0).sum()),
        text_pairs=text_pairs,
        vision_pairs=vision_pairs,
    )


def forward(cfg: VLMConfig, n: Lengths) -> dict[str, float]:
    """FLOPs of one forward pass by module: 2 a multiply-add; norms, softmax and rotary are left out."""
    t, v = cfg.text, cfg.vision
    mlp = 3 * t.hidden_size * t.intermediate_size
    if t.experts:
        mlp = t.hidden_size * (t.experts + 3 * t.experts_per_token * t.expert_size)
    layer = 2 * t.hidden_size * t.head_dim * (t.heads + t.kv_heads) + mlp
    block = 4 * v.hidden_size**2 + 2 * v.hidden_size * v.intermediate_size
    wide = v.hidden_size * v.merge_size**2
    mergers = (1 + len(v.taps)) * (wide * wide + wide * v.out_hidden_size)
    return {
        "decoder": 2.0 * t.layers * layer * n.tokens,
        "decoder_attention": 4.0 * t.layers * t.heads * t.head_dim * n.text_pairs,
        "head": 2.0 * t.vocab_size * t.hidden_size * n.targets,
        "vision": 2.0 * v.depth * block * n.patches + 2.0 * v.patch_values * v.hidden_size * n.patches,
        "vision_attention": 4.0 * v.depth * v.hidden_size * n.vision_pairs,
        "mergers": 2.0 * mergers * n.patches / v.merge_size**2,
    }


def training(cfg: VLMConfig, n: Lengths, trained=GROUPS, adapters: Sequence[Param] = ()) -> float:
    """Useful FLOPs of a training step: beside the forward pass as much for the gradient of the inputs and again for
    that of the weights (no input gradient for the patches).

    `trained`: groups whose weights get gradients; `adapters`: rows of trained adapters. A frozen module passes its
    gradient on if something before it is trained, and costs its forward pass alone if nothing is.
    """
    changed = {*trained, *(row.group for row in adapters)}
    seeing, merging = "vision" in changed, not changed.isdisjoint(("vision", "merger"))
    # Per module: whether a gradient passes through it, and whether its other factor gets one: its weights, or the
    # other side of attention's products.
    backward = {
        "decoder": (True, "decoder" in trained),
        "decoder_attention": (True, True),
        "head": (True, "embeddings" in trained),
        "vision": (seeing, "vision" in trained),
        "vision_attention": (seeing, seeing),
        "mergers": (merging, "merger" in trained),
    }
    total = sum(flops * (1 + sum(backward[module])) for module, flops in forward(cfg, n).items())
    patches = 2.0 * cfg.vision.patch_values * cfg.vision.hidden_size * n.patches
    places = {"vision": n.patches, "merger": n.patches / cfg.vision.merge_size**2, "decoder": n.tokens}
    return total - seeing * patches + sum(6.0 * row.size * places[row.group] for row in adapters)


def peak(device) -> tuple[float, str]:
    """Peak FLOP/s of one device and where the number comes from.

    Of a CPU, and of a device that no data sheet here is of, it is what a matrix product reaches.
    """
    kind = device.device_kind
    for name, value in sorted(PEAK_BF16.items(), key=lambda item: -len(item[0])):
        if kind.startswith(name):
            return value, f"data sheet of {name}, bf16"
    size, dtype = (1024, jnp.float32) if device.platform == "cpu" else (8192, jnp.bfloat16)
    x = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a, b: a @ b)
    product(x, x).block_until_ready()
    best = min(_seconds(lambda: product(x, x).block_until_ready()) for _ in range(5))
    # Devices that stand for a CPU share its cores.
    share = len(jax.local_devices()) if device.platform == "cpu" else 1
    return 2 * size**3 / best / share, f"measured on {kind}, {jnp.dtype(dtype)}"


def _seconds(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def visible_pairs(questions: np.ndarray) -> int:
    """How many (query, key) pairs of tokens a sample's attention needs, itself included: no token sees a later one, and
    a question of its own (`questions` as in `Sample`) sees the prefix and itself.
    """
    prefix, *own = np.bincount(questions).tolist()
    return prefix * (prefix + 1) // 2 + sum(n * prefix + n * (n + 1) // 2 for n in own)
