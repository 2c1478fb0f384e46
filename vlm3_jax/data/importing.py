"""`vlm3 data import`: looks at a folder or file, says what it is, and makes the config that trains on it."""

import bisect
import dataclasses
import json
import keyword
import pathlib
import re

from vlm3_jax import config as configs
from vlm3_jax import config_rules, storage
from vlm3_jax.data.sources import Source, make_source
from vlm3_jax.data.sources.colmap import find_captures, shared_pairs
from vlm3_jax.data.sources.rgbd import find_frames, is_scene
from vlm3_jax.data.sources.wai import META, find_scenes
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.files import write_text
from vlm3_jax.formats.chat_rows import parse_row
from vlm3_jax.formats.colmap import find_model
from vlm3_jax.formats.json_items import item_spans
from vlm3_jax.kinds import KINDS, PAIRS
from vlm3_jax.storage import AnyPath
from vlm3_jax.storage.folders import fetched_file
from vlm3_jax.storage.listed import listed

GAPS = (1, 5)
EPOCHS = 3
SMALL_BYTES = 10_000_000


@dataclasses.dataclass(frozen=True)
class Found:
    """What a path holds: its `kind`, what there is to say of it, the fields that it takes, the tasks it has labels for.

    `missing`: fields that only the user knows, and how to give them.
    """

    kind: str
    about: str
    fields: dict
    tasks: tuple[str, ...]
    missing: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A component that trains on what was found: its `name` and fields; by part its own fields and its records."""

    name: str
    found: Found
    fields: dict
    parts: dict[str, dict]
    counts: dict[str, int]

    def text(self) -> str:
        """What is printed."""
        lines = [f"{self.fields['path']}: {self.found.kind}, {KINDS[self.found.kind].about}: {self.found.about}"]
        lines.append(f"labels for {', '.join(self.found.tasks)}; this entry: {self.fields['task']}")
        parts = ", ".join(f"{count:,} records of {part.replace('_', ' ')}" for part, count in self.counts.items())
        return "\n".join([*lines, parts, self.code()])

    def code(self) -> str:
        """The entry as it stands in a config."""
        fields = ", ".join(f"{key}={value!r}" for key, value in (self.fields | self.parts["train"]).items())
        return f'config.data.components["{self.name}"] = component_config({fields})'

    def config_file(self) -> str:
        """A config that trains on it."""
        fields = "".join(f"        {key!r}: {value!r},\n" for key, value in self.fields.items())
        samples = max(1, EPOCHS * self.counts["train"])
        return _TEMPLATE.format(
            path=self.fields["path"],
            about=f"{self.found.kind}, {self.found.about}",
            task=self.fields["task"],
            fields=fields,
            name=self.name,
            **{part: ", ".join(f"{key}={value!r}" for key, value in own.items()) for part, own in self.parts.items()},
            samples=samples,
            epochs=EPOCHS,
        )


_TEMPLATE = '''"""Trains on {path} ({about}).

Written by `vlm3 data import`; change what you like. Argument: the size of Qwen3-VL (2b, 4b, 8b, 32b), or "tiny": the
same run with a random model of 0.8 M parameters on a CPU, to see that everything fits together.
"""

from vlm3_jax import recipes
from vlm3_jax.config import component_config


def get_config(argument: str = "4b"):
    config = recipes.own("{task}", argument)
    fields = {{
{fields}    }}
    fields |= recipes.wording("{task}", argument)
    config.data.components["{name}"] = component_config(**fields, {train})
    config.eval.components["{name}"] = component_config(**fields, {held_out})
    # {epochs} passes through its records.
    config.train.samples = {samples}
    return config
'''


def make_entry(path: str, name: str = "", **given) -> Entry:
    """The entry of a path; `given`: fields that the user says, such as task, depth_kind, gaps and held_out.

    UserError if nothing known is there, a field is missing that only the user knows, or its first record cannot be
    read.
    """
    if given.get("held_out") == 0:
        raise UserError("--held-out=0: something has to be held out; write a share such as 0.05")
    place, images = storage.path(path), given.get("images", "")
    given = {field: value for field, value in given.items() if value}
    place = place if place.is_file() else listed(place)
    found = look(place, listed(storage.path(images, "--images")) if images else None)
    task = given.pop("task", "") or found.tasks[0]
    if task not in found.tasks:
        raise UserError(f"--task={task}: {path} has labels for {', '.join(found.tasks)}")
    fields = {"kind": found.kind, "path": str(place.resolve()), "task": task, **found.fields, **given}
    if KINDS[found.kind].gaps and task in PAIRS:
        fields.setdefault("gaps", GAPS)
    for field, how in found.missing.items():
        if not fields.get(field):
            raise UserError(f"{path}: {how}")
    if "images" in fields:
        fields["images"] = str(storage.path(fields["images"], "--images").resolve())
    counts, parts = {}, _parts(fields)
    for part, own in parts.items():
        try:
            source = make_source(part, {**fields, **own})
        except UserError as error:
            if part != "held_out":
                raise
            raise UserError(f"{error} (of what is held out; a larger --held-out=SHARE makes it more)") from None
        counts[part] = len(source)
        try:
            source[0]
        except BadRecord as error:
            raise UserError(f"{error} (its first record)") from None
    return Entry(name or _name(place), found, fields, parts, counts)


def _parts(fields: dict) -> dict[str, dict]:
    """The fields that make the two parts: by scene where the source can, else the first records are held out.

    These end with a scene where records have scenes (and stand in their order, as builders write them).
    """
    if "part" in KINDS[fields["kind"]].fields:
        return {part: {"part": part} for part in ("train", "held_out")}
    source = make_source("all", {key: value for key, value in fields.items() if key != "held_out"})
    count = len(source)
    if count < 2:
        raise UserError(f"{fields['path']}: {count} record cannot be parted into training and held-out data")
    held_out = _scene_end(source, min(count - 1, max(1, round(fields.pop("held_out", 0.1) * count))))
    return {"train": {"first": held_out}, "held_out": {"limit": held_out}}


def _scene_end(source: Source, count: int) -> int:
    """The number of records, `count` or the next above, after which another scene begins; `count` if none does.

    Scenes stand together, so that few records have to be read.
    """

    def scene(index: int) -> str:
        try:
            record = source[index]
        # Of a broken record nothing is known: it belongs to the scene before.
        except BadRecord:
            return last
        return last if record is None else record.scene

    last = ""
    last, step = scene(count - 1), 1
    if not last:
        return count
    while count + step < len(source) and scene(count + step - 1) == last:
        step *= 2
    first, end = count + step // 2, min(count + step, len(source))
    found = first + bisect.bisect_left(range(first, end), True, key=lambda index: scene(index) != last)
    return found if found < len(source) else count


def write_config(entry: Entry, out: str) -> pathlib.Path:
    """Writes the config of an entry; UserError if something else is there, or it cannot be loaded."""
    path = storage.local_path(out, "--out")
    if path.suffix != ".py" or path.exists():
        raise UserError(f"--out={out}: {'it is there already' if path.exists() else 'give a file that ends in .py'}")
    if not path.parent.is_dir():
        raise UserError(f"--out={out}: no folder {path.parent}")
    write_text(path, entry.config_file())
    config_rules.check(configs.load(str(path)))
    return path


def _name(path: AnyPath) -> str:
    name = re.sub(r"\W+", "_", path.resolve().stem).strip("_").lower()
    return name if name and not name[0].isdigit() and not keyword.iskeyword(name) else f"own_{name}".rstrip("_")


def look(path: AnyPath, images: AnyPath | None = None) -> Found:
    """What a file or folder is. UserError, with what is in it, if it is nothing that can be read."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    looks = (_records, _conversations, _gta_sfm) if path.is_file() else _FOLDERS
    for one in looks:
        found = one(path, images)
        if found:
            return found
    files = sorted(p for p in path.iterdir() if p.suffix in (".json", ".jsonl")) if path.is_dir() else []
    if file := next((file for file in files if _is_read(file)), None):
        raise UserError(f"{path}: give the file that is meant, such as {file} (--images={path})")
    inside = sorted(p.name + "/" * p.is_dir() for p in path.iterdir()) if path.is_dir() else [path.name]
    if not inside:
        raise UserError(f"{path}: it is empty")
    names = ", ".join(inside[:8]) + (f" and {len(inside) - 8} more" if len(inside) > 8 else "")
    kinds = "; ".join(f"{kind}: {about.about}" for kind, about in KINDS.items())
    raise UserError(
        f"{path}: nothing that can be read is in it ({names}); kinds are {kinds} (docs/own_data.md); for published "
        "data sets see `vlm3 data build --list`"
    )


def _is_read(file: AnyPath) -> bool:
    """Whether a JSON file may be what is meant; what is large is no file of settings."""
    try:
        return file.stat().st_size > SMALL_BYTES or bool(_conversations(file, None))
    except UserError:
        return False


def _records(path: AnyPath, images: AnyPath | None) -> Found | None:
    shards = [path] if path.is_file() else list(path.iterdir())
    if not any(".array_record" in p.name or p.suffix == ".arrayrecord" for p in shards):
        return None
    source = make_source("records", {"path": str(path)})
    record = source[0]
    tasks = {
        "depth": bool(record.depth) or (record.metric and bool(record.depth_maps)),
        "objects": bool(record.objects) or any(mask.use == "objects" for mask in record.masks),
        "correspondence": record.matches is not None or len(record.depth_maps) > 1,
        "pose": len(record.views) > 1 and all(view.world_T_cam is not None for view in record.views[:2]),
        "conversation": record.conversation is not None,
    }
    found = tuple(task for task, there in tasks.items() if there)
    if not found:
        raise UserError(f"{path}: its first record has no labels")
    return Found("records", f"{len(source):,} records", {}, found)


def _conversations(path: AnyPath, images: AnyPath | None) -> Found | None:
    """A json or jsonl file, of conversations or of DepthLM's."""
    if path.suffix not in (".json", ".jsonl"):
        return None
    spans = item_spans(path)
    with fetched_file(path).open("rb") as file:
        offset, length = spans[0].tolist()
        file.seek(offset)
        data = file.read(length)
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: its first item is not JSON ({error})") from None
    if isinstance(tree, dict) and {"pixel_coords", "depth", "intrinsics"} <= tree.keys():
        fields = {"images": str(images or path.parent)}
        how = "say what its depths are: --depth-kind=distance (to the camera centre) or --depth-kind=z"
        return Found("depthlm", f"{len(spans):,} images", fields, ("depth",), {"depth_kind": how})
    try:
        row = parse_row(tree, 0)
    except BadRecord as error:
        raise UserError(f"{path}: its first item is no conversation: {error}") from None
    regions = bool(len(row.conversation.boxes_px))
    about = f"{len(spans):,} conversations, the first of {len(row.conversation.turns)} turns about "
    about += f"{len(row.images)} images" + (f" and {len(row.conversation.boxes_px)} regions" if regions else "")
    tasks = ("objects", "conversation") if regions else ("conversation",)
    return Found("conversations", about, {"images": str(images or path.parent)}, tasks)


def _wai(path: AnyPath, images: AnyPath | None) -> Found | None:
    if not ((path / META).is_file() or any(path.glob(f"*/{META}"))):
        return None
    scenes = find_scenes("import", path)
    metric = sum(scene.metric for scene in scenes)
    matrices = sum(scene.covisibility is not None for scene in scenes)
    about = f"{len(scenes):,} scenes, {sum(len(scene.frames) for scene in scenes):,} frames, {metric:,} scenes metric, "
    about += f"{matrices:,} with covisibility"
    tasks = ("correspondence", "pose")
    fields = {} if matrices == len(scenes) else {"gaps": GAPS}
    return Found("wai", about, fields, ("depth", *tasks) if metric else tasks)


def _colmap(path: AnyPath, images: AnyPath | None) -> Found | None:
    if not (find_model(path) or any(find_model(p) for p in path.iterdir() if p.is_dir())):
        return None
    captures = find_captures("import", path, images)
    pairs = sum(len(shared_pairs(list(capture.model.images.values()))) for capture in captures)
    about = f"{len(captures)} captures, {sum(len(c.model.images) for c in captures):,} images, "
    about += f"{sum(len(c.model.points) for c in captures):,} points, {pairs:,} pairs of images with common points"
    fields = {"images": str(images)} if images else {}
    return Found("colmap", about, fields, ("correspondence", "pose", "depth"))


def _rgbd(path: AnyPath, images: AnyPath | None) -> Found | None:
    if not (is_scene(path) or any(is_scene(p) for p in path.iterdir() if p.is_dir())):
        return None
    frames = find_frames("import", path)
    posed, mapped = sum(frame.pose is not None for frame in frames), sum(frame.depth is not None for frame in frames)
    about = f"{len({frame.scene for frame in frames})} scenes, {len(frames):,} frames, {mapped:,} with depth, "
    about += f"{posed:,} with poses"
    tasks = ("depth",) * bool(mapped) + ("correspondence",) * bool(posed and mapped) + ("pose",) * bool(posed)
    how = (
        "say what the depth maps hold: --depth-kind=z (along the camera's axis, as depth cameras and most files have "
        "it) or --depth-kind=distance (to the camera centre)"
    )
    if not mapped:
        # The kind wants to know, whether there are some or none.
        return Found("rgbd", about, {"depth_kind": "z"}, tasks)
    return Found("rgbd", about, {}, tasks, {"depth_kind": how})


def _realestate10k(path: AnyPath, images: AnyPath | None) -> Found | None:
    clips = sorted(path.glob("*.txt"))
    if not clips:
        return None
    lines = clips[0].read_text(encoding="utf-8", errors="replace").splitlines()
    if len(lines) < 2 or not lines[0].startswith("http") or len(lines[1].split()) != 19:
        return None
    fields = {"gaps": GAPS, **({"images": str(images)} if images else {})}
    return Found("realestate10k", f"{len(clips):,} clips", fields, ("pose",))


def _gta_sfm(path: AnyPath, images: AnyPath | None) -> Found | None:
    files = [path] if path.is_file() else list(path.glob("*.hdf5"))
    if not files or any(p.suffix != ".hdf5" for p in files):
        return None
    return Found("gta_sfm", f"{len(files):,} files", {}, ("depth", "correspondence", "pose"))


_FOLDERS = (_records, _wai, _colmap, _rgbd, _gta_sfm, _realestate10k)
