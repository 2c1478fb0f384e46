"""`vlm3 score`: anybody's answers and what they are worth."""

import argparse

from vlm3_jax import storage
from vlm3_jax.commands import arguments
from vlm3_jax.errors import UserError
from vlm3_jax.tasks import TASKS

# What answers may be against a manifest, beside rows of texts and numbers.
FORMS = {
    "depth": "or a folder of depth maps, RECORD.npy, .npz (array depth), .png (16 bits) or .exr, of any size, looked "
    "up at the manifest's points",
    "correspondence": "or a folder of RECORD.npz with one of the arrays points1 [N, 2] (px of the second image, a row "
    "for each query), flow [H, W, 2] (px of both images at that size) or warp [H, W, 2 or 4] (-1 to 1, edge to edge)",
    "pose": "or poses: a .jsonl (id and cam1_T_cam2 or cam2_T_cam1 of pairs; image and world_T_cam or cam_T_world of "
    "images, with their scene), a folder of RECORD.txt or .npy (4 x 4 numbers), a COLMAP model or one for each scene, "
    "a TUM trajectory or SCENE.txt of each",
}
ROWS = (
    '.jsonl with rows {"id", "prediction": text or numbers}; against a manifest the id is RECORD/NUMBER, or RECORD '
    "with a list of the answers to all of its questions"
)


def add(parsers) -> None:
    """The command, with a part for each task."""
    from vlm3_jax.tasks.score import describe_targets

    help = "score anybody's answers: texts, numbers, depth maps, matches, poses"
    parts = parsers.add_parser("score", help=help, description=help).add_subparsers(
        dest="task", required=True, metavar="TASK"
    )
    for task in TASKS:
        sub = arguments.command(parts, task, _score, f"score answers to questions of {task}")
        sub.formatter_class, sub.epilog = argparse.RawDescriptionHelpFormatter, describe_targets(task)
        forms = f"; {FORMS[task]}" if task in FORMS else ""
        sub.add_argument("answers", metavar="ANSWERS", help=ROWS + forms)
        sub.add_argument(
            "targets",
            metavar="TARGETS",
            help='.jsonl with rows {"id", "target": {"kind": ..., ...}}, or a manifest: a benchmark (ibims1, ...), a '
            "built folder, or a NAME.jsonl of its manifests",
        )
        sub.add_argument(
            "--rules",
            choices=("vlm3", "release"),
            default="vlm3",
            help="how texts are read: by docs/conventions.md, or as the release's notebook and the paper read them",
        )
        sub.add_argument("--out", help="manifest: folder for predictions, scores and tables, for vlm3 report")
        sub.add_argument("--name", default="", help="manifest: whose answers these are, in the tables")
        _add_own(sub, task)


def _add_own(sub, task: str) -> None:
    """The options of one task."""
    sub.set_defaults(kind="", scale=None, pose="", metric=False, wording="release")
    if task == "depth":
        sub.add_argument("--kind", choices=("z", "distance"), help="what depth maps hold: z, or distance to the camera")
        sub.add_argument(
            "--scale", type=float, metavar="M", help="metres of a unit of the maps; of whole numbers needed"
        )
    elif task == "pose":
        sub.add_argument("--pose", choices=("cam1_T_cam2", "cam2_T_cam1"), help="what a pair's matrix is")
        sub.add_argument("--metric", action="store_true", help="lengths are metres: score the distance too")
    else:
        sub.add_argument(
            "--wording",
            default="release",
            metavar="release|paper|short|MODEL",
            help="texts: in whose range of coordinates was asked; MODEL: as `vlm3 eval --questions --model=MODEL` asks",
        )


def _score(args, _) -> None:
    from vlm3_jax.evaluate.foreign import score as foreign
    from vlm3_jax.evaluate.results import as_json
    from vlm3_jax.tasks.score import score_files

    found = foreign.find_manifest(args.targets, args.task)
    if found is None:
        for option in ("out", "name", "kind", "scale", "pose", "metric"):
            if getattr(args, option):
                raise UserError(f"--{option}: {args.targets} is no manifest, only with one")
        print(as_json(score_files(args.task, args.answers, args.targets, args.rules)))
        return
    protocol = _protocol(args.wording, args.task)
    options = foreign.Options(args.kind or "", args.scale, args.pose or "", args.metric, protocol, args.rules)
    out = storage.path(args.out) if args.out else None
    print(as_json(foreign.score(found, args.answers, options, out, args.name)))
    if out is not None:
        from vlm3_jax.evaluate import tables

        arguments.wide_console().print(tables.read(out).rich())


def _protocol(wording: str, task: str):
    """How a wording, or a model, asks."""
    from vlm3_jax.tasks.protocol import NAMED, RELEASE

    if wording in NAMED:
        return NAMED[wording][task]
    from vlm3_jax import pretrained

    return pretrained.open(wording).protocols.get(task) or RELEASE[task]
