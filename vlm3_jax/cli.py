"""The command line: `vlm3 COMMAND [--config=FILE_OR_NAME] [--config.field=value] [--workdir=DIR] ...`."""

import argparse
import json
import os
import pathlib
import signal
import sys

from vlm3_jax import config as configs
from vlm3_jax import storage
from vlm3_jax.errors import UserError
from vlm3_jax.tasks import TASKS

# Options that name local files only: what is run as a program, and a picture to look at.
LOCAL = ("config", "picture")
# What `vlm3 data show` saves.
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
# AnyCalib's weights: trained on pinhole images, on all kinds, on distorted ones, on stretched and cropped ones.
CALIBRATORS = ("anycalib_pinhole", "anycalib_gen", "anycalib_dist", "anycalib_edit")


def main(argv: list[str] | None = None) -> int:
    """Runs one command; a UserError becomes one line on stderr and its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    argv, runner = _split_runner(argv)
    fields = [arg.removeprefix("--config.") for arg in argv if arg.startswith("--config.")]
    parser = make_parser()
    args = parser.parse_args([arg for arg in argv if not arg.startswith("--config.")])
    if fields and "config" not in args:
        parser.error(f"--config.{fields[0]}: this command takes no config")
    args.runner = runner
    try:
        _check_paths(args)
        code = args.run(args, fields) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Who read the output is gone (`vlm3 ... | head`); the interpreter would complain when it flushes it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except UserError as error:
        print(f"vlm3 {args.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print(f"vlm3 {args.command}: interrupted", file=sys.stderr)
        return 130


def _split_runner(argv: list[str]) -> tuple[list[str], list[str]]:
    """The arguments of `vlm3 data build` before "--", and those of Beam's runner after it."""
    if argv[:2] != ["data", "build"] or "--" not in argv:
        return argv, []
    at = argv.index("--")
    return argv[:at], argv[at + 1 :]


def _check_paths(args) -> None:
    """UserError, before anything else happens, for a path with a scheme that nobody reads."""
    for name, value in vars(args).items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and name not in ("images", "question", "runner"):
                (storage.local_path if name in LOCAL else storage.path)(text, name)


def read_config(args, fields):
    """The config of --config with the overrides of the command line, checked and locked."""
    config = configs.load(args.config)
    for name in ("workdir", "model", "base"):
        if getattr(args, name, None):
            config[name] = getattr(args, name)
    if getattr(args, "profile", None):
        config.train.profile = args.profile
    configs.override(config, fields)
    configs.check(config)
    if config.mesh.cpu_devices:
        import jax

        jax.config.update("jax_num_cpu_devices", config.mesh.cpu_devices)
    return config.lock()


def _train(args, fields) -> int:
    from vlm3_jax.parallel import processes

    with processes.joined("train", args.coordinator, args.processes, args.process):
        from vlm3_jax.train.loop import train

        return 0 if train(read_config(args, fields)) else args.stopped_code


def _eval(args, fields) -> None:
    from vlm3_jax.parallel import processes

    with processes.joined("eval", args.coordinator, args.processes, args.process):
        import rich.console

        from vlm3_jax.evaluate.run import evaluate_model

        config = read_config(args, fields)
        out = storage.path(args.out) if args.out else storage.path(config.workdir) / "eval"
        results = evaluate_model(config, out)
        if results is not None:
            rich.console.Console().print(results.table())
            print(f"predictions and scores: {out}")


def _report(args, _) -> None:
    from vlm3_jax.evaluate.report.page import write_report

    folders = [storage.path(folder) for folder in args.results]
    names = [folder.absolute().name for folder in folders]
    labels = names if len(set(names)) == len(names) else args.results
    print(write_report(storage.path(args.out), dict(zip(labels, folders)), metrics=args.metrics))


def _score(args, _) -> None:
    from vlm3_jax.tasks.score import score_files

    print(json.dumps(score_files(args.task, args.predictions, args.targets, args.rules), indent=2))


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


def _demo(args, fields) -> None:
    args.config = args.config or "demo"
    config = read_config(args, fields)
    from vlm3_jax.demo import demo

    config.unlock()
    demo(config, args.scenes, args.config)


def _data_build(args, _) -> None:
    # Those of sets and of rendered scenes are told apart there.
    from vlm3_jax.builders.running import command

    print(command.build(args))


def _data_import(args, _) -> None:
    from vlm3_jax.data import importing

    try:
        gaps = tuple(int(gap) for gap in args.gaps.split(",") if gap)
    except ValueError:
        raise UserError(f"--gaps={args.gaps}: write whole numbers of frames, such as 1,5") from None
    names = ("task", "images", "depth_kind", "depth_scale", "camera", "mask", "held_out")
    given = {name: getattr(args, name) for name in names}
    entry = importing.make_entry(args.path, args.name, gaps=gaps, **given)
    print(entry.text())
    if args.out:
        print(f"written: {importing.write_config(entry, args.out)}")
        print(f"try it:  vlm3 train --config={args.out}:tiny --workdir=runs/{entry.name}-tiny")


def _data_mix(args, fields) -> None:
    import rich.console

    from vlm3_jax.data import survey
    from vlm3_jax.setup import Setup

    if args.samples < 1:
        raise UserError(f"--samples={args.samples}: draw at least 1")
    config = read_config(args, fields)
    data, setup = config.data, Setup.from_config(config)
    run = survey.Run(config.train.samples, data.rows * config.train.accumulation, config.train.batch)
    found = survey.mix_report(
        data.components, setup.settings(), config.seed, args.samples, data.max_bad_fraction, run, setup.weights
    )
    if args.json:
        print(json.dumps(found.to_json(), indent=2))
    else:
        rich.console.Console().print(found)


def _data_sweep(args, fields) -> None:
    import jax

    from vlm3_jax.sweep import sweep

    if args.steps < 1:
        raise UserError(f"--steps={args.steps}: give the runs at least 1 step")
    config = read_config(args, fields)
    # All runs have one step to compile.
    local = config.workdir and not storage.is_remote(storage.path(config.workdir))
    if local and not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", os.path.join(config.workdir, "compiled"))
    if table := sweep(config, args.runs, args.steps):
        print(f"weights: {table}; train on them with --config.data.weights={table}")


def _data_show(args, fields) -> None:
    from vlm3_jax.data import inspect
    from vlm3_jax.data.mixture import Mixture, first_phase
    from vlm3_jax.setup import Setup

    if args.index < 0:
        raise UserError(f"--index={args.index}: draws of a mixture are counted from 0")
    picture = args.picture and _picture(args.picture)
    config = read_config(args, fields)
    setup = Setup.from_config(config)
    components = setup.components(config.data.components)
    phase = first_phase({c.name: len(c) for c in components}, setup.weights(components))
    print(inspect.show(Mixture(components, config.seed, [phase]), args.index, picture))


def _picture(name: str) -> pathlib.Path:
    """Where a picture can be saved; UserError if it is no place for one, before anything is computed."""
    path = pathlib.Path(name)
    if path.suffix.lower() not in PICTURES:
        raise UserError(f"--picture={name}: give a file that ends in {' or '.join(PICTURES)}")
    if path.is_dir() or not path.parent.is_dir():
        raise UserError(f"--picture={name}: {'it is a folder' if path.is_dir() else f'no folder {path.parent}'}")
    return path


def _data_check(args, fields) -> int:
    from vlm3_jax.data import check
    from vlm3_jax.data.drawing import contact_sheet
    from vlm3_jax.data.mixture import build_components
    from vlm3_jax.setup import Setup

    if args.records < 1:
        raise UserError(f"--records={args.records}: look at 1 at least, or give --all")
    picture = args.picture and _picture(args.picture)
    config = read_config(args, fields)
    held_out = {f"held-out {name}": entry for name, entry in config.eval.components.items()}
    table = {**config.data.components, **held_out}
    components = build_components(table, Setup.from_config(config).settings(), 1.0)
    records = None if args.all else args.records
    found = check.check(components, held_out, records, config.data.max_bad_fraction, progress=True)
    print(json.dumps(found.to_json(), indent=2) if args.json else found.text())
    if picture:
        contact_sheet({part.name: part.pictured for part in found.components}).save(picture)
    return 1 if found.faults() else 0


def _data_calibrate(args, _) -> int:
    from vlm3_jax.data import calibrate
    from vlm3_jax.processor import intrinsics

    make = args.calibrator and (lambda: calibrate.AnyCalib(args.calibrator))
    counts = calibrate.calibrate(args.folder, args.camera and intrinsics.rule(args.camera), make)
    print("; ".join(f"{count} {source}" for source, count in sorted(counts.items())))
    return 1 if counts["none"] else 0


def _plan(args, fields) -> None:
    # The compiler runs here, for devices that are elsewhere.
    os.environ["JAX_PLATFORMS"] = "cpu"
    import dataclasses
    import math

    import rich.console

    from vlm3_jax.planning import plan, table, topology

    wanted = topology.parse(args.topology)
    shapes = [topology.parse_mesh(text, wanted) for text in args.mesh] or None
    reached = plan.REACHED if args.reached is None else args.reached
    if not 0 < reached <= 1:
        raise UserError(f"--reached={reached}: give the share of the bound that is reached, above 0 and at most 1")
    if args.price is not None and not 0 <= args.price < math.inf:
        raise UserError(f"--price={args.price}: give the price of a device for an hour, finite and at least 0")

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    found = plan.make_plan(read_config(args, fields), wanted, shapes, args.compile, reached, say)
    found = dataclasses.replace(found, price=args.price)
    if args.json:
        print(json.dumps(found.to_json(), indent=2))
    else:
        table.print_plan(found, rich.console.Console(width=None if sys.stdout.isatty() else 180))


def make_parser() -> argparse.ArgumentParser:
    """All commands with their help."""
    from vlm3_jax.tasks.score import describe_targets

    parser = argparse.ArgumentParser(
        prog="vlm3",
        description="VLM3 in JAX: train, evaluate and use metric 3-D vision-language models.",
        epilog="Commands with a config take --config.FIELD=VALUE for any of its fields, nested ones with dots.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def with_base(sub):
        sub.add_argument("--base", default="", help="of a PEFT adapter folder: its base, if not the one that it names")

    def with_config(sub, required=True):
        sub.epilog = (
            "--config.FIELD=VALUE sets any field of the config (vlm3_jax/config.py has them all). A new component "
            "joins by its path: --config.data.components.NAME.path=SHARDS --config.data.components.NAME.task=TASK; "
            "held-out data likewise under eval.components."
        )
        sub.add_argument("--config", required=required, help="a config file, or the name of a shipped one (demo)")
        sub.add_argument(
            "--workdir", help="for everything that is written: a folder, gs://... or s3://... (config.workdir)"
        )
        sub.add_argument("--model", help="HF directory, finished workdir, hub name or tiny:demo (config.model)")
        with_base(sub)

    def with_processes(sub):
        sub.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens, if no launcher says it")
        sub.add_argument(
            "--processes", type=int, metavar="N", help="processes of the run; 1: whatever the launcher says"
        )
        sub.add_argument("--process", type=int, metavar="I", help="the number of this one, from 0")

    def command(name, run, help, parent=commands):
        sub = parent.add_parser(name, help=help, description=help)
        sub.set_defaults(run=run)
        return sub

    sub = command("train", _train, "fine-tune a model; the same command again resumes")
    with_config(sub)
    sub.add_argument("--profile", metavar="FIRST:LAST", help="record these steps for xprof (config.train.profile)")
    with_processes(sub)
    sub.add_argument("--stopped-code", type=int, default=0, metavar="CODE", help="exit code after a stop signal")
    sub = command("eval", _eval, "ask a model the held-out questions and score its answers; again after a kill goes on")
    with_config(sub)
    with_processes(sub)
    sub.add_argument("--out", help="folder of predictions and scores (default: WORKDIR/eval)")
    sub = command("report", _report, "write an HTML report of one or more evaluations, the last one being the subject")
    sub.add_argument("results", nargs="+", help="folders that `vlm3 eval` has written")
    sub.add_argument("--out", default="report.html", help="the file to write")
    sub.add_argument("--metrics", help="the training's metrics.jsonl, for the loss curve")
    sub = command("score", _score, "score anybody's answers")
    sub.add_argument("task", choices=TASKS)
    sub.add_argument("predictions", help='rows {"id", "prediction": text}')
    sub.add_argument("targets", help='rows {"id", "target": {"kind": ..., ...}}')
    sub.add_argument(
        "--rules",
        choices=("vlm3", "release"),
        default="vlm3",
        help="how answers are read: by the rules of docs/conventions.md, or as the release's notebook and the paper do",
    )
    sub.formatter_class, sub.epilog = argparse.RawDescriptionHelpFormatter, describe_targets()
    sub = command("ask", _ask, "ask a model a question about images")
    sub.add_argument("--model", required=True, help="HF directory, finished workdir or hub name")
    with_base(sub)
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
    sub = command("convert", _convert, "HF directory to Orbax checkpoint, or checkpoint or training workdir to HF")
    sub.add_argument("source", metavar="SRC", help="HF directory, hub name, converted checkpoint or training workdir")
    sub.add_argument("target", metavar="DST", help="folder to write; the same command again goes on after a kill")
    sub.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: as stored")
    with_base(sub)
    sub.add_argument("--peft", action="store_true", help="of a workdir trained with LoRA: its adapters, for PEFT")
    sub.add_argument("--step", type=int, help="step of a training workdir (default: the newest)")
    sub.add_argument("--max-shard-gb", type=float, default=4.0, help="largest safetensors file, in 10^9 bytes")
    sub.add_argument("--overwrite", action="store_true", help="replace the model that stands at DST")
    sub.add_argument("--dry-run", action="store_true", help="print what would be done and touch nothing")
    sub = command("verify", _verify, "compare a model with transformers' layer by layer; exit code 1 where they differ")
    sub.add_argument("path", metavar="MODEL", help="HF directory, converted checkpoint, workdir or hub name")
    with_base(sub)
    sub.add_argument("--against", help="HF directory for transformers (default: MODEL itself)")
    sub.add_argument("--image", action="append", default=[], help="an image to ask about (repeatable; default: random)")
    sub.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="for both sides")
    sub.add_argument("--tolerance", type=float, help="largest difference over the rms of a piece that is no difference")
    sub = command("plan", _plan, "memory, time and days of a recipe on TPUs or GPUs that are not there, by mesh shape")
    with_config(sub)
    sub.add_argument(
        "--topology",
        required=True,
        help="v5p:2x2x2, v6e:16x16, h100:8x4 (GPUs x nodes); v5p-64, a3-ultragpu-8g:4 (nodes)",
    )
    sub.add_argument(
        "--mesh", action="append", default=[], metavar="RxFxT", help="replica x fsdp x tensor (repeatable; default all)"
    )
    sub.add_argument(
        "--compile", type=int, default=1, metavar="N", help="TPU: compile the N best (minutes each; 0: estimates only)"
    )
    sub.add_argument("--reached", type=float, help="share of the bound on speed that a run reaches (default 0.6)")
    sub.add_argument("--price", type=float, metavar="PER_CHIP_HOUR", help="also say what the run costs at this price")
    sub.add_argument("--json", action="store_true", help="print all figures as JSON")
    sub = command("demo", _demo, "render, train, evaluate and report on two cores in minutes; resumable")
    with_config(sub, required=False)
    sub.add_argument("--scenes", type=int, default=4096, help="scenes to render for training")

    data = commands.add_parser("data", help="build, mix, show and check data").add_subparsers(
        dest="action", required=True, metavar="ACTION"
    )
    sub = command("build", _data_build, "turn a public data set, or rendered scenes, into ArrayRecord shards", data)
    _build_arguments(sub)
    help = "look at a folder or file of your own, say what it is, and write a config that trains on it"
    sub = command("import", _data_import, help, data)
    sub.add_argument("path", metavar="FOLDER", help="folder, or file of conversations (docs/own_data.md)")
    sub.add_argument("--out", help="config file (.py) to write")
    sub.add_argument("--name", default="", help="of the component (default: the folder's)")
    sub.add_argument("--task", default="", choices=TASKS, help="what to train, if it has labels for several")
    sub.add_argument("--images", default="", help="folder of the images, where they are elsewhere")
    sub.add_argument("--depth-kind", default="", choices=("z", "distance"), help="what the depths are")
    sub.add_argument("--depth-scale", type=float, default=0.0, help="metres a unit of depth maps, or of COLMAP's model")
    sub.add_argument("--gaps", default="", metavar="N,N", help="pairs: how many frames their two lie apart")
    sub.add_argument("--camera", default="", help="of images that tell none: FX,FY,CX,CY (px), fov:60 or 35mm:26")
    sub.add_argument("--mask", default="", help="WAI: modality whose pixels above 0 have labels (-NAME: the others)")
    sub.add_argument("--held-out", type=float, default=0.1, metavar="SHARE", help="of the scenes (default 0.1)")
    sub = command("mix", _data_mix, "print a mixture's shares, epochs, fill and attention work; propose rows", data)
    with_config(sub)
    sub.add_argument("--samples", type=int, default=1000, help="samples to draw")
    sub.add_argument("--json", action="store_true", help="print all figures as JSON")
    sub = command("sweep", _data_sweep, "try drawn weights in short runs and propose better ones; resumable", data)
    with_config(sub)
    sub.add_argument("--runs", type=int, default=32, help="runs with drawn weights; the first has those of the config")
    sub.add_argument("--steps", type=int, default=200, help="steps of a run, on average")
    sub = command("show", _data_show, "print one sample of a mixture, and draw it", data)
    with_config(sub)
    sub.add_argument("--index", type=int, default=0, help="which draw of the mixture, from 0")
    sub.add_argument("--picture", help="file (.png) to draw the images and labels into")
    sub = command("check", _data_check, "look for what is wrong with data, held-out ones too; exit 1 if it is", data)
    with_config(sub)
    sub.add_argument("--records", type=int, default=200, metavar="N", help="look at N records of each component (200)")
    sub.add_argument("--all", action="store_true", help="look at all records")
    sub.add_argument("--json", action="store_true", help="print all figures as JSON")
    sub.add_argument("--picture", help="file (.png) to draw a few records of each component into")
    sub = command("calibrate", _data_calibrate, "write the camera of each image of a folder beside it", data)
    sub.epilog = (
        "In this order: EXIF, --camera, the file beside the image (photo.camera.json), --calibrator. A file that is "
        "there is kept, so the same command again goes on. Exit code 1 if an image is left without."
    )
    sub.add_argument("folder", metavar="DIR", help="images, also in folders below")
    sub.add_argument("--camera", metavar="CAMERA", help="of images without EXIF: FX,FY,CX,CY (px), fov:60 or 35mm:26")
    sub.add_argument(
        "--calibrator",
        choices=CALIBRATORS,
        metavar="WEIGHTS",
        help=f"AnyCalib's weights for the rest, if its package is installed: {', '.join(CALIBRATORS)}",
    )
    return parser


def _build_arguments(sub: argparse.ArgumentParser) -> None:
    sub.epilog = (
        "--list prints the data sets. The same command goes on after a kill. After -- stand the flags of Apache Beam's "
        "runner (with --beam): vlm3 data build NAME --raw=DIR --out=DIR --beam -- --runner=FlinkRunner ..."
    )
    sub.add_argument("name", nargs="?", default="synth", metavar="NAME", help="data set, or synth (rendered scenes)")
    sub.add_argument("--list", action="store_true", help="print the data sets with their splits and layouts")
    sub.add_argument("--raw", help="folder of the data set as it is published")
    sub.add_argument("--out", help="folder to write (default: where mixtures look for it, below $VLM3_DATA)")
    sub.add_argument("--split", default="", help="default: the set's first, mostly train")
    sub.add_argument("--workers", type=int, default=2, help="processes")
    sub.add_argument("--shard-items", type=int, metavar="N", help="items of a shard (default 1024)")
    sub.add_argument("--limit", type=int, default=0, metavar="N", help="only the first N items")
    sub.add_argument("--max-bad", type=float, default=0.01, metavar="SHARE", help="of items that may fail")
    sub.add_argument("--depthlm", action="store_true", help="labels as DepthLM's curators stored them")
    sub.add_argument("--focal", metavar="PX", help="store images resized to this focal length; synth: the nominal one")
    sub.add_argument(
        "--final",
        nargs="?",
        const="qwen3-vl",
        metavar="MODEL",
        help="store images at the size that the vision tower sees, with --focal after both resizes (of Qwen3-VL)",
    )
    sub.add_argument("--quality", default="95", help="JPEG quality of images that are decoded on the way, or png")
    sub.add_argument("--beam", action="store_true", help="run by Apache Beam (its DirectRunner with --workers)")
    for name, default in (("count", 1000), ("seed", 0), ("first", 0), ("width", 160), ("height", 120)):
        sub.add_argument(f"--{name}", type=int, default=default, help=f"of rendered scenes (default {default})")


if __name__ == "__main__":
    sys.exit(main())
