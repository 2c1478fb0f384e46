"""Which forms of files there are, and saving an answer in some of them: each file appears whole."""

from collections.abc import Callable, Sequence

from vlm3_jax import storage
from vlm3_jax.answers import colmap_text, glb, json_text, npz, picture, ply, png
from vlm3_jax.answers.values import Depth, Match, RelativePose
from vlm3_jax.errors import UserError
from vlm3_jax.files import write_bytes, writing
from vlm3_jax.storage import AnyPath

# By form: what follows the stem in the file's name, and who makes its bytes of (answer, photo or photos).
DEPTH = {
    "picture": (".depth-view.png", picture.encode_depth),
    "npz": (".depth.npz", npz.encode_depth),
    "png": (".depth.png", png.encode_depth),
    "ply": (".depth.ply", ply.encode_depth),
    "glb": (".depth.glb", glb.encode_depth),
    "json": (".depth.json", json_text.encode_depth),
}
MATCH = {
    "picture": (".match-view.png", picture.encode_match),
    "npz": (".match.npz", npz.encode_match),
    "json": (".match.json", json_text.encode_match),
}
POSE = {
    "npz": (".pose.npz", npz.encode_pose),
    "colmap": (".colmap", colmap_text.files),
    "json": (".pose.json", json_text.encode_pose),
}
# The ends of the names of pictures among them: no photos.
PICTURES = tuple(end for table in (DEPTH, MATCH, POSE) for end, _ in table.values() if end.endswith(".png"))
# A map of every pixel is what these hold.
NEED_MAP = ("png",)

Form = tuple[str, Callable]


def chosen(text: str, table: dict[str, Form], dense: bool = True) -> tuple[str, ...]:
    """The forms in "json,ply"; "all" for all that there can be. In the table's order: json, which says that all is
    done, comes last. UserError for one that there is not, or that needs a dense map where there is none.
    """
    wanted = [word.strip() for word in text.split(",") if word.strip()]
    if not wanted:
        raise UserError(f"--formats={text}: names none; choose of {', '.join(table)}, or all")
    if wanted == ["all"]:
        return tuple(form for form in table if dense or form not in NEED_MAP)
    for form in wanted:
        if form not in table:
            raise UserError(f"--formats={text}: there is no {form!r}; choose of {', '.join(table)}, or all")
        if form in NEED_MAP and not dense:
            raise UserError(f"--formats={text}: {form} holds a depth map of all pixels; ask for one with --dense")
    return tuple(form for form in table if form in wanted)


def save(
    folder: str | AnyPath, stem: str, forms: Sequence[str], table: dict[str, Form], answer, photo
) -> list[AnyPath]:
    """Writes `folder`/`stem`.* in these forms; the paths, in the order in which they were written.

    UserError if one cannot be written.
    """
    paths, folder = [], storage.path(folder)
    for form in forms:
        ending, encode = table[form]
        made, path = encode(answer, photo), folder / f"{stem}{ending}"
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(made, dict):
                path.mkdir(parents=True, exist_ok=True)
                for name, data in made.items():
                    write_bytes(path / name, data)
            else:
                write_bytes(path, made)
        paths.append(path)
    return paths


def table_of(answer: Depth | Match | RelativePose) -> dict[str, Form]:
    """The forms that an answer can be saved in."""
    return {Depth: DEPTH, Match: MATCH, RelativePose: POSE}[type(answer)]
