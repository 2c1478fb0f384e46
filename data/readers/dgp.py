"""DGP, the layout of TRI's data sets (DDAD, Parallel Domain): scenes as JSON files that refer to each other by keys.

    INDEX.json: scene_splits {"0": {filenames: [SCENE/scene_SHA.json]}} (0 train, 1 val, 2 test)
    SCENE/scene_SHA.json: samples [{calibration_key, datum_keys}], data [{key, id {name}, datum {image | point_cloud}}]
    SCENE/calibration/KEY.json: names, intrinsics, extrinsics (vehicle_T_sensor), in the same order

A datum's pose is world_T_sensor at its own time; quaternions are qw qx qy qz; cameras x right, y down, z forward.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator

import numpy as np

from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.pose import from_quaternion

SPLITS = {"train": "0", "val": "1", "test": "2"}


@dataclasses.dataclass(frozen=True)
class Datum:
    """What one sensor measured: its file below the scene's folder, and world_T_sensor as qw qx qy qz x y z.

    Of images: `size` (width, height), `intrinsics` (fx, fy, cx, cy) and, by number, the files of `annotations`.
    """

    name: str
    file: str
    pose: tuple[float, ...]
    size: tuple[int, int] | None = None
    intrinsics: tuple[float, ...] | None = None
    annotations: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def world_T_sensor(self) -> np.ndarray:
        """The pose as a matrix [4, 4]."""
        return from_quaternion(self.pose[:4], self.pose[4:])


def scene_files(root: pathlib.Path, split: str, index: str = "") -> list[str]:
    """The scene files of a split as the index names them; `index`: its name, else the one index that there is."""
    found = [root / index] if index and (root / index).exists() else sorted(root.glob("*.json"))
    indices = [(path, tree) for path in found if "scene_splits" in (tree := _read(path))]
    if len(indices) != 1:
        raise UserError(f"{root}: expected one index of scenes (a .json with scene_splits), found {len(indices)}")
    path, tree = indices[0]
    try:
        return sorted(tree["scene_splits"][SPLITS[split]]["filenames"])
    except (KeyError, TypeError):
        raise UserError(f"{path}: has no scenes of the split {split!r} ({SPLITS[split]!r})") from None


def samples(path: pathlib.Path) -> Iterator[tuple[int, dict[str, Datum]]]:
    """The samples of a scene file in order: their number and their data by sensor name."""
    tree, calibrations = _read(path), {}
    try:
        data = {one["key"]: one for one in tree["data"]}
        for number, sample in enumerate(tree["samples"]):
            key = sample["calibration_key"]
            if key not in calibrations:
                calibrations[key] = _intrinsics(_read(path.parent / "calibration" / f"{key}.json"))
            found = [_datum(data[one], calibrations[key]) for one in sample["datum_keys"]]
            yield number, {datum.name: datum for datum in found if datum}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not as DGP writes scenes ({type(error).__name__}: {error})") from None


def points(path: pathlib.Path, name: str) -> np.ndarray:
    """x y z [N, 3] of a point cloud, an npz file with one array of 3 or more columns; `name` is what errors call it."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            values = arrays[arrays.files[0]] if arrays.files else np.zeros(0)
    except FileNotFoundError:
        raise BadRecord(f"{name}: no such file") from None
    # Damaged zip files make numpy raise all kinds of errors.
    except Exception as error:
        raise BadRecord(f"{name}: not a readable npz file ({error})") from None
    if values.dtype.names:
        values = np.stack([values[axis] for axis in ("X", "Y", "Z")], -1)
    if values.ndim != 2 or values.shape[1] < 3 or values.dtype.kind != "f":
        raise BadRecord(f"{name}: expected points [N, 3 or more], got {values.dtype} {list(values.shape)}")
    return values[:, :3]


def _intrinsics(tree: dict) -> dict[str, tuple[float, ...]]:
    rows = zip(tree["names"], tree["intrinsics"], strict=True)
    return {name: (row["fx"], row["fy"], row["cx"], row["cy"]) for name, row in rows}


def _datum(row: dict, intrinsics: dict) -> Datum | None:
    name, datum = row["id"]["name"], row["datum"]
    value = datum.get("image") or datum.get("point_cloud")
    if value is None:
        return None
    turn, shift = value["pose"]["rotation"], value["pose"]["translation"]
    pose = (turn["qw"], turn["qx"], turn["qy"], turn["qz"], shift["x"], shift["y"], shift["z"])
    if "image" not in datum:
        return Datum(name, value["filename"], pose)
    size = (value["width"], value["height"])
    return Datum(name, value["filename"], pose, size, intrinsics.get(name), value.get("annotations", {}))


def _read(path: pathlib.Path) -> dict:
    try:
        tree = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({str(error).splitlines()[0]})") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected a JSON object")
    return tree
