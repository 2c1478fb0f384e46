"""Our model beside transformers', piece by piece: where do they part? For who ports, quantises or changes a model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import rich.table
from PIL import Image

from vlm3_jax import pretrained, storage
from vlm3_jax.camera import Camera
from vlm3_jax.checkpoint import locate
from vlm3_jax.data.packing import RowBudget, pack
from vlm3_jax.data.samples import unsupervised
from vlm3_jax.errors import UserError
from vlm3_jax.model.config import VLMConfig
from vlm3_jax.model.vlm import VLM
from vlm3_jax.processor.image import VisionSpec, image_layout
from vlm3_jax.processor.prompt import Prompt, prompt_sample
from vlm3_jax.processor.video import still_patches
from vlm3_jax.records import ImageRef, View

# Largest difference over the root mean square of a piece, above which it counts as another result.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.3}
QUESTION = "Describe the images, and say how far away the nearest object is."


@dataclasses.dataclass(frozen=True)
class Piece:
    """One named intermediate: its shape, the largest difference, and that over the root mean square of theirs."""

    name: str
    shape: tuple[int, ...]
    difference: float
    relative: float


@dataclasses.dataclass(frozen=True)
class Verification:
    """The pieces in the order of the computation, and how far the answers' distributions are apart.

    `kl`: mean KL(theirs || ours) in nats, computed in float64; `agreement`: share of positions with the same best
    token.
    """

    pieces: list[Piece]
    kl: float
    agreement: float
    tolerance: float

    @property
    def first_divergence(self) -> str | None:
        """Name of the first piece whose relative difference is above the tolerance (or not a number)."""
        return next((p.name for p in self.pieces if not p.relative <= self.tolerance), None)

    def table(self) -> rich.table.Table:
        """All pieces as a table."""
        table = rich.table.Table("piece", "shape", "largest difference", "over the rms", "")
        for p in self.pieces:
            mark = "" if p.relative <= self.tolerance else "[red]differs"
            table.add_row(p.name, " x ".join(map(str, p.shape)), f"{p.difference:.2e}", f"{p.relative:.2e}", mark)
        return table

    def summary(self) -> str:
        """One line."""
        where = self.first_divergence
        verdict = f"first piece that differs: {where}" if where else "no piece differs"
        return f"{verdict} (tolerance {self.tolerance:g}); mean KL {self.kl:.2e}, same best token {self.agreement:.1%}"


def verify(
    cfg: VLMConfig, params: dict, hf_dir, images=(), dtype: str = "float32", tolerance: float | None = None
) -> Verification:
    """Compares `params` (nested dict) with the torch model of the HF directory on a prompt about some images.

    `images`: PIL images; none: two of random pixels, of different, non-square sizes. Both sides compute in `dtype`.
    Tokens and positions are ours on one side and transformers' own on the other, as are the processed pixels.
    UserError if torch is missing.
    """
    hf_dir = locate.whole(storage.path(hf_dir))
    if dtype not in TOLERANCE:
        raise UserError(f"--dtype: {dtype!r} is unknown; choose one of {', '.join(TOLERANCE)}")
    other = pretrained.open(hf_dir)
    spec = other.spec
    images = list(images) or _random_images(spec)
    layouts = [
        image_layout(View(ImageRef(*i.size, "image", pixels=np.asarray(i)), Camera(1.0, 1.0, 0.0, 0.0, *i.size)), spec)
        for i in images
    ]
    prompt = prompt_sample(layouts, QUESTION, other.chat)
    theirs = _theirs(hf_dir, prompt, images, dtype)
    ours = _ours(cfg, params, prompt, spec, dtype)
    if missing := set(theirs) ^ set(ours):
        raise UserError(f"{hf_dir}: the two models have different pieces ({', '.join(sorted(missing)[:3])})")
    return _compare(ours, theirs, tolerance or TOLERANCE[dtype])


def _compare(ours, theirs, tolerance) -> Verification:
    pieces = []
    for name, mine in ours.items():
        other = theirs[name].astype(np.float64)
        if mine.shape != other.shape:
            raise UserError(f"{name}: our shape is {mine.shape}, theirs {other.shape}; the configs differ")
        difference = float(np.abs(mine - other).max())
        pieces.append(Piece(name, mine.shape, difference, difference / max(float(np.sqrt((other**2).mean())), 1e-12)))
    p, q = (_log_softmax(x["logits"].astype(np.float64)) for x in (theirs, ours))
    kl = float((np.exp(p) * (p - q)).sum(-1).mean())
    return Verification(pieces, kl, float((p.argmax(-1) == q.argmax(-1)).mean()), tolerance)


def _log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def _random_images(spec: VisionSpec) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    unit = spec.patch_size * spec.merge_size
    sizes = (5 * unit, 3 * unit), (2 * unit, 4 * unit + unit // 2)
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for w, h in sizes]


def _ours(cfg: VLMConfig, params, prompt: Prompt, spec: VisionSpec, dtype: str) -> dict[str, np.ndarray]:
    tokens = np.concatenate([prompt.prefix_tokens, *prompt.suffix_tokens])
    axes = np.concatenate([prompt.prefix_positions, *prompt.suffix_positions], 1)
    sample = unsupervised(tokens, axes, prompt.visual_slot, prompt.images)
    patches = [layout.load(spec) for layout in prompt.images]
    batch = pack([[sample]], [[patches]], RowBudget(len(tokens), sample.n_patches, 1), spec)
    names = []

    @jax.jit
    def run(params, batch):
        # A dict would come back in the order of the alphabet.
        named = VLM(cfg, params, jnp.dtype(dtype)).intermediates(batch)
        names.extend(named)
        return list(named.values())

    with jax.default_matmul_precision("highest"):
        values = run(params, batch)
    pixels = still_patches(np.concatenate(patches), spec)
    return {"pixels": pixels, **{name: np.asarray(x[0], np.float32) for name, x in zip(names, values)}}


def _theirs(hf_dir, prompt: Prompt, images, dtype: str) -> dict[str, np.ndarray]:
    torch, transformers = _import_torch()
    load = transformers.AutoModelForImageTextToText.from_pretrained
    model = load(hf_dir, dtype=getattr(torch, dtype), attn_implementation="eager").eval()
    processor = transformers.Qwen2VLImageProcessorPil.from_pretrained(hf_dir)
    inputs = dict(processor(images=images, return_tensors="pt"))
    ids = torch.tensor(np.concatenate([prompt.prefix_tokens, *prompt.suffix_tokens])[None]).long()
    is_image = (ids == model.config.image_token_id).int()
    named, handles = _watch(model)
    pixels = inputs["pixel_values"]
    with torch.no_grad():
        inputs["pixel_values"] = pixels.to(model.dtype)
        out = model(input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=is_image, **inputs)
    for handle in handles:
        handle.remove()
    named |= {"pixels": pixels, "logits": out.logits[0]}
    return {name: value.detach().float().numpy() for name, value in named.items()}


def _watch(model):
    """Hooks that fill a dict with transformers' intermediates under our names."""
    named, handles = {}, []

    def output(module, name):
        handles.append(module.register_forward_hook(lambda _m, _i, out: named.__setitem__(name, _rows(out))))

    def entering(module, name):
        def keep(_module, args, kwargs):
            named[name] = _rows(args[0] if args else kwargs["hidden_states"])

        handles.append(module.register_forward_pre_hook(keep, with_kwargs=True))

    visual, text = model.model.visual, model.model.language_model
    output(visual.patch_embed, "vision.patch_embed")
    for i, block in enumerate(visual.blocks):
        output(block, f"vision.blocks.{i}")
    output(visual.merger, "vision.merger")
    for i, merger in enumerate(visual.deepstack_merger_list):
        output(merger, f"vision.deepstack.{i}")
    entering(text.layers[0], "text.embed")
    # What enters the next layer: the layer's output and the DeepStack features added to it.
    for i, following in enumerate([*text.layers[1:], text.norm]):
        entering(following, f"text.layers.{i}")
    output(text.norm, "text.norm")
    return named, handles


def _rows(value):
    value = value[0] if isinstance(value, tuple) else value
    return value[0] if value.ndim == 3 else value


def _import_torch():
    try:
        import torch
        import transformers
    except ImportError:
        raise UserError(
            'torch is missing, with which the other side is computed: pip install "vlm3_jax[torch]"'
        ) from None
    return torch, transformers
