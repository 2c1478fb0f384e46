"""Street scenes of one's own (or of anyone), in one documented layout, which is that of DepthVLM's unified sets."""

import math
import pathlib

from vlm3_jax.builders import common
from vlm3_jax.builders.readers import depth_png
from vlm3_jax.camera import Camera
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.files import Fields, read_json
from vlm3_jax.records import Record, View

ABOUT = "about.json"
KINDS = ("z", "distance")
EXAMPLE = '{"depth_kind": "z", "depth_scale": 0.00390625}'
IMAGES = (".jpg", ".jpeg", ".png")


class StreetScenes(common.Builder):
    """RGB with sparse or dense depth in 16-bit PNG and a pinhole camera for each frame.

    What no file name tells stands in about.json beside the splits: `depth_kind` ("z" or "distance") and `depth_scale`
    (metres a step; 1/256 in DepthVLM's sets). Nothing is assumed without it. A value of 0 is no depth. `intrinsics`
    holds [fx, fy, cx, cy, width, height] in pixels of the image, the centre of the first pixel at (0, 0). Frames are
    undistorted. A frame whose depth or intrinsics are missing is skipped and counted.
    """

    name = "street_scenes"
    title = "Street scenes (a generic layout)"
    folder = "depth"
    splits = ("train", "val", "test")
    held_out = "val"
    layout = "about.json, SPLIT/{rgb/SCENE/FRAME.jpg, depth/SCENE/FRAME.png, intrinsics/SCENE/FRAME.json}"
    labels = "depth as about.json tells it"
    licence = "that of the frames"
    doubts = ("the paper's own street scenes are not public; the layout is ours and DepthVLM's",)
    test = "tests/builders/test_street_scenes.py"

    def frames(self, raw: pathlib.Path, split: str) -> list[common.Item]:
        """Every image."""
        read_about(raw)
        common.need_files([raw / split / "rgb", raw / split / "depth", raw / split / "intrinsics"])
        items = []
        for scene in common.subfolders(raw / split / "rgb", "a folder for each scene"):
            for path in scene.iterdir():
                if path.suffix.lower() in IMAGES:
                    data = {"split": split, "scene": scene.name, "image": path.name}
                    items.append(common.Item(f"{scene.name}/{path.stem}", scene.name, data))
        return common.by_key(items)

    def record(self, raw: pathlib.Path, item: common.Item) -> Record:
        """One view with its depth map."""
        kind, scale = read_about(raw)
        root, scene, name = raw / item.data["split"], item.data["scene"], item.data["image"]
        stem = pathlib.PurePath(name).stem
        depth = root / "depth" / scene / f"{stem}.png"
        intrinsics = root / "intrinsics" / scene / f"{stem}.json"
        for path in (depth, intrinsics):
            if not path.exists():
                raise common.Skip(f"there is no {path.parent.parent.name} of it")
        try:
            camera = Camera.from_intrinsics(read_json(intrinsics))
        except BadRecord as error:
            raise BadRecord(f"{item.key}: {error}") from None
        except (UserError, TypeError, ValueError) as error:
            raise BadRecord(f"{item.key}: intrinsics: {error}") from None
        image = common.image(root / "rgb" / scene / name, item.key)
        label = depth_png.depth_map(depth.read_bytes(), scale, kind, f"{item.key} depth")
        return Record(item.key, (View(image, camera),), depth_maps=(label,), scene=scene)


def read_about(raw: pathlib.Path) -> tuple[str, float]:
    """(kind of depth, metres a step) of a folder; UserError if it does not say."""
    path = raw / ABOUT
    if not path.is_file():
        raise UserError(f"{path}: not there; write what the depths are, such as {EXAMPLE}")
    about = Fields.read(path)
    kind, scale = about.text("depth_kind"), about.number("depth_scale", above=0.0)
    if kind not in KINDS or not math.isfinite(scale):
        raise UserError(f'{path}: depth_kind must be "z" or "distance", got {kind!r}')
    return kind, scale
