"""Options of the commands about photos, and what they mean: model, camera, points, files."""

import io
import os
import re
import sys

from vlm3_jax import storage
from vlm3_jax.commands import arguments
from vlm3_jax.errors import UserError

# Where the model is looked for if no option names one.
MODEL = "VLM3_MODEL"
GRID = "8x6"
GUESS = "a guess: metres are as wrong as it; give --fov, --fx or a camera file"


def with_model(sub) -> None:
    """The model, and how its answers are computed."""
    sub.add_argument(
        "--model", help=f"HF directory, finished workdir or hub name (facebook/VLM3-depth); default: ${MODEL}"
    )
    arguments.with_base(sub)
    sub.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of weights and computation")
    sub.add_argument("--max-new-tokens", type=int, help="where an answer is cut (default: the checkpoint's, or 256)")


def with_camera(sub) -> None:
    """What is known of the camera of all images."""
    group = sub.add_mutually_exclusive_group()
    group.add_argument(
        "--camera",
        metavar="FX,FY,CX,CY",
        help="of the upright images, px; or fov:DEGREES or 35mm:MILLIMETRES (default: camera file, EXIF, a guess)",
    )
    group.add_argument("--fov", type=float, metavar="DEGREES", help="field of view across the upright image")
    group.add_argument("--fx", type=float, metavar="PX", help="focal length of the upright image, in its pixels")


def with_points(sub):
    """Where to ask; the group, of which one option can be given."""
    group = sub.add_mutually_exclusive_group()
    group.add_argument(
        "--points",
        nargs="+",
        metavar="X,Y",
        help="pixels of the (first) upright image, or a file of them: .npy [N, 2], or text with x and y on a line",
    )
    group.add_argument("--grid", metavar="COLUMNSxROWS", help=f"points evenly spaced over the image (default: {GRID})")
    return group


def with_pair(sub, what: str) -> None:
    """Two images, and the options of commands about them."""
    sub.add_argument("first", metavar="A", help="an image")
    sub.add_argument("second", metavar="B", help="another image of the same scene")
    with_model(sub)
    with_camera(sub)
    forms = "picture, npz, json" if what == "match" else "colmap (text model), npz, json"
    with_output(sub, f"{forms}; default: all")


def with_output(sub, forms: str) -> None:
    """Files."""
    sub.add_argument("--out", metavar="DIR", help="folder for files; without it the answer is only printed")
    sub.add_argument("--formats", metavar="A,B,...", help=f"of the files in --out: {forms}; or all")


def load_model(args):
    """The model as `vlm3_jax.load` opens it."""
    import vlm3_jax

    return vlm3_jax.load(args.model, max_new_tokens=args.max_new_tokens, dtype=args.dtype, base=args.base)


def name_model(args) -> None:
    """Finds the model's name; UserError if there is none."""
    args.model = args.model or os.environ.get(MODEL)
    if not args.model:
        raise UserError(f"--model: missing; name one, such as facebook/VLM3-depth or runs/demo, here or in ${MODEL}")


def out_folder(args):
    """The folder for files, or None; looked at first, together with the model's name, since loading takes long."""
    name_model(args)
    if args.out == "":
        raise UserError("--out: is empty; give a folder")
    if args.formats and not args.out:
        raise UserError("--formats: of which folder? give --out")
    out = storage.path(args.out) if args.out else None
    if out is not None and out.exists() and not out.is_dir():
        raise UserError(f"--out={out}: is a file; give a folder")
    return out


def opened(path, camera, quiet: bool = False):
    """The photo, and, unless quiet, a line that says what its camera is and where it is from."""
    from vlm3_jax.processor.photo import open_photo

    photo = open_photo(str(path), camera)
    if not quiet:
        print(f"{photo}{f'; {GUESS}' if photo.assumed else ''}", file=sys.stderr)
    return photo


def camera_rule(args):
    """What makes the camera of an image of any size (`intrinsics.rule`) of the options, or None."""
    from vlm3_jax.processor import intrinsics

    if args.fov is not None:
        if not 1 <= args.fov <= 170:
            raise UserError(f"--fov={args.fov:g}: give degrees, from 1 to 170")
        return intrinsics.rule(f"fov:{args.fov}")
    if args.fx is not None:
        if not 0 < args.fx < float("inf"):
            raise UserError(f"--fx={args.fx:g}: give a focal length in pixels, above 0")
        return intrinsics.square(args.fx)
    if args.camera is None:
        return None
    try:
        return intrinsics.rule(args.camera)
    except UserError:
        raise UserError(
            f"--camera={args.camera}: write FX,FY,CX,CY in pixels of the upright image, fov:60 or 35mm:26"
        ) from None


def one_for_all(args, sizes) -> str:
    """What there is to say if the options tell one camera for images of different sizes (w, h); "" for nothing."""
    option = next((name for name in ("camera", "fov", "fx") if getattr(args, name) is not None), None)
    if option is None or (args.camera or "").startswith("35mm:"):
        return ""
    angle = option == "fov" or (args.camera or "").startswith("fov:")
    sizes = sorted(set(sizes))
    # A focal length in pixels is that of a turned photo too.
    differ = {round(w / h, 2) if angle else tuple(sorted((w, h))) if option == "fx" else (w, h) for w, h in sizes}
    if len(differ) < 2:
        return ""
    shown = ", ".join(f"{width} x {height}" for width, height in (sizes[0], sizes[-1]))
    what = "all see the same angle across" if angle else "all have the same camera in pixels"
    return f"--{option}: {what}, but their sizes differ ({shown}); --camera=35mm:MM is a lens for all of them"


def asked_points(args) -> dict:
    """The points or the grid of the options, as `VLM3.depth` and `.match` take them."""
    if getattr(args, "dense", None) is not None:
        return {"dense": args.dense}
    if args.points is None:
        text = args.grid or GRID
        grid = re.fullmatch(r"(\d{1,5})[x,×](\d{1,5})", text)
        if grid is None:
            raise UserError(f"--grid={text}: write columns x rows, such as {GRID}")
        return {"grid": (int(grid[1]), int(grid[2]))}
    points = []
    for word in args.points:
        path = storage.path(word, "--points")
        points += _points_file(path) if path.is_file() else [numbers(word, 2, "--points", "X,Y in pixels, or a file")]
    return {"points": points}


def _points_file(path: storage.AnyPath) -> list[list[float]]:
    import numpy as np

    try:
        if path.suffix.lower() == ".npy":
            found = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
        else:
            # Windows' editors begin files with a mark.
            text = path.read_text(encoding="utf-8-sig")
            lines = [line.split("#")[0].replace(",", " ").split() for line in text.splitlines()]
            found = np.array([[float(word) for word in line] for line in lines if line])
        if found.ndim != 2 or found.shape[1] != 2 or found.dtype.kind not in "iuf":
            raise ValueError(f"shape {list(found.shape)}")
    except (OSError, ValueError) as error:
        raise UserError(
            f"--points={path}: expected x and y (px) of a point on each line, or .npy [N, 2] ({error})"
        ) from None
    return found.tolist()


def numbers(text: str, count: int, option: str, what: str) -> list[float]:
    """So many numbers between commas; UserError, which names the option, if it is not that."""
    try:
        found = [float(word) for word in text.split(",")]
    except ValueError:
        found = []
    if len(found) != count:
        raise UserError(f"{option}={text}: write {what}")
    return found
