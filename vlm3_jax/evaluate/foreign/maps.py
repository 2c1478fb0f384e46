"""Depth maps as answers: each record's map looked up at the pixels that the manifest asks about."""

import dataclasses
import math
import pathlib

import numpy as np

from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.evaluate.foreign import files
from vlm3_jax.records import DepthMap, map_files
from vlm3_jax.records.dense import KINDS

SUFFIXES = (".npy", ".npz", ".png", ".exr")
# Networks round sides to whole patches; a larger difference of the sides' ratio is another part of the image.
RATIO = 1.03


@dataclasses.dataclass(frozen=True)
class DepthMaps:
    """RECORD.npy, .npz (array depth), .png (16 bits) or .exr in a folder; each covers its whole image, at any size.

    `kind`: "z" or "distance", which the files do not tell; `scale`: metres of a unit, which whole numbers do not tell.
    Labels of the other kind are compared with what the record's camera makes of the answer. `stretched`: records whose
    map has another ratio of its sides than the image, over which it is taken to be stretched.
    """

    folder: pathlib.Path
    kind: str
    scale: float | None = None
    stretched: set[str] = dataclasses.field(default_factory=set)

    def __post_init__(self):
        if self.kind not in KINDS:
            raise UserError(f"--kind: say what the maps of {self.folder} hold: z or distance (to the camera centre)")
        if self.scale is not None and not 0 < self.scale < math.inf:
            raise UserError(f"--scale={self.scale}: metres of a unit of the maps, above 0")

    def answers(self, row, examples) -> list[float | None] | None:
        """The depth at each of the row's points, None where the map has none; None if the record has no map."""
        path = files.find(self.folder, row.id, SUFFIXES)
        if path is None:
            return None
        (label,), camera = row.record.depth, row.record.views[label_view(row)].camera
        values = self._values(path)
        self._check_sides(row.id, path, values.shape[1] / values.shape[0], camera)
        depth_map = DepthMap(values.shape[1], values.shape[0], self._scale(path, values), self.kind, values=values)
        metres = depth_map.load()
        cells = depth_map.cells(label.points_px, camera)
        depth = metres[cells[:, 1], cells[:, 0]].astype(np.float64)
        if self.kind != label.kind:
            change = camera.distance_from_z if label.kind == "distance" else camera.z_from_distance
            depth = change(label.points_px, depth)
        return [None if math.isnan(value) else value for value in depth.tolist()]

    def told(self) -> dict[str, int]:
        """What of the answers is beside their metrics."""
        return {"stretched_maps": len(self.stretched)} if self.stretched else {}

    def _check_sides(self, id: str, path: pathlib.Path, ratio: float, camera) -> None:
        own = camera.width / camera.height
        if _differ(ratio, own) and not _differ(ratio, 1 / own):
            raise UserError(
                f"{path}: it lies on its side: the image is {camera.width} x {camera.height} pixels; turn it as the "
                "image is"
            )
        if _differ(ratio, own):
            self.stretched.add(id)

    def _scale(self, path: pathlib.Path, values: np.ndarray) -> float:
        if values.dtype.kind == "b":
            raise BadRecord(f"{path}: holds truth values, not depth")
        if self.scale is None and values.dtype.kind != "f":
            raise UserError(f"{path}: --scale: say how many metres a unit of it is, such as 0.001")
        return self.scale or 1.0

    def _values(self, path: pathlib.Path) -> np.ndarray:
        if path.suffix == ".npz":
            values = files.one_of(files.read_npz(path), ("depth", "pred", "arr_0"), path)
        else:
            values = map_files.decode(map_files.read(path, str(path)), path.suffix, str(path))
        values = np.squeeze(values)
        if values.ndim != 2 or not values.size:
            raise BadRecord(f"{path}: expected a map [height, width], got shape {list(values.shape)}")
        return values


def _differ(one: float, other: float) -> bool:
    return not 1 / RATIO < one / other < RATIO


def label_view(row) -> int:
    """Which view the row's points are in."""
    return row.record.depth[0].view
