"""`vlm3 convert` and `verify`: models as files."""

from vlm3_jax.commands import arguments
from vlm3_jax.errors import UserError


def add(parsers) -> None:
    """The commands with their options."""
    sub = arguments.command(
        parsers, "convert", _convert, "HF directory to Orbax checkpoint, or checkpoint or training workdir to HF"
    )
    sub.add_argument("source", metavar="SRC", help="HF directory, hub name, converted checkpoint or training workdir")
    sub.add_argument("target", metavar="DST", help="folder to write; the same command again goes on after a kill")
    sub.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: as stored")
    arguments.with_base(sub)
    sub.add_argument("--peft", action="store_true", help="of a workdir trained with LoRA: its adapters, for PEFT")
    sub.add_argument("--step", type=int, help="step of a training workdir (default: the newest)")
    sub.add_argument("--max-shard-gb", type=float, default=4.0, help="largest safetensors file, in 10^9 bytes")
    sub.add_argument("--overwrite", action="store_true", help="replace the model that stands at DST")
    sub.add_argument("--dry-run", action="store_true", help="print what would be done and touch nothing")
    sub = arguments.command(
        parsers, "verify", _verify, "compare a model with transformers' layer by layer; exit code 1 where they differ"
    )
    sub.add_argument("path", metavar="MODEL", help="HF directory, converted checkpoint, workdir or hub name")
    arguments.with_base(sub)
    sub.add_argument("--against", help="HF directory for transformers (default: MODEL itself)")
    sub.add_argument("--image", action="append", default=[], help="an image to ask about (repeatable; default: random)")
    sub.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="for both sides")
    sub.add_argument("--tolerance", type=float, help="largest difference over the rms of a piece that is no difference")


def _convert(args, _) -> None:
    from vlm3_jax import pretrained
    from vlm3_jax.checkpoint import convert

    if not 1 <= args.max_shard_gb * 1e9 < 1e18:
        raise UserError(f"--max-shard-gb={args.max_shard_gb:g}: give a size above 0, in 10^9 bytes")
    opened = pretrained.open(args.source, step=args.step, base="" if args.peft else args.base, export=False)
    if args.peft:
        conversion = convert.plan_adapter(opened.source, args.base or opened.base_name())
    else:
        conversion = convert.plan_conversion(opened.source, args.dtype, int(args.max_shard_gb * 1e9))
    print(conversion.report())
    if not args.dry_run:
        print(f"written: {convert.convert(conversion, args.target, args.overwrite)}")


def _verify(args, _) -> int:
    import rich.console
    from PIL import Image

    from vlm3_jax import pretrained
    from vlm3_jax.checkpoint import hf
    from vlm3_jax.processor.photo import open_photo
    from vlm3_jax.verify import verify

    if args.tolerance is not None and not 0 < args.tolerance < float("inf"):
        raise UserError(f"--tolerance={args.tolerance:g}: give a number above 0")
    model = pretrained.open(args.path, base=args.base)
    if not args.against and not model.is_hf:
        raise UserError(f"{args.path}: transformers cannot load this; name an HF directory with --against")
    images = [Image.fromarray(open_photo(path).pixels) for path in args.image]
    params = hf.read(model.source, args.dtype)
    result = verify(model.cfg, params, args.against or model.located.weights, images, args.dtype, args.tolerance)
    rich.console.Console().print(result.table())
    print(result.summary())
    return 1 if result.first_divergence else 0
