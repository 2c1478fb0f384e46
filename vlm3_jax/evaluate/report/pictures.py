"""Photographs with what was asked and answered drawn into them, as JPEG.

Points and boxes come as shares of the image's width and height (0 to 1), so that any display size will do.
"""

import numpy as np

from vlm3_jax.evaluate.report.drawing import BAD, DPI, GOOD, INK, TRUE, Figure, cycle, encode, matplotlib, plain_log


def depth_points(pixels: np.ndarray, points: np.ndarray, true_m: np.ndarray, predicted_m: np.ndarray) -> bytes:
    """The image twice, its points coloured by true and by predicted depth on one logarithmic scale.

    points [N, 2]; true_m, predicted_m [N] in metres; a prediction that is NaN or <= 0 is drawn as a red cross.
    """
    height, width = pixels.shape[:2]
    figure = Figure(figsize=(7.4, 3.45 * height / width + 0.3), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, 2)
    readable = predicted_m > 0  # also False for NaN
    seen = np.concatenate([true_m, predicted_m[readable]])
    # Outliers must not squeeze the colours of all others.
    low, high = max(np.quantile(seen, 0.02), 1e-2), np.quantile(seen, 0.98)
    norm = matplotlib.colors.LogNorm(low, max(high, 1.05 * low), clip=True)
    for axes, name, depth in zip(panels, ("true", "predicted"), (true_m, predicted_m)):
        photo(axes, pixels, f"{name} depth")
        xy = points * [width, height] - 0.5
        shown = depth > 0
        dots = axes.scatter(*xy[shown].T, c=depth[shown], norm=norm, cmap="viridis_r", s=30, ec="white", lw=0.8)
        axes.scatter(*xy[~shown].T, c=BAD, marker="x", s=28)
    bar = figure.colorbar(dots, ax=panels, shrink=0.9, pad=0.015)
    plain_log(bar.ax.yaxis, norm.vmin, norm.vmax)
    bar.set_label("m", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return encode(figure, photo=True)


def match_lines(
    first: np.ndarray,
    second: np.ndarray,
    query: np.ndarray,
    true: np.ndarray,
    predicted: np.ndarray,
    limit: float = 0.05,
) -> bytes:
    """Two images; lines from query to prediction, green to red by error, and a short blue line on to the true point.

    query, true, predicted [N, 2]; a query whose prediction is NaN is crossed out, predictions outside the image are put
    on its border. Red from `limit` (share of the image's size) on.
    """
    predicted = np.clip(predicted, 0, 1)
    figure = Figure(figsize=(7.4, 3.7 * max(p.shape[0] / p.shape[1] for p in (first, second)) + 0.3), dpi=DPI)
    figure.subplots_adjust(0.005, 0.01, 0.995, 0.92, wspace=0.02)
    left, right = figure.subplots(1, 2)
    photo(left, first, "first image: queries")
    photo(right, second, "second image: predicted (dot), true (ring)")
    q, t, p = (
        xy * [image.shape[1], image.shape[0]] - 0.5
        for xy, image in ((query, first), (true, second), (predicted, second))
    )
    error = np.clip(np.linalg.norm(predicted - true, axis=1) / limit, 0, 1)
    scale = matplotlib.colors.LinearSegmentedColormap.from_list("error", [GOOD, "#e0a100", BAD])
    for k in np.flatnonzero(np.isfinite(error)):
        colour = scale(error[k])
        figure.add_artist(
            matplotlib.patches.ConnectionPatch(
                q[k], p[k], "data", "data", axesA=left, axesB=right, color=colour, lw=1.1, alpha=0.85
            )
        )
        right.plot(*np.stack([p[k], t[k]]).T, color=TRUE, lw=1)
        right.scatter(*p[k], color=colour, s=20, ec="white", lw=0.6, zorder=4)
    left.scatter(*q.T, c="white", s=22, ec=INK, lw=0.9, zorder=4)
    left.scatter(*q[~np.isfinite(error)].T, c=BAD, marker="x", s=28, zorder=5)
    right.scatter(*t.T, fc="none", s=34, ec=TRUE, lw=1.3, zorder=3)
    return encode(figure, photo=True)


def boxes(pixels: np.ndarray, regions: np.ndarray) -> bytes:
    """The image with numbered regions [M, 4] (x1, y1, x2, y2)."""
    height, width = pixels.shape[:2]
    figure = Figure(figsize=(4.2, 4.2 * height / width), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    photo(axes, pixels, "")
    for k, (colour, box) in enumerate(zip(cycle(regions), regions)):
        x1, y1, x2, y2 = box * [width, height, width, height] - 0.5
        axes.add_patch(matplotlib.patches.Rectangle((x1, y1), x2 - x1, y2 - y1, fc="none", ec=colour, lw=2))
        label = dict(fc=colour, ec="none", pad=1.5)
        axes.text(x1, y1, str(k + 1), color="white", fontsize=8, va="top", bbox=label, clip_on=True)
    return encode(figure, photo=True)


def photo(axes, pixels: np.ndarray, title: str) -> None:
    """The image, without a frame."""
    axes.imshow(pixels, interpolation="nearest" if max(pixels.shape) < 256 else "antialiased")
    axes.set_title(title, fontsize=9, color=INK, loc="left", pad=3)
    axes.set_axis_off()
    axes.set(xlim=(-0.5, pixels.shape[1] - 0.5), ylim=(pixels.shape[0] - 0.5, -0.5))
