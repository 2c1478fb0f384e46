"""`vlm3 data ...`: data made, looked at and mixed."""

import argparse
import json
import os
import pathlib

from vlm3_jax import storage
from vlm3_jax.commands import arguments
from vlm3_jax.errors import UserError
from vlm3_jax.tasks import TASKS

# What `vlm3 data show` saves.
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
# AnyCalib's weights: trained on pinhole images, on all kinds, on distorted ones, on stretched and cropped ones.
CALIBRATORS = ("anycalib_pinhole", "anycalib_gen", "anycalib_dist", "anycalib_edit")


def add(parsers) -> None:
    """The commands with their options."""
    data = parsers.add_parser("data", help="build, mix, show and check data").add_subparsers(
        dest="action", required=True, metavar="ACTION"
    )
    _add_making(data)
    _add_mixing(data)
    _add_calibrate(data)


def _add_making(parsers) -> None:
    sub = arguments.command(
        parsers, "build", _data_build, "turn a public data set, or rendered scenes, into ArrayRecord shards"
    )
    _build_arguments(sub)
    help = "look at a folder or file of your own, say what it is, and write a config that trains on it"
    sub = arguments.command(parsers, "import", _data_import, help)
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


def _add_mixing(parsers) -> None:
    sub = arguments.command(
        parsers, "mix", _data_mix, "print a mixture's shares, epochs, fill and attention work; propose rows"
    )
    arguments.with_config(sub)
    sub.add_argument("--samples", type=int, default=1000, help="samples to draw")
    sub.add_argument("--json", action="store_true", help="print all figures as JSON")
    sub = arguments.command(
        parsers, "sweep", _data_sweep, "try drawn weights in short runs and propose better ones; resumable"
    )
    arguments.with_config(sub)
    sub.add_argument("--runs", type=int, default=32, help="runs with drawn weights; the first has those of the config")
    sub.add_argument("--steps", type=int, default=200, help="steps of a run, on average")
    sub = arguments.command(parsers, "show", _data_show, "print one sample of a mixture, and draw it")
    arguments.with_config(sub)
    sub.add_argument("--index", type=int, default=0, help="which draw of the mixture, from 0")
    sub.add_argument("--picture", help="file (.png) to draw the images and labels into")
    sub = arguments.command(
        parsers, "check", _data_check, "look for what is wrong with data, held-out ones too; exit 1 if it is"
    )
    arguments.with_config(sub)
    sub.add_argument("--records", type=int, default=200, metavar="N", help="look at N records of each component (200)")
    sub.add_argument("--all", action="store_true", help="look at all records")
    sub.add_argument("--json", action="store_true", help="print all figures as JSON")
    sub.add_argument("--picture", help="file (.png) to draw a few records of each component into")


def _add_calibrate(parsers) -> None:
    sub = arguments.command(
        parsers, "calibrate", _data_calibrate, "write the camera of each image of a folder beside it"
    )
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


def _data_build(args, _) -> None:
    # Those of sets and of rendered scenes are told apart there.
    from vlm3_jax.builders.running import command

    print(command.build(args))
    if not args.list and args.name != command.SYNTH:
        _freeze(command.make(args))


def _freeze(build) -> None:
    """Makes the manifests of the benchmarks that ask about a build."""
    from vlm3_jax.evaluate import benchmarks

    found = benchmarks.of_builder(build.name, build.split)
    if not found:
        return
    from vlm3_jax.builders.running.plan import jobs
    from vlm3_jax.evaluate import freeze

    items = (item.key for job in jobs(build)[1] for item in job.items)
    keys = freeze.written_keys(build.out, items)
    for benchmark in found:
        rules = "depthlm" if build.options.depthlm else "metres"
        print(freeze.freeze(benchmarks.Asked(benchmark, rules), build.out, keys))


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
        print(f"try it:  vlm3 train --config={args.out}:tiny --workdir=runs/{pathlib.Path(args.out).stem}-tiny")


def _data_mix(args, fields) -> None:
    import rich.console

    from vlm3_jax.data import survey
    from vlm3_jax.setup import Setup

    if args.samples < 1:
        raise UserError(f"--samples={args.samples}: draw at least 1")
    config = arguments.read_config(args, fields)
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
    config = arguments.read_config(args, fields)
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
    config = arguments.read_config(args, fields)
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
    from vlm3_jax.setup import Setup, held_out_table

    if args.records < 1:
        raise UserError(f"--records={args.records}: look at 1 at least, or give --all")
    picture = args.picture and _picture(args.picture)
    config = arguments.read_config(args, fields)
    held_out = {f"held-out {name}": entry for name, entry in held_out_table(config).items()}
    table = {**config.data.components, **held_out}
    if not table:
        raise UserError("data.components is empty: nothing to look at")
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
    counts = calibrate.calibrate(args.folder, None if args.camera is None else intrinsics.rule(args.camera), make)
    print("; ".join(f"{count} {source}" for source, count in sorted(counts.items())))
    return 1 if counts["none"] else 0
