"""`vlm3 depth`, `match`, `pose` and `ask`: from photos to metres."""

import dataclasses
import pathlib
import sys
import time

from vlm3_jax import storage
from vlm3_jax.commands import arguments
from vlm3_jax.commands import photo_options as options
from vlm3_jax.errors import UserError
from vlm3_jax.files import read_json, writing
from vlm3_jax.records.dense import KINDS
from vlm3_jax.tasks import TASKS

QUESTIONS = 1024
# So many questions take long enough to be told before.
LONG = 200
# Answers to other ones of these do not go into one folder.
SETTINGS = ("camera", "fov", "fx", "dense", "kind", "meant", "spread", "fps", "dtype", "max_new_tokens")


def add(parsers) -> None:
    """The commands with their options."""
    _add_depth(parsers)
    sub = arguments.command(parsers, "match", _match, "where pixels of one photo are in another")
    options.with_pair(sub, "match")
    options.with_points(sub)
    sub = arguments.command(parsers, "pose", _pose, "how the camera moved from one photo to another")
    options.with_pair(sub, "pose")
    _add_ask(parsers)


def _add_depth(parsers) -> None:
    sub = arguments.command(
        parsers, "depth", _depth, "metres at points of photos, folders of them or videos; again after a kill goes on"
    )
    sub.add_argument("images", nargs="+", metavar="IMAGE", help="images, videos, or folders of them")
    options.with_model(sub)
    options.with_camera(sub)
    group = options.with_points(sub)
    group.add_argument(
        "--dense",
        nargs="?",
        type=int,
        const=QUESTIONS,
        metavar="N",
        help=f"a map of every pixel from at most N questions, asked where answers change (default: {QUESTIONS})",
    )
    sub.add_argument("--kind", choices=KINDS, default="distance", help="what depth maps in files hold")
    sub.add_argument(
        "--meant",
        choices=KINDS,
        default="distance",
        help="what this model's lengths are, as its training labels were (published checkpoints: distance)",
    )
    sub.add_argument(
        "--spread",
        action="store_true",
        help="of each point also the expected value and the deviation, from the probabilities of the answer's digits; "
        "of a map its deviation and interval",
    )
    options.with_output(
        sub, "picture, npz, ply, glb, json, png (16-bit depth); default: picture,json, all with --dense"
    )
    sub.add_argument("--fps", type=float, default=1.0, metavar="N", help="of a video about N frames a second")


def _add_ask(parsers) -> None:
    sub = arguments.command(parsers, "ask", _ask, "ask a model a question about images")
    sub.add_argument(
        "images",
        nargs="*",
        metavar="IMAGE",
        help="image files, in the order in which they are shown, then the question (unless --question holds it)",
    )
    sub.add_argument("--question", help='what is asked; "<mask>" in it stands for a --box')
    sub.add_argument(
        "--box",
        action="append",
        default=[],
        metavar="X1,Y1,X2,Y2",
        help="a region of the first image, px: the first <mask> of the question (repeatable)",
    )
    options.with_model(sub)
    sub.add_argument(
        "--task",
        choices=TASKS,
        help="resize the images as the model does for this task (default: as for all it was trained on, if they agree)",
    )
    options.with_camera(sub)
    for name, kind, help in (
        ("temperature", float, "draw tokens from logits divided by this; 0 for the most probable one"),
        ("top-p", float, "draw from the fewest most probable tokens that reach this probability"),
        ("top-k", int, "draw from this many most probable tokens"),
        ("seed", int, "another seed draws another answer"),
    ):
        sub.add_argument(f"--{name}", type=kind, help=f"{help}; with any of these four the rest are the checkpoint's")


def _depth(args, _) -> None:
    from vlm3_jax.answers import saving
    from vlm3_jax.commands import many

    out, camera, points = options.out_folder(args), options.camera_rule(args), options.asked_points(args)
    dense = args.dense is not None
    forms = saving.chosen(args.formats or ("all" if dense else "picture,json"), saving.DEPTH, dense)
    if not 0 < args.fps < 1000:
        raise UserError(f"--fps={args.fps:g}: give frames a second, above 0")
    sources = many.find(args.images, out)
    alone = len(sources) == 1 and not sources[0].is_video and not many.located(args.images[0]).is_dir()
    if not alone and out is None:
        raise UserError("--out: missing; give a folder for the answers about many images")
    # Where is asked, and not how that was said: a file of points may be another one later.
    settings = {"command": "depth", "formats": list(forms)} | {name: getattr(args, name) for name in SETTINGS}
    settings |= {name: points.get(name) for name in ("points", "grid")}
    wanted = {"kind": args.kind, "meant": args.meant, "spread": args.spread} | points
    if alone:
        _depth_of_one(args, sources[0], out, camera, wanted, settings, forms)
    else:
        _depth_of_many(args, sources, out, camera, wanted, settings, forms)


def _depth_of_one(args, source, out, camera, wanted, settings, forms) -> None:
    from vlm3_jax.answers import saving, table
    from vlm3_jax.commands import many

    photo = options.opened(source.path, camera)
    _check_held(args, source.stem, saving.DEPTH, [photo.name])
    model = options.load_model(args)
    calibration = _calibration(args, model)
    if out is not None:
        many.compare(out, settings | {"model": model.fingerprint(), "calibration": calibration})
        # Asking takes long: where nothing can be written is told before.
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
    if (most := _most_questions(wanted)) >= LONG:
        print(f"asking {most:,} questions{'' if args.dense is None else ' at most'}", file=sys.stderr)
    start = time.perf_counter()
    found = model.depth(photo, **wanted)
    seconds = time.perf_counter() - start
    print(table.of_depth(found) if found.dense is None else table.of_dense(found))
    print(f"{_questions(found):,} questions in {seconds:.1f} s (the first call compiles)", file=sys.stderr)
    _finish(args, found, photo, source.stem, forms)


def _depth_of_many(args, sources, out, camera, wanted, settings, forms) -> None:
    from vlm3_jax.answers import saving
    from vlm3_jax.commands import many

    model, told = options.load_model(args), _Cameras()

    def answer(photo):
        told.add(photo)
        found = model.depth(photo, **wanted)
        return found, _questions(found), found.unread

    def save(stem, found, photo):
        # The file that says that a photo is done is written whatever is asked for, and last.
        saving.save(out, stem, [*(form for form in forms if form != "json"), "json"], saving.DEPTH, found, photo)

    settings = settings | {"model": model.fingerprint(), "calibration": _calibration(args, model)}
    tally = many.walk(sources, out, saving.DEPTH["json"][0], settings, camera, args.fps, answer, save)
    for line in (options.one_for_all(args, told.sizes), told.line(), tally.line()):
        print(line, file=sys.stderr) if line else None
    print(out)
    many.check(tally)


def _calibration(args, model) -> dict | None:
    """What the intervals of --spread will come from; says that there will be none."""
    found = model.calibration() if args.spread else None
    if args.spread and found is None:
        print("no interval: the spread of this model is not calibrated, see vlm3 calibrate", file=sys.stderr)
    return found and dataclasses.asdict(found)


def _most_questions(wanted: dict) -> int:
    points, (columns, rows) = wanted.get("points", ()), wanted.get("grid", (0, 0))
    return wanted.get("dense", False) or len(points) + columns * rows


def _questions(found) -> int:
    return len(found.points_px) if found.dense is None else found.dense.questions


class _Cameras:
    """Of many photos: where their cameras are from."""

    def __init__(self):
        self._sources: dict[str, int] = {}
        self.sizes: set[tuple[int, int]] = set()

    def add(self, photo) -> None:
        # A file beside each photo has that photo's name.
        source = photo.source if photo.assumed or photo.source in ("given", "EXIF") else "camera files"
        self._sources[source] = self._sources.get(source, 0) + 1
        self.sizes.add((photo.camera.width, photo.camera.height))

    def line(self) -> str:
        if not self._sources:
            return ""
        return (
            "cameras: "
            + ", ".join(f"{source} ({n:,})" for source, n in self._sources.items())
            + (f"; {options.GUESS}" if any(source.startswith("assumed") for source in self._sources) else "")
        )


def _match(args, _) -> None:
    from vlm3_jax.answers import saving, table

    camera, points = options.camera_rule(args), options.asked_points(args)
    options.out_folder(args)
    forms = saving.chosen(args.formats or "all", saving.MATCH)
    photos = _pair(args, camera, saving.MATCH)
    found = options.load_model(args).match(*photos, **points)
    print(table.of_match(found))
    _finish(args, found, photos, _pair_stem(args), forms)


def _pose(args, _) -> None:
    from vlm3_jax.answers import saving, table

    camera = options.camera_rule(args)
    out = options.out_folder(args)
    forms = saving.chosen(args.formats or "all", saving.POSE)
    photos = _pair(args, camera, saving.POSE)
    found = options.load_model(args).pose(*photos)
    print(table.of_pose(found))
    if out is not None and not args.formats and not found.known:
        # What was not asked for by name is not missed.
        forms = tuple(form for form in forms if form != "colmap")
        print("no COLMAP model: rotation or direction cannot be read", file=sys.stderr)
    _finish(args, found, photos, _pair_stem(args), forms)


def _pair(args, camera, table) -> list:
    """Both photos; what is to be said of their cameras is."""
    photos = [options.opened(path, camera) for path in (args.first, args.second)]
    _tell_one_for_all(args, photos)
    _check_held(args, _pair_stem(args), table, [photo.name for photo in photos])
    return photos


def _tell_one_for_all(args, photos) -> None:
    """Says what is wrong with one camera for all of them, if something is."""
    if line := options.one_for_all(args, [(photo.camera.width, photo.camera.height) for photo in photos]):
        print(line, file=sys.stderr)


def _check_held(args, stem: str, table, names: list[str]) -> None:
    """UserError if the files would take the place of those about other images that are called the same."""
    path = args.out and storage.path(args.out) / f"{stem}{table['json'][0]}"
    if not path or not path.is_file():
        return
    tree = read_json(path)
    held = tree.get("images", [tree.get("image")]) if isinstance(tree, dict) else []
    if [pathlib.Path(str(name)).resolve() for name in held] != [pathlib.Path(name).resolve() for name in names]:
        raise UserError(f"{path}: holds answers about {' and '.join(map(str, held))}; choose another --out")


def _finish(args, found, photos, stem: str, forms) -> None:
    """Says how much could not be read, and writes the files."""
    from vlm3_jax.answers import saving, table
    from vlm3_jax.answers.values import RelativePose

    if not isinstance(found, RelativePose) and (line := table.unread(found.unread, len(found.points_px))):
        print(line, file=sys.stderr)
    if args.out:
        for path in saving.save(storage.path(args.out), stem, forms, saving.table_of(found), found, photos):
            print(path)


def _ask(args, _) -> None:
    from vlm3_jax.camera import AsIs
    from vlm3_jax.commands import many

    options.name_model(args)
    if args.question is None:
        # Who forgets the question means the last image by that, which nobody can tell from its text.
        if len(args.images) < 2 or many.is_image(args.images[-1]):
            raise UserError('no question: write it behind the images: vlm3 ask photo.jpg "How wide is the table?"')
        args.question = args.images.pop()
    if not args.question.strip():
        raise UserError("the question is empty")
    camera = options.camera_rule(args)
    boxes = [options.numbers(box, 4, "--box", "X1,Y1,X2,Y2 in pixels") for box in args.box]
    photos = [options.opened(image, camera, quiet=True) for image in args.images]
    model = options.load_model(args)
    task = "objects" if boxes and args.task is None else args.task
    rule = model.resize_rule(task)
    shown = f"resized by {rule}"
    if rule == AsIs():
        shown = "shown as it is: lengths in metres mean little without the model's resize rule, see --task"
    for photo in photos:
        print(f"{photo}; {shown}", file=sys.stderr)
    _tell_one_for_all(args, photos)
    given = {name: getattr(args, name) for name in ("temperature", "top_p", "top_k", "seed")}
    sampled = any(value is not None for value in given.values())
    sampling = model.sampling(**given) if sampled else None
    print(model.ask(photos, args.question, boxes or None, sampling, args.task))


def _pair_stem(args) -> str:
    names = [pathlib.PurePosixPath(str(path)).stem for path in (args.first, args.second)]
    return "-".join(names)
