"""Objects from a mask of them and the depth of their view: boxes, and surface points in a level frame."""

import numpy as np

from vlm3_jax.camera import Camera
from vlm3_jax.records.dense import DepthMap, Mask
from vlm3_jax.records.labels import Objects

# Surface points drawn of an object, and the fewest pixels of the mask that show one.
POINTS = 96
LEAST_PIXELS = 12


def mask_objects(mask: Mask, depth: DepthMap, metres: np.ndarray, camera: Camera, rng: np.random.Generator) -> Objects:
    """The objects of a mask with enough pixels and depth; `metres` [H, W]: of the view's depth map, NaN for none.

    A box goes from the first to the last pixel that shows the object. Its surface points are those that are seen.
    """
    ids = mask.load()
    boxes, names, clouds = [], [], []
    level = levelled(mask.down)
    for number, (rows, columns) in _extents(ids).items():
        here = np.argwhere(ids[rows, columns] == number)[:, ::-1] + [columns.start, rows.start]
        if number > len(mask.names) or len(here) < LEAST_PIXELS:
            continue
        points = mask.image_points(here, camera)
        chosen = points[rng.permutation(len(points))[: 4 * POINTS]]
        cells = depth.cells(chosen, camera)
        values = metres[cells[:, 1], cells[:, 0]].astype(np.float64)
        z = values if depth.kind == "z" else camera.z_from_distance(chosen, values)
        cloud = (camera.rays(chosen) * z[:, None])[z > 0][:POINTS]
        if len(cloud):
            boxes.append([*points.min(0), *points.max(0)])
            names.append(mask.names[number - 1])
            clouds.append((cloud @ level.T).astype(np.float32))
    return Objects(np.array(boxes, np.int32).reshape(-1, 4), tuple(names), tuple(clouds), mask.view)


def levelled(down) -> np.ndarray:
    """level_R_cam [3, 3] of a camera in whose frame gravity points to `down`: y is down, z looks ahead, level."""
    y = np.asarray(down, np.float64) / np.linalg.norm(down)
    # Looking straight up or down there is no ahead: the top of the image is.
    ahead = np.array([0.0, 0, 1]) if abs(y[2]) < 0.999 else np.array([0.0, -np.sign(y[2]), 0])
    z = ahead - (ahead @ y) * y
    z /= np.linalg.norm(z)
    return np.stack([np.cross(y, z), y, z])


def _extents(ids: np.ndarray) -> dict[int, tuple[slice, slice]]:
    """Rows and columns that hold each number above 0."""
    numbers = np.unique(ids)
    found = {}
    for number in numbers[numbers > 0].tolist():
        there = ids == number
        rows, columns = np.flatnonzero(there.any(1)), np.flatnonzero(there.any(0))
        found[number] = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return found
