"""The one table of parameters: a row each, with path, shape, logical axes, init, group and the HF tensors it holds.

Everything that walks over parameters reads this table: both conversions, sharding, freezing, weight decay and counts.
Layers are stored stacked: the decoder as `layers_tap` (the first layers, after which DeepStack features are added) and
`layers` (the others); the vision blocks as one stack up to each tap (`blocks_0` ...), so that no stack is ever sliced.
"""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from vlm3_jax.model.config import TextConfig, VisionConfig, VLMConfig

GROUPS = ("vision", "merger", "decoder", "embeddings")


@dataclasses.dataclass(frozen=True)
class Param:
    """One parameter of our tree.

    `shape` and `axes` include the leading "layers" axis of a stacked parameter; `hf_keys` then has one key a layer.
    `layout` says how one HF tensor lies in ours: "copy" (reshaped), "linear" (transposed, then reshaped to split
    heads), "experts" (reshaped; the last two axes may come exchanged) or "patch" (conv kernel [D, C, T, p, p] ->
    [T, C*p*p, D]). `init` is "normal", "zeros" or "ones".
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    hf_keys: tuple[str, ...]
    hf_shape: tuple[int, ...]
    group: str
    layout: str = "linear"
    init: str = "normal"
    stacked: bool = False

    @property
    def name(self) -> str:
        """The path with dots, for messages."""
        return ".".join(self.path)

    @property
    def layer_shape(self) -> tuple[int, ...]:
        """Shape of what one HF tensor fills."""
        return self.shape[1:] if self.stacked else self.shape

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether an HF tensor of this shape can be read.

        Released MoE checkpoints hold experts as [E, in, out], those that transformers saves as [E, out, in].
        """
        exchanged = self.layout == "experts" and shape == (*self.hf_shape[:-2], *self.hf_shape[:-3:-1])
        return shape == self.hf_shape or exchanged

    def from_hf(self, tensor: np.ndarray) -> np.ndarray:
        """One HF tensor of an accepted shape -> ours [layer_shape] (a view where possible)."""
        if self.layout == "linear":
            tensor = tensor.T
        elif self.layout == "experts" and tensor.shape != self.hf_shape:
            tensor = tensor.swapaxes(-1, -2)
        elif self.layout == "patch":
            tensor = tensor.transpose(2, 1, 3, 4, 0)
        return tensor.reshape(self.layer_shape)

    def to_hf(self, value: np.ndarray, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """The inverse of `from_hf`; `shape` is another accepted shape to write (default: `hf_shape`)."""
        if shape is not None and shape != self.hf_shape:
            return value.reshape(self.hf_shape).swapaxes(-1, -2)
        if self.layout == "linear":
            return value.reshape(self.hf_shape[::-1]).T
        if self.layout == "patch":
            d, c, t, ph, pw = self.hf_shape
            return value.reshape(t, c, ph, pw, d).transpose(4, 1, 0, 2, 3)
        return value.reshape(self.hf_shape)


def table(cfg: VLMConfig) -> tuple[Param, ...]:
    """All parameters of the model, in the order of the forward pass."""
    rows = (*_vision_rows(cfg.vision), *_decoder_rows(cfg.text, len(cfg.vision.taps)))
    assert len({row.path for row in rows}) == len(rows)
    return rows


def count(cfg: VLMConfig) -> int:
    """Number of parameters; a tied head is counted once."""
    return sum(row.size for row in table(cfg))


def vision_stacks(vision: VisionConfig) -> list[tuple[str, range]]:
    """Names of the vision stacks with the HF blocks each holds: a stack ends at a tap."""
    ends = [tap + 1 for tap in sorted(vision.taps)]
    if not ends or ends[-1] < vision.depth:
        ends.append(vision.depth)
    starts = [0, *ends[:-1]]
    return [(f"blocks_{i}", range(a, b)) for i, (a, b) in enumerate(zip(starts, ends))]


def text_stacks(text: TextConfig, taps: int) -> list[tuple[str, range]]:
    """Names of the decoder stacks with the HF layers each holds; an empty stack is left out."""
    stacks = [("layers_tap", range(taps)), ("layers", range(taps, text.layers))]
    return [(name, layers) for name, layers in stacks if len(layers)]


def nest(flat: dict[tuple[str, ...], object]) -> dict:
    """{path: value} -> nested dicts, the form in which parameters travel."""
    tree: dict = {}
    for path, value in flat.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value
    return tree


def flatten(tree: dict, prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], object]:
    """The inverse of `nest`."""
    flat: dict = {}
    for key, value in tree.items():
        flat |= flatten(value, (*prefix, key)) if isinstance(value, dict) else {(*prefix, key): value}
    return flat


def initialize(cfg: VLMConfig, seed: int = 0, std: float = 0.02) -> dict:
    """Random float32 parameters (numpy, nested dict) as transformers initialises them: normal, zeros, ones."""
    rng = np.random.default_rng(seed)

    def value(row: Param) -> np.ndarray:
        if row.init == "normal":
            return (std * rng.standard_normal(row.shape, np.float32)).astype(np.float32)
        return np.full(row.shape, row.init == "ones", np.float32)

    return nest({row.path: value(row) for row in table(cfg)})


@dataclasses.dataclass(frozen=True)
class _Stack:
    """Builds rows of one module, or of a stack of equal modules when `keys` holds several HF prefixes."""

    path: tuple[str, ...]
    keys: tuple[str, ...]
    group: str
    stacked: bool

    def row(self, name, hf_name, shape, axes, hf_shape, **more) -> Param:
        if self.stacked:
            shape, axes = (len(self.keys), *shape), ("layers", *axes)
        hf_keys = tuple(f"{key}.{hf_name}" for key in self.keys)
        return Param((*self.path, name), shape, axes, hf_keys, hf_shape, self.group, stacked=self.stacked, **more)

    def linear(self, name, hf_name, shape, axes, inputs=1, bias=False) -> Iterator[Param]:
        """A weight whose first `inputs` axes are summed over; the others, and those of the bias, are its output."""
        outputs, out_axes = shape[inputs:], axes[inputs:]
        matrix = math.prod(outputs), math.prod(shape[:inputs])
        yield self.row(name, f"{hf_name}.weight", shape, axes, matrix)
        if bias:
            more = {"layout": "copy", "init": "zeros"}
            yield self.row(f"{name}_bias", f"{hf_name}.bias", outputs, out_axes, matrix[:1], **more)

    def norm(self, name, hf_name, size, bias=False) -> Iterator[Param]:
        yield self.row(name, f"{hf_name}.weight", (size,), (None,), (size,), layout="copy", init="ones")
        if bias:
            yield self.row(f"{name}_bias", f"{hf_name}.bias", (size,), (None,), (size,), layout="copy", init="zeros")


def _vision_rows(v: VisionConfig) -> Iterator[Param]:
    D, F, H, C, root = v.hidden_size, v.intermediate_size, v.heads, v.head_dim, "model.visual"
    t, p = v.temporal_patch_size, v.patch_size
    top = _Stack(("vision",), (root,), "vision", stacked=False)
    yield top.row(
        "patch", "patch_embed.proj.weight", (t, v.patch_values, D), (None, None, "vision_embed"),
        (D, v.in_channels, t, p, p), layout="patch",
    )  # fmt: skip
    yield top.row("patch_bias", "patch_embed.proj.bias", (D,), (None,), (D,), layout="copy", init="zeros")
    table_shape = (v.table_side**2, D)
    yield top.row("table", "pos_embed.weight", table_shape, (None, "vision_embed"), table_shape, layout="copy")
    embed, heads, mlp = "vision_embed", "vision_heads", "vision_mlp"
    for name, blocks in vision_stacks(v):
        stack = _Stack(("vision", name), tuple(f"{root}.blocks.{i}" for i in blocks), "vision", stacked=True)
        yield from stack.norm("norm1", "norm1", D, bias=True)
        yield from stack.linear("qkv", "attn.qkv", (D, 3, H, C), (embed, None, heads, None), bias=True)
        yield from stack.linear("proj", "attn.proj", (H, C, D), (heads, None, embed), inputs=2, bias=True)
        yield from stack.norm("norm2", "norm2", D, bias=True)
        yield from stack.linear("fc1", "mlp.linear_fc1", (D, F), (embed, mlp), bias=True)
        yield from stack.linear("fc2", "mlp.linear_fc2", (F, D), (mlp, embed), bias=True)
    # Taps fire in block order; the checkpoint lists its mergers in the order of deepstack_visual_indexes.
    order = [v.taps.index(tap) for tap in sorted(v.taps)]
    yield from _merger_rows(v, "merger", (f"{root}.merger",), D, stacked=False)
    if order:
        keys = tuple(f"{root}.deepstack_merger_list.{i}" for i in order)
        yield from _merger_rows(v, "tap_mergers", keys, D * v.merge_size**2, stacked=True)


def _merger_rows(v: VisionConfig, name: str, keys: tuple[str, ...], norm_size: int, stacked: bool) -> Iterator[Param]:
    stack, wide = _Stack(("vision", name), keys, "merger", stacked), v.hidden_size * v.merge_size**2
    yield from stack.norm("norm", "norm", norm_size, bias=True)
    yield from stack.linear("fc1", "linear_fc1", (wide, wide), ("merge_in", "merge"), bias=True)
    yield from stack.linear("fc2", "linear_fc2", (wide, v.out_hidden_size), ("merge", "embed"), bias=True)


def _decoder_rows(t: TextConfig, taps: int) -> Iterator[Param]:
    D, H, K, C, root = t.hidden_size, t.heads, t.kv_heads, t.head_dim, "model.language_model"
    vocabulary = (t.vocab_size, D), ("vocab", "embed"), (t.vocab_size, D)
    ends = _Stack(("text",), (root,), "embeddings", stacked=False)
    yield ends.row("embed", "embed_tokens.weight", *vocabulary, layout="copy")
    for name, layers in text_stacks(t, taps):
        stack = _Stack(("text", name), tuple(f"{root}.layers.{i}" for i in layers), "decoder", stacked=True)
        yield from stack.norm("norm1", "input_layernorm", D)
        for proj, heads, axis in (("q_proj", H, "heads"), ("k_proj", K, "kv_heads"), ("v_proj", K, "kv_heads")):
            yield from stack.linear(proj, f"self_attn.{proj}", (D, heads, C), ("embed", axis, None))
        yield from stack.norm("q_norm", "self_attn.q_norm", C)
        yield from stack.norm("k_norm", "self_attn.k_norm", C)
        yield from stack.linear("o_proj", "self_attn.o_proj", (H, C, D), ("heads", None, "embed"), inputs=2)
        yield from stack.norm("norm2", "post_attention_layernorm", D)
        yield from _expert_rows(t, stack) if t.experts else _mlp_rows(t, stack)
    yield from _Stack(("text",), (root,), "decoder", stacked=False).norm("norm", "norm", D)
    if not t.tie_word_embeddings:
        head = _Stack(("text",), ("lm_head",), "embeddings", stacked=False)
        yield head.row("head", "weight", *vocabulary, layout="copy")


def _mlp_rows(t: TextConfig, stack: _Stack) -> Iterator[Param]:
    D, F = t.hidden_size, t.intermediate_size
    yield from stack.linear("gate_proj", "mlp.gate_proj", (D, F), ("embed", "mlp"))
    yield from stack.linear("up_proj", "mlp.up_proj", (D, F), ("embed", "mlp"))
    yield from stack.linear("down_proj", "mlp.down_proj", (F, D), ("mlp", "embed"))


def _expert_rows(t: TextConfig, stack: _Stack) -> Iterator[Param]:
    D, F, E = t.hidden_size, t.expert_size, t.experts
    yield from stack.linear("router", "mlp.gate", (D, E), ("embed", None))
    # The axis of size 2: gate and up.
    yield stack.row(
        "experts_in", "mlp.experts.gate_up_proj", (E, D, 2, F), ("experts", "embed", None, "expert_mlp"),
        (E, D, 2 * F), layout="experts",
    )  # fmt: skip
    yield stack.row(
        "experts_out", "mlp.experts.down_proj", (E, F, D), ("experts", "expert_mlp", "embed"),
        (E, F, D), layout="experts",
    )  # fmt: skip
