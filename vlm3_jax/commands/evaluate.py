"""`vlm3 eval` and `report`: what answers are worth."""

from vlm3_jax import storage
from vlm3_jax.commands import arguments
from vlm3_jax.errors import UserError


def add(parsers) -> None:
    """The commands with their options."""
    sub = arguments.command(
        parsers, "eval", _eval, "ask a model the held-out questions and score its answers; again after a kill goes on"
    )
    arguments.with_config(sub, required=False)
    arguments.with_processes(sub)
    sub.add_argument("--out", help="folder of predictions and scores (default: WORKDIR/eval)")
    sub.add_argument(
        "--spread",
        action="store_true",
        help="beside answers about depth also the expected value, the median and an interval, from the probabilities "
        "of the digits; see vlm3 calibrate",
    )
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


def _eval(args, fields) -> None:
    from vlm3_jax.parallel import processes

    if not (args.config or args.bench):
        raise UserError("--config: missing; give a config with held-out data, or --bench and --model")
    if not args.bench:
        for option in ("records", "labels", "rules"):
            if (value := getattr(args, option)) not in (None, "metres"):
                instead = "; give --config.eval.records" if option == "records" else ""
                raise UserError(f"--{option}={value}: is of --bench only{instead}")
    if args.questions:
        if args.spread:
            raise UserError("--spread: with --questions nothing is answered")
        _hand_out(args)
        return
    with processes.joined("eval", args.coordinator, args.processes, args.process):
        if args.bench:
            found = _bench(args, fields)
            if found is not None:
                arguments.wide_console().print(found.rich())
                print(f"predictions, scores and tables: {args.out}")
            return
        from vlm3_jax.evaluate.run import evaluate_model

        config = arguments.read_config(args, fields)
        out = storage.path(args.out) if args.out else storage.path(config.workdir) / "eval"
        results = evaluate_model(config, out, spread=args.spread)
        if results is not None:
            arguments.console().print(results.table())
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
    if protocols and counts:
        print(f"their answers: vlm3 score TASK ANSWERS NAME; of matches and objects with --wording={args.model}")
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
    return evaluate_benchmarks(config, asked, storage.path(args.out), args.records, args.labels, spread=args.spread)


def _report(args, _) -> None:
    from vlm3_jax.evaluate.compare import Compared, labels
    from vlm3_jax.evaluate.report.page import write_report

    folders = [storage.path(folder) for folder in args.results]
    runs = dict(zip(labels(folders), folders))
    compared = Compared.read(runs)
    if len(runs) > 1 or compared.tables.blocks:
        arguments.wide_console().print(compared.rich())
    print(write_report(storage.path(args.out), runs, metrics=args.metrics, compared=compared))
