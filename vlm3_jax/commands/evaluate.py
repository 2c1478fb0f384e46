"""`vlm3 eval`, `report` and `ask`: answers and what they are worth."""

import sys

from vlm3_jax import storage
from vlm3_jax.commands import arguments
from vlm3_jax.errors import UserError
from vlm3_jax.tasks import TASKS


def add(parsers) -> None:
    """The commands with their options."""
    sub = arguments.command(
        parsers, "eval", _eval, "ask a model the held-out questions and score its answers; again after a kill goes on"
    )
    arguments.with_config(sub, required=False)
    arguments.with_processes(sub)
    sub.add_argument("--out", help="folder of predictions and scores (default: WORKDIR/eval)")
    _add_bench(sub)
    sub = arguments.command(
        parsers,
        "report",
        _report,
        "compare evaluations item by item, and write an HTML report of them; the last one is the subject",
    )
    sub.add_argument("results", nargs="+", help="folders that `vlm3 eval` or `vlm3 score --out` has written")
    sub.add_argument("--out", default="report.html", help="the file to write")
    sub.add_argument("--metrics", help="the training's metrics.jsonl, for the loss curve")
    _add_ask(parsers)


def _add_bench(sub) -> None:
    sub.add_argument(
        "--bench",
        action="append",
        default=[],
        metavar="NAME",
        help="public benchmarks instead of a config's held-out data: ibims1, nyuv2, ..., depth, objects, "
        "correspondence, pose or all (repeatable; docs/evaluation.md); their built data are looked for in VLM3_DATA",
    )
    sub.add_argument(
        "--rules",
        choices=("metres", "depthlm"),
        default="metres",
        help="depth labels: true metres, or those that DepthLM's curators stored and published numbers are of",
    )
    sub.add_argument("--records", type=int, metavar="N", help="of each benchmark only N records, evenly spaced")
    sub.add_argument("--labels", type=int, metavar="N", help="of each of its records only N points or matches")
    sub.add_argument(
        "--questions",
        nargs="?",
        const="rows",
        choices=("rows", "lmms"),
        help="answer nothing: write the benchmarks' questions and pictures to --out, for a model that runs elsewhere; "
        "=lmms also as tasks of lmms-eval. With --model they are asked as that one is to be asked",
    )


def _add_ask(parsers) -> None:
    sub = arguments.command(parsers, "ask", _ask, "ask a model a question about images")
    sub.add_argument("--model", required=True, help="HF directory, finished workdir or hub name")
    arguments.with_base(sub)
    sub.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of weights and computation")
    sub.add_argument("images", nargs="*", help="image files, in the order in which they are shown")
    sub.add_argument("--question", required=True)
    sub.add_argument(
        "--task",
        choices=TASKS,
        help="resize the images as the model does for this task (default: as for all it was trained on, if they agree)",
    )
    sub.add_argument("--camera", metavar="FX,FY,CX,CY", help="of the upright images, px (default: camera file or EXIF)")
    sub.add_argument("--max-new-tokens", type=int, help="where the answer is cut (default: the checkpoint's, or 256)")
    for name, kind, help in (
        ("temperature", float, "draw tokens from logits divided by this; 0 for the most probable one"),
        ("top-p", float, "draw from the fewest most probable tokens that reach this probability"),
        ("top-k", int, "draw from this many most probable tokens"),
        ("seed", int, "another seed draws another answer"),
    ):
        sub.add_argument(f"--{name}", type=kind, help=f"{help}; with any of these four the rest are the checkpoint's")


def _eval(args, fields) -> None:
    from vlm3_jax.parallel import processes

    if not (args.config or args.bench):
        raise UserError("--config: missing; give a config with held-out data, or --bench and --model")
    if args.questions:
        _hand_out(args)
        return
    with processes.joined("eval", args.coordinator, args.processes, args.process):
        import rich.console

        if args.bench:
            found = _bench(args, fields)
            if found is not None:
                arguments.wide_console().print(found.rich())
                print(f"predictions, scores and tables: {args.out}")
            return
        from vlm3_jax.evaluate.run import evaluate_model

        config = arguments.read_config(args, fields)
        out = storage.path(args.out) if args.out else storage.path(config.workdir) / "eval"
        results = evaluate_model(config, out)
        if results is not None:
            rich.console.Console().print(results.table())
            print(f"predictions and scores: {out}")


def _asked(args) -> list:
    """The benchmarks of the options."""
    from vlm3_jax.evaluate import benchmarks

    if not args.out:
        raise UserError("--out: missing; give a folder for predictions, scores and tables")
    for option in ("records", "labels"):
        if (value := getattr(args, option)) is not None and value < 1:
            raise UserError(f"--{option}={value}: ask about 1 at least")
    return benchmarks.find(args.bench, args.rules)


def _hand_out(args) -> None:
    from vlm3_jax.evaluate.handout import hand_out

    if not args.bench:
        raise UserError("--questions: of which benchmarks? give --bench")
    protocols = {}
    if args.model:
        from vlm3_jax import pretrained

        protocols = pretrained.open(args.model).protocols
    counts, missing = hand_out(_asked(args), args.out, args.records, args.labels, protocols, args.questions == "lmms")
    for name, count in counts.items():
        print(f"{args.out}/{name}/questions.jsonl: {count:,} questions")
    if args.questions == "lmms" and counts:
        print(f"tasks of lmms-eval: lmms-eval --include_path={args.out} --tasks=vlm3 --model=...")
    for name, why in missing.items():
        print(f"left out: {name}: {why}")


def _bench(args, fields):
    """The tables of benchmarks; None in all processes but the first."""
    from vlm3_jax.evaluate.bench_run import evaluate_benchmarks

    asked = _asked(args)
    args.workdir = args.workdir or args.out
    # A model is judged by its answers alone, unless somebody asks for more.
    given = any(field.startswith("eval.variants=") for field in fields)
    fields = fields if args.config or given else ["eval.variants=model", *fields]
    config = arguments.read_config(args, fields)
    return evaluate_benchmarks(config, asked, storage.path(args.out), args.records, args.labels)


def _report(args, _) -> None:
    from vlm3_jax.evaluate.compare import Compared, labels
    from vlm3_jax.evaluate.report.page import write_report

    folders = [storage.path(folder) for folder in args.results]
    runs = dict(zip(labels(folders), folders))
    compared = Compared.read(runs)
    if len(runs) > 1 or compared.tables.blocks:
        arguments.wide_console().print(compared.rich())
    print(write_report(storage.path(args.out), runs, metrics=args.metrics, compared=compared))


def _ask(args, _) -> None:
    import vlm3_jax
    from vlm3_jax.camera import AsIs
    from vlm3_jax.processor.photo import open_photo

    photos = [open_photo(image, _matrix(args.camera)) for image in args.images]
    model = vlm3_jax.load(args.model, max_new_tokens=args.max_new_tokens, dtype=args.dtype, base=args.base)
    rule = model.resize_rule(args.task)
    shown = f"resized by {rule}"
    if rule == AsIs():
        shown = "shown as it is: lengths in metres mean little without the model's resize rule, see --task"
    for photo in photos:
        print(f"{photo}; {shown}", file=sys.stderr)
    given = {name: getattr(args, name) for name in ("temperature", "top_p", "top_k", "seed")}
    sampled = any(value is not None for value in given.values())
    print(model.ask(photos, args.question, None, model.sampling(**given) if sampled else None, args.task))


def _matrix(text: str | None):
    """K of "FX,FY,CX,CY"."""
    if text is None:
        return None
    try:
        fx, fy, cx, cy = map(float, text.split(","))
    except ValueError:
        raise UserError(f"--camera={text}: write FX,FY,CX,CY in pixels of the upright image") from None
    return [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]
