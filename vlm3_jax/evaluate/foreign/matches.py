"""Matches as answers: for each pair a file that says where the queries of the first image lie in the second."""

import dataclasses
import math
import pathlib

import numpy as np

from vlm3_jax.errors import BadRecord
from vlm3_jax.evaluate.foreign import files


@dataclasses.dataclass(frozen=True)
class MatchFiles:
    """RECORD.npz in a folder, with one of these arrays:

    points1 [N, 2]: pixels of the second stored image, one for each query in the manifest's order, (0, 0) being the
    centre of the first pixel; flow [H, W, 2] or [2, H, W]: how far each pixel moves, both images resized to W x H (UFM,
    RAFT); warp [H, W, 2] or [H, W, 4] (its last two): places in the second image from -1 to 1, edge to edge (RoMa).
    NaN or infinite: no answer.
    """

    folder: pathlib.Path

    def answers(self, row, examples) -> list[tuple[float, float] | None] | None:
        """The coordinates that the file gives for each query; None if the pair has no file."""
        path = files.find(self.folder, row.id, (".npz",))
        if path is None:
            return None
        arrays = files.read_npz(path)
        first, second = (np.array([c.width, c.height], np.float64) for c in row.cameras[:2])
        query = np.asarray(row.record.matches.points0_px, np.float64)
        points = _points(arrays, query, first, second, path)
        ranges = np.array([example.target["coord_range"] for example in examples], np.float64)[:, None]
        found = points * ranges / second
        return [tuple(xy) if all(map(math.isfinite, xy)) else None for xy in found.tolist()]


def _points(arrays, query, first, second, path) -> np.ndarray:
    """Pixels of the second image, float64 [N, 2], NaN where there is no answer."""
    if "points1" in arrays:
        points = np.asarray(arrays["points1"], np.float64)
        if points.shape != query.shape:
            raise BadRecord(f"{path}: points1 has shape {list(points.shape)}, the queries need {list(query.shape)}")
        return points
    if "flow" in arrays:
        flow = arrays["flow"]
        flow = np.moveaxis(flow, 0, -1) if flow.ndim == 3 and flow.shape[0] == 2 != flow.shape[2] else flow
        size = _check(flow, 2, "flow", path)
        at = (query + 0.5) * size / first - 0.5
        return (at + _sampled(flow, at) + 0.5) * second / size - 0.5
    if "warp" in arrays:
        warp = arrays["warp"]
        size = _check(warp, 4 if warp.ndim == 3 and warp.shape[2] == 4 else 2, "warp", path)
        return (_sampled(warp[..., -2:], (query + 0.5) * size / first - 0.5) + 1) / 2 * second - 0.5
    raise BadRecord(f"{path}: expected an array points1, flow or warp, it has {', '.join(arrays) or 'none'}")


def _check(values: np.ndarray, channels: int, name: str, path) -> np.ndarray:
    """The size [W, H] of a field."""
    if values.ndim != 3 or values.shape[2] != channels or not values.size:
        raise BadRecord(f"{path}: {name} has shape {list(values.shape)}, expected [height, width, {channels}]")
    return np.array(values.shape[1::-1], np.float64)


def _sampled(field: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The field [H, W, 2] between its pixels, at places [N, 2]; those beyond its outer pixels have these' values.

    Pixels without a value have no say in what lies between them and others; NaN where the nearest one has none.
    """
    limit = np.array(field.shape[1::-1]) - 1
    at = np.clip(at, 0, limit)
    low = np.minimum(np.floor(at).astype(np.int64), np.maximum(limit - 1, 0))
    high = np.minimum(low + 1, limit)
    (u, v), (x0, y0), (x1, y1) = (at - low).T[..., None], low.T, high.T
    found, weights = np.zeros(at.shape), np.zeros((len(at), 1))
    for x, y, weight in ((x0, y0, (1 - u) * (1 - v)), (x1, y0, u * (1 - v)), (x0, y1, (1 - u) * v), (x1, y1, u * v)):
        values = field[y, x].astype(np.float64)
        weight = weight * np.isfinite(values).all(1, keepdims=True)
        found += weight * np.where(weight > 0, values, 0.0)
        weights += weight
    nearest = field[tuple(np.where(at - low > 0.5, high, low).T[::-1])]
    known = np.isfinite(nearest).all(1, keepdims=True)
    return np.where(known, found / np.where(known, weights, 1.0), np.nan)
