"""What `vlm3 data build` does: the words of its options become a build, and the data sets are listed."""

import os

from vlm3_jax import synth
from vlm3_jax.builders import registry
from vlm3_jax.builders.common import Builder
from vlm3_jax.builders.running.build import build as run
from vlm3_jax.builders.running.plan import SHARD_ITEMS, Build, Images, make_build
from vlm3_jax.errors import UserError
from vlm3_jax.model import sizes
from vlm3_jax.processor.image import VisionSpec
from vlm3_jax.storage import AnyPath, path

SYNTH = "synth"
QWEN = "qwen3-vl"
# The least and largest area of an image, px, of every released size.
QWEN_PIXELS = 65_536, 16_777_216


def build(args) -> str:
    """Builds what the parsed arguments say; returns what is printed."""
    if args.list:
        return listing()
    if args.name == SYNTH:
        return str(_rendered(args))
    if args.runner and not args.beam:
        raise UserError("what stands after -- are flags of Apache Beam; give --beam with them")
    if not args.raw:
        raise UserError(f"--raw: give the folder of {args.name} as it is published")
    return str(run(make(args), args.workers, args.max_bad, args.runner if args.beam else None))


def _rendered(args):
    if not args.out:
        raise UserError("--out: give the folder to write")
    options = synth.SynthOptions(width=args.width, height=args.height, focal_px=_number(args.focal or "160"))
    return synth.build(args.out, args.count, options, seed=args.seed, first=args.first, workers=args.workers)


def make(args) -> Build:
    """The build of a set that the parsed arguments describe; nothing is written."""
    builder = registry.get(args.name)
    split = args.split or builder.splits[0]
    return make_build(
        args.name,
        args.raw,
        args.out or default_out(builder, split, args.depthlm),
        split,
        depthlm=args.depthlm,
        images=Images(f"focal:{args.focal}" if args.focal else "", vision(args.final), _quality(args.quality)),
        shard_items=SHARD_ITEMS if args.shard_items is None else args.shard_items,
        limit=args.limit,
    )


def default_out(builder: type[Builder], split: str, depthlm: bool = False) -> AnyPath:
    """Where the shipped mixtures and the benchmarks look for a split."""
    part = ("held_out" if split == builder.held_out else split) + ("_depthlm" if depthlm else "")
    return path(os.environ.get("VLM3_DATA", "runs/data"), "VLM3_DATA") / builder.folder / builder.name / part


def vision(final: str | None) -> VisionSpec | None:
    """The vision tower of a model; None without one."""
    if not final:
        return None
    if final == QWEN:
        return VisionSpec.of(sizes.released("4b"), *QWEN_PIXELS)
    from vlm3_jax import pretrained

    return pretrained.open(final).spec


def _quality(text: str) -> int | None:
    try:
        return None if text == "png" else int(text)
    except ValueError:
        raise UserError(f"--quality={text}: give a JPEG quality from 1 to 100, or png") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"--focal={text}: give a focal length in px") from None


def listing() -> str:
    """The data sets: name, splits (the held-out one in brackets), layout."""
    lines = ["synth: rendered scenes (--count --seed --first --width --height --focal)"]
    for name, builder in registry.table().items():
        splits = ", ".join(f"[{split}]" if split == builder.held_out else split for split in builder.splits)
        lines.append(f"{name} ({builder.folder}): {splits}; {builder.layout}")
    return "\n".join(lines)
