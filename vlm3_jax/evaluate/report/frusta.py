"""Two views and where the second camera stands: true and predicted, as frusta over a floor."""

import numpy as np

from vlm3_jax.evaluate.report.drawing import BAD, DPI, GRID, INK, MUTED, TRUE, Figure, encode
from vlm3_jax.evaluate.report.pictures import photo

# How the scene is looked at, from behind camera 1: turned to the right and down by so many degrees.
_AZIMUTH, _ELEVATION = 28.0, 30.0
_LENGTH = 0.5
_HALF_FIELD = np.tan(np.radians(26))


def pose_views(
    first: np.ndarray,
    second: np.ndarray,
    true: tuple[np.ndarray, np.ndarray],
    predicted: tuple[np.ndarray | None, np.ndarray | None],
) -> bytes:
    """Both images, and the cameras: the first grey, the second blue as it is and red as answered, one unit away.

    true, predicted: rotation [3, 3] of cam1_T_cam2 and the unit vector [3] of its translation. What was not answered
    is not drawn; a camera without direction of motion is drawn where the first one is.
    """
    height = 2.5 * max(p.shape[0] / p.shape[1] for p in (first, second))
    figure = Figure(figsize=(7.4, max(height, 2.5) + 0.3), dpi=DPI, layout="constrained")
    left, right, scene = figure.subplots(1, 3, width_ratios=(1, 1, 1.05))
    photo(left, first, "first")
    photo(right, second, "second")
    _scene(scene, first.shape[1] / first.shape[0], second.shape[1] / second.shape[0], true, predicted)
    return encode(figure, photo=True)


def _scene(axes, aspect1: float, aspect2: float, true, predicted) -> None:
    axes.set_title("cameras, from behind the first", fontsize=9, color=INK, loc="left", pad=3)
    axes.set(aspect="equal", xticks=[], yticks=[])
    axes.spines[:].set_color(GRID)
    cameras = [(np.eye(3), np.zeros(3), aspect1, MUTED, "first")]
    for (R, t), colour, name in ((true, TRUE, "second, true"), (predicted, BAD, "second, predicted")):
        cameras.append((R, np.zeros(3) if t is None else np.asarray(t, float), aspect2, colour, name))
    floor = max(0.55, *(t[1] + 0.3 for _, t, *_ in cameras))
    _floor(axes, floor, np.array([t[[0, 2]] for _, t, *_ in cameras]))
    for R, t, aspect, colour, name in cameras:
        axes.plot([], [], color=colour, label=name)
        if R is None and not t.any():
            continue
        _line(axes, [t, (t[0], floor, t[2])], color=colour, lw=0.8, ls=":", zorder=1)
        axes.scatter(*_project(np.array([t[0], floor, t[2]])), color=colour, s=7, zorder=1)
        if t.any():
            _line(axes, [np.zeros(3), t], color=colour, lw=1, ls=(0, (4, 2)), zorder=2)
        if R is not None:
            _frustum(axes, R, t, aspect, colour)
    axes.legend(
        frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=3, handlelength=1, columnspacing=1
    )
    axes.margins(0.04)


def _floor(axes, height: float, feet: np.ndarray) -> None:
    """Squares of half a unit below where the cameras stand."""
    low, high = np.floor(2 * (feet.min(0) - 0.4)) / 2, np.ceil(2 * (feet.max(0) + 0.6)) / 2
    for x in np.arange(low[0], high[0] + 0.1, 0.5):
        _line(axes, [(x, height, low[1]), (x, height, high[1])], color=GRID, lw=0.7, zorder=0)
    for z in np.arange(low[1], high[1] + 0.1, 0.5):
        _line(axes, [(low[0], height, z), (high[0], height, z)], color=GRID, lw=0.7, zorder=0)


def _frustum(axes, R: np.ndarray, t: np.ndarray, aspect: float, colour: str) -> None:
    """A camera as a pyramid; the small triangle stands on the upper edge of its image."""
    wide, high = _HALF_FIELD * min(aspect, 1.4), _HALF_FIELD * min(aspect, 1.4) / aspect
    corners = np.array([(-wide, -high, 1), (wide, -high, 1), (wide, high, 1), (-wide, high, 1)])
    up = np.array([(-wide / 2, -1.1 * high, 1), (0, -1.7 * high, 1), (wide / 2, -1.1 * high, 1)])
    corners, up = (t + _LENGTH * points @ np.asarray(R, float).T for points in (corners, up))
    for corner in corners:
        _line(axes, [t, corner], color=colour, lw=0.9, zorder=3)
    axes.fill(*_project(corners).T, fc=colour, ec=colour, alpha=0.25, lw=1, zorder=3)
    _line(axes, [*corners, corners[0]], color=colour, lw=1.1, zorder=3)
    axes.fill(*_project(up).T, fc=colour, ec="none", zorder=3)


def _line(axes, points, **style) -> None:
    axes.plot(*_project(np.array(points, float)).T, **style)


def _project(points: np.ndarray) -> np.ndarray:
    """[..., 3] of camera 1's frame (x right, y down, z forward) on the page [..., 2], without perspective."""
    a, e = np.radians([_AZIMUTH, _ELEVATION])
    look = np.array([np.sin(a) * np.cos(e), np.sin(e), np.cos(a) * np.cos(e)])
    right = np.array([np.cos(a), 0, -np.sin(a)])
    return points @ np.stack([right, np.cross(right, look)], -1)
