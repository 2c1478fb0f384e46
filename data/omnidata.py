"""Taskonomy and HM3D as Omnidata distributes them: square renders of scanned buildings with exact depth."""

import csv
import math
import pathlib
import re

import numpy as np
from PIL import Image, UnidentifiedImageError

from vlm3_jax.builders import common
from vlm3_jax.builders.readers import depth_png
from vlm3_jax.camera import Camera
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.files import Fields
from vlm3_jax.records import Record, View

# Both depths are stored in steps of 1/512 m; the largest value says that there is none.
METRES_A_STEP = 1 / 512
NO_DEPTH = 65535
# The name of a frame, and the largest published list of buildings first.
FRAME = re.compile(r"(point_\d+_view_\d+)_domain_rgb\.(png|jpg|jpeg)")
LISTS = ("fullplus", "full", "medium", "tiny", "debug")
# How far the two published forms of a rotation may be apart (their digits) and still be one.
SAME_ROTATION = 1e-3
# Blender's cameras look along -z with y up; ours along z with y down.
BLENDER = np.diag([1.0, -1.0, -1.0])


class _Omnidata(common.Builder):
    """One frame an item: its image, its z-depth (`depth_zbuffer`; without it the distance, `depth_euclidean`) and pose.

    fx = side / (2 tan(fov / 2)), the principal point in the middle of the image; a frame without its image or its
    `point_info` is skipped and counted. `mask_valid`, where it is there, takes out the holes of the scan. The world is
    Blender's (z up). A pose whose Euler angles and quaternion disagree is left out.
    """

    folder = "depth"
    layout = "{rgb,depth_zbuffer,depth_euclidean,mask_valid,point_info}/COMPONENT/BUILDING/point_I_view_J_domain_TASK.*"
    labels = "dense z-depth in steps of 1/512 m (or distance); camera poses in the building"
    test = "tests/builders/test_omnidata.py"
    doubts = (
        "half a pixel of the principal point: the middle of the image is taken, (side - 1) / 2 from the first centre",
        "the name of the masks' folder on disk",
    )

    component = ""

    def frames(self, raw: pathlib.Path, split: str) -> list[common.Item]:
        """All frames with a depth of the split's buildings."""
        task = "depth_zbuffer" if (raw / "depth_zbuffer" / self.component).is_dir() else "depth_euclidean"
        common.need_files([raw / task / self.component, raw / "rgb" / self.component])
        wanted = self._buildings(raw, split)
        items = []
        for building in common.subfolders(raw / task / self.component, "a folder for each building"):
            if building.name not in wanted:
                continue
            images = _frames(raw / "rgb" / self.component / building.name)
            suffix = f"_domain_{task}.png"
            for path in building.iterdir():
                if path.name.endswith(suffix):
                    frame = path.name[: -len(suffix)]
                    data = {"building": building.name, "frame": frame, "task": task, "rgb": images.get(frame, "")}
                    items.append(common.Item(f"{building.name}/{frame}", building.name, data))
        return common.by_key(items)

    def record(self, raw: pathlib.Path, item: common.Item) -> Record:
        """One view with its depth map."""
        building, frame, task = (item.data[name] for name in ("building", "frame", "task"))

        def path(kind: str, name: str) -> pathlib.Path:
            return raw / kind / self.component / building / name

        about = path("point_info", f"{frame}_domain_point_info.json")
        if not item.data["rgb"]:
            raise common.Skip("there is no image of it")
        if not about.exists():
            raise common.Skip("there is no point_info of it")
        image = common.image(path("rgb", item.data["rgb"]), item.key)
        camera, pose = read_point_info(about, image.width, image.height)
        mask = _mask(path("mask_valid", f"{frame}_domain_mask_valid.png"))
        depth = path(task, f"{frame}_domain_{task}.png").read_bytes()
        kind = "z" if task == "depth_zbuffer" else "distance"
        label = depth_png.depth_map(depth, METRES_A_STEP, kind, f"{item.key} {task}", none=(NO_DEPTH,), mask=mask)
        return Record(item.key, (View(image, camera, pose),), depth_maps=(label,), scene=building)

    def _buildings(self, raw: pathlib.Path, split: str) -> set[str]:
        raise NotImplementedError


class Taskonomy(_Omnidata):
    """Renders of Taskonomy's scanned buildings, 512x512: one frame an item, with z-depth and pose.

    Both depths are in steps of 1/512 m, 65535 for none; depth_zbuffer (z) is read, without it depth_euclidean
    (distance). point_info holds the field of view and the camera in Blender's axes (z up, looking along -z); a pose
    whose Euler angles and quaternion disagree is left out. mask_valid, where it is there, takes out the holes of the
    scan. Splits of buildings: Omnidata's train_val_test_fullplus.csv anywhere below the raw folder, or the largest of
    its lists (full, medium, tiny, debug) that is there. A frame without image or point_info is skipped and counted.
    """

    name = "taskonomy"
    title = "Taskonomy (Omnidata)"
    component = "taskonomy"
    splits = ("train", "val", "test")
    held_out = "val"
    licence = "own terms (research only), docs.omnidata.vision"

    def _buildings(self, raw: pathlib.Path, split: str) -> set[str]:
        paths = (path for name in LISTS for path in sorted(raw.glob(f"**/train_val_test_{name}.csv")))
        path = next(paths, None)
        if path is None:
            raise UserError(f"{raw}: no train_val_test_fullplus.csv (or full, medium, tiny, debug) in it or below")
        return {row["id"] for row in _rows(path, "id", split) if row[split].strip() in ("1", "1.0", "True", "true")}


class HM3D(_Omnidata):
    """Habitat-Matterport 3D's houses as Omnidata renders them; files, units and cameras as in Taskonomy (Omnidata).

    Splits are those of the release's metadata.csv (columns scene, split), which is looked for below the raw folder.
    """

    name = "hm3d"
    title = "HM3D (Omnidata)"
    component = "hm3d"
    splits = ("train", "val")
    held_out = "val"
    licence = "Matterport End User License Agreement for Academic Use, docs.omnidata.vision"
    doubts = (*_Omnidata.doubts, "where the release's metadata.csv stands")

    def _buildings(self, raw: pathlib.Path, split: str) -> set[str]:
        path = next(iter(sorted(raw.glob("**/metadata.csv"))), None)
        if path is None:
            raise UserError(f"{raw}: no metadata.csv (columns scene, split) in it or below")
        return {row["scene"] for row in _rows(path, "scene", "split") if row["split"].strip() == split}


def _rows(path: pathlib.Path, *columns: str) -> list[dict[str, str]]:
    """The lines of a table with these columns; UserError names one that is missing."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if missing := [name for name in columns if not rows or rows[0].get(name) is None]:
        raise UserError(f"{path}: it has no column {missing[0]!r}")
    return rows


def _frames(folder: pathlib.Path) -> dict[str, str]:
    """Frame -> name of its image."""
    if not folder.is_dir():
        return {}
    found = (FRAME.fullmatch(path.name) for path in folder.iterdir())
    return {match[1]: match[0] for match in found if match}


def _mask(path: pathlib.Path) -> np.ndarray | None:
    """bool [H, W], or None if there is no such file."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return np.asarray(image.convert("L")) > 127
    except FileNotFoundError:
        return None
    except (OSError, UnidentifiedImageError) as error:
        raise BadRecord(f"{path.name}: cannot decode the mask ({error})") from None


def read_point_info(path: pathlib.Path, width: int, height: int) -> tuple[Camera, np.ndarray | None]:
    """The camera of an image of this size and its pose, from the JSON beside it. BadRecord if they cannot be used."""
    try:
        about = Fields.read(path)
        fov = about.number("field_of_view_rads", above=0.0)
        where = about.numbers("camera_location", 3)
        euler = about.numbers("camera_rotation_final", 3)
        quaternion = about.numbers("camera_rotation_final_quaternion", 4, ())
    except BadRecord:
        raise
    # A frame's file, not one of the user's settings.
    except UserError as error:
        raise BadRecord(str(error)) from None
    focal = width / (2 * math.tan(fov / 2))
    camera = Camera(focal, focal, (width - 1) / 2, (height - 1) / 2, width, height).plausible(path.name)
    rotation = rotation_of_euler(euler)
    if quaternion and np.abs(rotation_of_quaternion(quaternion) - rotation).max() > SAME_ROTATION:
        return camera, None
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation @ BLENDER, where
    return camera, pose


def rotation_of_euler(angles) -> np.ndarray:
    """Blender's "XYZ" (radians): about the fixed x first, then y, then z, [3, 3]."""
    (sx, sy, sz), (cx, cy, cz) = np.sin(angles), np.cos(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def rotation_of_quaternion(values) -> np.ndarray:
    """w, x, y, z (normalised here) -> [3, 3]; BadRecord if it is zero."""
    length = float(np.linalg.norm(values))
    if not length > 0:
        raise BadRecord("camera_rotation_final_quaternion is zero")
    w, x, y, z = np.asarray(values, np.float64) / length
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
