"""The kinds of sources: which fields of a component each takes and needs, and the tasks that it has labels for."""

import dataclasses
import math

from vlm3_jax.errors import UserError

DEPTH_KINDS = ("distance", "z")
PARTS = ("", "train", "held_out")
PAIRS = ("correspondence", "pose")
_PART = ("part", "held_out")


@dataclasses.dataclass(frozen=True)
class Kind:
    """`fields`: those of a component that only some kinds take; `gaps`: pairs are those of frames so many apart."""

    about: str
    fields: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ("depth", "correspondence", "pose")
    gaps: bool = False


# Every kind is a file of data/sources/.
KINDS = {
    "records": Kind("ArrayRecord shards of our records, bare or as TFDS wraps them", tasks=()),
    "depthlm": Kind("DepthLM's jsonl and a folder of images", ("images", "depth_kind"), ("depth_kind",), ("depth",)),
    "rgbd": Kind(
        "folders of images, depth maps and intrinsics",
        ("depth_kind", "depth_scale", "gaps", *_PART),
        ("depth_kind",),
        gaps=True,
    ),
    "wai": Kind("scenes in MapAnything's layout", ("scenes", "depth", "mask", "gaps", *_PART)),
    "colmap": Kind("captures reconstructed by COLMAP", ("images", "depth_scale", *_PART)),
    "conversations": Kind(
        "a json or jsonl of conversations and a folder of images",
        ("images", "camera", *_PART),
        tasks=("conversation", "objects"),
    ),
    "realestate10k": Kind("RealEstate10K's text files", ("images", "gaps", *_PART), ("gaps",), ("pose",), gaps=True),
    "gta_sfm": Kind("GTA-SfM's HDF5 files", ("gaps", *_PART), gaps=True),
}
# What the fields are where a kind does not take them.
DEFAULTS = {
    "images": "",
    "depth_kind": "",
    "depth_scale": 0.0,
    "gaps": (),
    "scenes": "",
    "depth": "depth",
    "mask": "",
    "camera": "",
    "part": "",
    "held_out": 0.1,
}


def check(fields) -> None:
    """UserError, naming the field, unless the fields of a component suit its kind and its task."""
    kind, task = KINDS[fields.kind], fields.task
    for field, default in DEFAULTS.items():
        if field not in kind.fields and _plain(fields[field]) != default:
            takers = ", ".join(name for name, other in KINDS.items() if field in other.fields)
            raise UserError(f"{field} is {fields[field]!r}, but kind {fields.kind!r} does not take it (only {takers})")
    for field in kind.needs:
        if _plain(fields[field]) == DEFAULTS[field]:
            wanted = f"; choose one of {DEPTH_KINDS}" if field == "depth_kind" else ", but the kind needs it"
            raise UserError(f"{field} is {fields[field]!r}{wanted}")
    if kind.tasks and task not in kind.tasks:
        raise UserError(f"task is {task!r}; kind {fields.kind!r} has labels for {', '.join(kind.tasks)}")
    if kind.gaps and task in PAIRS and not fields.gaps:
        raise UserError(f"gaps is empty, but task {task!r} needs pairs: how many frames their two lie apart, as (1, 5)")
    allowed = {
        "depth_kind": fields.depth_kind in ("", *DEPTH_KINDS),
        "part": fields.part in PARTS,
        "held_out": 0 < fields.held_out < 1,
        "depth_scale": 0 <= fields.depth_scale < math.inf,
        "gaps": all(type(gap) is int and gap >= 1 for gap in fields.gaps),
        "flip": fields.flip == 0 or (fields.kind != "conversations" and task != "conversation"),
    }
    words = {
        "depth_kind": f"choose one of {DEPTH_KINDS}",
        "part": f"choose one of {PARTS}",
        "held_out": "a share above 0 and below 1",
        "depth_scale": "metres a unit, at least 0",
        "gaps": "whole numbers of at least 1",
        "flip": "what a conversation says of left and right would be wrong: 0",
    }
    for field, good in allowed.items():
        if not good:
            raise UserError(f"{field} is {fields[field]!r}; {words[field]}")


def _plain(value):
    return tuple(value) if isinstance(value, list | tuple) else value
