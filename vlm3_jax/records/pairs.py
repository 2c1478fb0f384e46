"""Two posed views with depth: where a pixel of one lies in the other, whether it is seen there, how much they share.

The rule of visibility is that of UFM's correspondence evaluation. Covisibility is counted as in MapAnything's WAI
matrices, on a grid half as fine as theirs (224 pixels on the longer side), which takes a quarter of the time.
"""

import dataclasses

import numpy as np

from vlm3_jax.camera import Camera
from vlm3_jax.errors import BadRecord
from vlm3_jax.records.dense import DepthMap
from vlm3_jax.records.labels import DepthPoints, Matches
from vlm3_jax.records.mask_objects import mask_objects
from vlm3_jax.records.record import Record

# Where the scale is not metric, metres mean nothing: the same part of the distance as the rule allows at 4.5 m.
RELATIVE = 0.04
GRID = 112
# Pixels tried for each match that is wanted: few pairs overlap by less than their eighth.
TRIES = 8


def occlusion_tolerance_m(distance_m):
    """a + r d - ln(0.5) T with a = T = 0.1 m and r = 0.005: the rule of UFM's correspondence evaluation."""
    return 0.1 + 0.005 * distance_m - np.log(0.5) * 0.1


def _share_of(distance_m):
    return RELATIVE * distance_m


def rotate(points, matrix) -> np.ndarray:
    """matrix [3, 3] times each of the points [N, 3]; not through BLAS, whose rounding may depend on its threads."""
    return np.einsum("ni,ji->nj", points, matrix)


def project_pixels(camera: Camera, points_px, z_m, world_T_from, world_T_to, other: Camera | None = None):
    """Pixels [N, 2] with z-depth [N] of one view -> float64 pixels [N, 2] and distance (m) [N] in another view.

    `camera`: of the first view, and of the second too unless `other` is given. The distance is negative behind the
    second camera.
    """
    other = other or camera
    local = rotate(camera.rays(points_px) * np.asarray(z_m, np.float64)[:, None], world_T_from[:3, :3])
    local = rotate(local + world_T_from[:3, 3] - world_T_to[:3, 3], world_T_to[:3, :3].T)
    front = local[:, 2] > 1e-6
    local[~front] = (0, 0, -1)
    pixels = local[:, :2] / local[:, 2:] * (other.fx, other.fy) + (other.cx, other.cy)
    return pixels, np.where(front, np.linalg.norm(local, axis=-1), -1.0)


@dataclasses.dataclass(frozen=True, eq=False)
class DepthView:
    """A posed view with its depth: `values` [H, W] of a map of the whole image, as stored (NaN or 0: none)."""

    camera: Camera
    world_T_cam: np.ndarray
    map: DepthMap
    values: np.ndarray

    def depth_at(self, points_px) -> np.ndarray:
        """The map's value at the nearest of its pixels, [N]."""
        cells = self.map.cells(points_px, self.camera)
        return self.values[cells[:, 1], cells[:, 0]]

    def z_at(self, points_px) -> np.ndarray:
        """The z of the pixels [N, 2], which lie in the image."""
        depth = self.depth_at(points_px).astype(np.float64)
        return depth if self.map.kind == "z" else self.camera.z_from_distance(points_px, depth)

    def sees(self, pixels, distance_m, metric: bool = True, tolerance=None) -> np.ndarray:
        """bool [N]: inside the view and not behind (nor before) what its depth shows there.

        `tolerance`: how far off that may be, as a function of the distance; None: the rule for the scale.
        """
        nearest, inside = _inside(self.camera, pixels, distance_m)
        stored = self.camera.distance_from_z(nearest, self.z_at(nearest))
        allowed = tolerance or (occlusion_tolerance_m if metric else _share_of)
        # NaN compares false.
        return inside & (stored > 0) & (np.abs(distance_m - stored) < allowed(distance_m))

    def labelled(self) -> np.ndarray:
        """The map pixels with depth, as indices into the flat map."""
        return np.flatnonzero(self.values.ravel() > 0)

    def pixels(self, flat: np.ndarray) -> np.ndarray:
        """Whole image pixels [N, 2] at flat indices of the map."""
        cells = np.stack([flat % self.map.width, flat // self.map.width], -1)
        return self.map.image_points(cells, self.camera)


def _inside(camera: Camera, pixels, distance_m) -> tuple[np.ndarray, np.ndarray]:
    """The nearest whole pixels [N, 2] ((0, 0) for those outside), and which are inside."""
    x, y = pixels[:, 0], pixels[:, 1]
    inside = (distance_m > 0) & (x >= 0) & (x <= camera.width - 1) & (y >= 0) & (y <= camera.height - 1)
    return np.rint(np.where(inside[:, None], pixels, 0)).astype(np.int64), inside


def moved(points_px, source: DepthView, target: DepthView):
    """Whole pixels [N, 2] of one view -> float64 pixels [N, 2] and distance [N] in the other, by the first's depth."""
    poses = source.world_T_cam, target.world_T_cam
    return project_pixels(source.camera, points_px, source.z_at(points_px), *poses, target.camera)


def covisibility(first: DepthView, second: DepthView, metric: bool = True, step: int = 0) -> float:
    """(C01 + C10) / 2, Cij the share of view i's pixels with depth that view j sees too.

    On a grid of every `step`-th map pixel (0: so that there are about `GRID` on the longer side). A view sees all of
    its own pixels, so the self value that others divide by is 1.
    """
    shares = []
    for source, target in ((first, second), (second, first)):
        every = step or max(1, round(max(source.values.shape) / GRID))
        rows, columns = np.nonzero(source.values[::every, ::every] > 0)
        points = source.map.image_points(np.stack([columns, rows], -1) * every, source.camera)
        shares.append(target.sees(*moved(points, source, target), metric).mean() if len(points) else 0.0)
    return float(np.mean(shares))


def matches(
    first: DepthView, second: DepthView, rng: np.random.Generator, count: int, metric: bool = True, tolerance=None
) -> Matches:
    """Up to `count` random pixels of view 0 whose surface point view 1 sees (`DepthView.sees`), and where."""
    flat = first.labelled()
    points = first.pixels(rng.choice(flat, min(TRIES * count, len(flat)), replace=False, shuffle=True))
    pixels, distance = moved(points, first, second)
    kept = np.flatnonzero(second.sees(pixels, distance, metric, tolerance))[:count]
    return Matches(points[kept].astype(np.int32), pixels[kept].astype(np.float32))


def depth_points(depth: DepthMap, values, camera: Camera, rng: np.random.Generator, count: int) -> DepthPoints:
    """Up to `count` random pixels of a view with the depth that its map (`values` [H, W], metres) has there."""
    flat = np.flatnonzero(values.ravel() > 0)
    flat = rng.choice(flat, min(count, len(flat)), replace=False)
    cells = np.stack([flat % depth.width, flat // depth.width], -1)
    # Several pixels of a map that is finer than the image are one of the image.
    points, first = np.unique(depth.image_points(cells, camera), axis=0, return_index=True)
    order = rng.permutation(len(points))
    return DepthPoints(points[order].astype(np.int32), values.ravel()[flat[first[order]]], depth.kind, depth.view)


def draw_labels(record: Record, rng: np.random.Generator, count: int) -> Record:
    """The stored record with labels drawn from its depth maps and masks, which it has no more.

    Up to `count` points of each map where the record is metric; of two views with maps and poses `count` matches and
    their covisibility, unless these are stored; objects with boxes and surface points of each mask of objects whose
    view has depth. Nothing is drawn where a mask says so. Equal generators draw equal labels. BadRecord if a map or
    mask cannot be read.
    """
    if not (record.depth_maps or record.masks):
        return record
    values = [_masked(depth, record) for depth in record.depth_maps]
    maps = {depth.view: (depth, metres) for depth, metres in zip(record.depth_maps, values, strict=True)}
    changes: dict = {"depth_maps": (), "masks": ()}
    if record.metric:
        drawn = (depth_points(*maps[view], record.views[view].camera, rng, count) for view in sorted(maps))
        changes["depth"] = (*record.depth, *(label for label in drawn if len(label.points_px)))
    posed = _posed(record, maps)
    if posed and record.matches is None:
        changes["matches"] = matches(*posed, rng, count, record.metric)
    if posed and record.covisibility is None:
        changes["covisibility"] = covisibility(*posed, record.metric)
    masks = [mask for mask in record.masks if mask.use == "objects" and mask.view in maps]
    found = (mask_objects(mask, *maps[mask.view], record.views[mask.view].camera, rng) for mask in masks)
    changes["objects"] = (*record.objects, *(label for label in found if len(label.names)))
    return dataclasses.replace(record, **changes)


def posed_maps(record: Record) -> list[DepthView]:
    """Both views of a stored record with their poses and depth. BadRecord unless it has both."""
    found = _posed(record, {depth.view: (depth, _masked(depth, record)) for depth in record.depth_maps})
    if not found:
        raise BadRecord("it has no two views with poses and depth maps")
    return found


def _masked(depth: DepthMap, record: Record) -> np.ndarray:
    """The map's metres, NaN where a mask of its view allows no labels."""
    metres = depth.load()
    for mask in record.masks:
        if mask.view == depth.view and mask.use != "objects":
            rows, columns = (_nearest(theirs, ours) for theirs, ours in zip(_shape(mask), metres.shape))
            there = mask.load()[rows[:, None], columns] > 0
            metres[there != (mask.use == "keep")] = np.nan
    return metres


def _shape(grid) -> tuple[int, int]:
    return grid.height, grid.width


def _nearest(theirs: int, ours: int) -> np.ndarray:
    """Of `ours` pixels side by side, in which of `theirs` the centre of each lies."""
    return ((np.arange(ours) + 0.5) * theirs / ours).astype(np.int64)


def _posed(record: Record, maps) -> list[DepthView]:
    """Both views with pose and depth; [] unless there are both."""
    views = record.views[:2]
    if len(views) < 2 or not all(n in maps and view.world_T_cam is not None for n, view in enumerate(views)):
        return []
    return [DepthView(view.camera, np.asarray(view.world_T_cam, np.float64), *maps[n]) for n, view in enumerate(views)]
