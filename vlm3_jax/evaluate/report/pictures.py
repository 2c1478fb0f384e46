"""Drawings of the report as encoded pictures: charts as PNG, photographs as JPEG.

Points and boxes come as shares of the image's width and height (0 to 1), so that any display size will do. Figures are
made object by object (no pyplot): nothing is kept between calls and no display is needed.
"""

import io
from collections.abc import Mapping, Sequence

import numpy as np

from vlm3_jax.errors import UserError

try:
    import matplotlib.colors
    import matplotlib.patches
    import matplotlib.ticker
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
except ImportError:
    raise UserError('the report needs matplotlib: pip install "vlm3-jax[demo]"') from None

INK, MUTED, GRID = "#1f2933", "#7b8794", "#e4e7eb"
TRUE, GOOD, BAD = "#2458a6", "#1b8a5a", "#c2382b"
COLOURS = ("#2458a6", "#d9822b", "#1b8a5a", "#8e4ec6", "#c2382b", "#0f8b8d")
_DPI = 110


def loss_curve(
    steps: Sequence[int],
    losses: Sequence[float],
    held_out: Mapping[str, tuple[Sequence[int], Sequence[float]]],
    entropies: Mapping[str, float],
) -> bytes:
    """Train loss, held-out loss by source and, dashed, what a model that ignores the image can reach (nats a token)."""
    figure, axes = _axes(8.2, 3.6)
    top = []
    if len(losses):
        axes.plot(steps, losses, color="#cbd2d9", lw=0.8, label="training, each step")
        axes.plot(steps, _smooth(np.asarray(losses, float)), color=INK, lw=1.4, label="training, smoothed")
        # The fall from random weights is not what one looks for; it may leave the picture.
        top.append(np.quantile(losses[len(losses) // 20 :], 0.995))
    sources = sorted(held_out.keys() | entropies.keys())
    for colour, source in zip(_cycle(sources), sources):
        if source in held_out:
            axes.plot(*held_out[source], color=colour, lw=1.6, marker="o", ms=3.5, label=f"held out: {source}")
            values = held_out[source][1]
            top.append(max(values[1:] or values))
        if source in entropies:
            axes.axhline(entropies[source], color=colour, lw=1, ls=(0, (5, 3)), label=f"answers alone: {source}")
            top.append(entropies[source])
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    if top:
        axes.set_ylim(0, 1.08 * max(top))
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    return _encode(figure)


def intervals(
    names: Sequence[str], values: Sequence[float], lows: Sequence[float], highs: Sequence[float], label: str
) -> bytes:
    """One dot with its interval a line; the first line stands out and its value runs down as a guide."""
    figure, axes = _axes(5.2, 0.75 + 0.27 * len(names))
    y = np.arange(len(names))
    colours = [TRUE] + [MUTED] * (len(names) - 1)
    axes.axvline(values[0], color=TRUE, lw=0.8, ls=":", zorder=1)
    for k in y:
        axes.plot([lows[k], highs[k]], [k, k], color=colours[k], lw=2, solid_capstyle="round")
    axes.scatter(values, y, c=colours, s=26, zorder=3)
    axes.set_yticks(y, [_plain(n) for n in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(_plain(label))
    axes.grid(axis="y", visible=False)
    return _encode(figure)


def depth_points(pixels: np.ndarray, points: np.ndarray, true_m: np.ndarray, predicted_m: np.ndarray) -> bytes:
    """The image twice, its points coloured by true and by predicted depth on one logarithmic scale.

    points [N, 2]; true_m, predicted_m [N] in metres; a prediction that is NaN or <= 0 is drawn as a red cross.
    """
    height, width = pixels.shape[:2]
    figure = Figure(figsize=(7.4, 3.45 * height / width + 0.3), dpi=_DPI, layout="constrained")
    panels = figure.subplots(1, 2)
    readable = predicted_m > 0  # also False for NaN
    seen = np.concatenate([true_m, predicted_m[readable]])
    # Outliers must not squeeze the colours of all others.
    low, high = max(np.quantile(seen, 0.02), 1e-2), np.quantile(seen, 0.98)
    norm = matplotlib.colors.LogNorm(low, max(high, 1.05 * low), clip=True)
    for axes, name, depth in zip(panels, ("true", "predicted"), (true_m, predicted_m)):
        _photo(axes, pixels, f"{name} depth")
        xy = points * [width, height] - 0.5
        shown = depth > 0
        dots = axes.scatter(*xy[shown].T, c=depth[shown], norm=norm, cmap="viridis_r", s=30, ec="white", lw=0.8)
        axes.scatter(*xy[~shown].T, c=BAD, marker="x", s=28)
    bar = figure.colorbar(dots, ax=panels, shrink=0.9, pad=0.015)
    _plain_log(bar.ax.yaxis, norm.vmin, norm.vmax)
    bar.set_label("m", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return _encode(figure, photo=True)


def depth_scatter(true_m: np.ndarray, predicted_m: np.ndarray, threshold: float = 1.25) -> bytes:
    """Predicted against true depth (m), both logarithmic, with the band of delta1 (ratio below `threshold`)."""
    shown = (predicted_m > 0) & (true_m > 0)
    true_m, predicted_m = true_m[shown], predicted_m[shown]
    figure, axes = _axes(4.3, 4.1)
    if len(true_m):
        low, high = 0.8 * true_m.min(), 1.25 * true_m.max()
        line = np.array([low, high])
        axes.fill_between(line, line / threshold, line * threshold, color=GOOD, alpha=0.15, lw=0, label="δ1 band")
        axes.plot(line, line, color=GOOD, lw=0.8)
        inside = np.maximum(true_m / predicted_m, predicted_m / true_m) < threshold
        clipped = np.clip(predicted_m, low, high)
        for mask, colour, name in ((inside, TRUE, "inside"), (~inside, BAD, "outside")):
            axes.scatter(true_m[mask], clipped[mask], s=7, c=colour, alpha=0.45, lw=0, label=f"{name} ({mask.sum()})")
        axes.set(xscale="log", yscale="log", xlim=line, ylim=line, aspect="equal")
        _plain_log(axes.xaxis, low, high)
        _plain_log(axes.yaxis, low, high)
        axes.legend(frameon=False, fontsize=8, loc="upper left")
    axes.set_xlabel("true depth (m)")
    axes.set_ylabel("predicted depth (m)")
    return _encode(figure)


def match_lines(
    first: np.ndarray,
    second: np.ndarray,
    query: np.ndarray,
    true: np.ndarray,
    predicted: np.ndarray,
    limit: float = 0.05,
) -> bytes:
    """Two images; lines from query to prediction, green to red by error, and a short blue line on to the true point.

    query, true, predicted [N, 2]; NaN predictions are left out, those outside the image are put on its border. Red from
    `limit` (share of the image's size) on.
    """
    predicted = np.clip(predicted, 0, 1)
    figure = Figure(figsize=(7.4, 3.7 * max(p.shape[0] / p.shape[1] for p in (first, second)) + 0.3), dpi=_DPI)
    figure.subplots_adjust(0.005, 0.01, 0.995, 0.92, wspace=0.02)
    left, right = figure.subplots(1, 2)
    _photo(left, first, "first image: queries")
    _photo(right, second, "second image: predicted (dot), true (ring)")
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
    right.scatter(*t.T, fc="none", s=34, ec=TRUE, lw=1.3, zorder=3)
    return _encode(figure, photo=True)


def boxes(pixels: np.ndarray, regions: np.ndarray) -> bytes:
    """The image with numbered regions [M, 4] (x1, y1, x2, y2)."""
    height, width = pixels.shape[:2]
    figure = Figure(figsize=(4.2, 4.2 * height / width), dpi=_DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    _photo(axes, pixels, "")
    for k, (colour, box) in enumerate(zip(_cycle(regions), regions)):
        x1, y1, x2, y2 = box * [width, height, width, height] - 0.5
        axes.add_patch(matplotlib.patches.Rectangle((x1, y1), x2 - x1, y2 - y1, fc="none", ec=colour, lw=2))
        label = dict(fc=colour, ec="none", pad=1.5)
        axes.text(x1, y1, str(k + 1), color="white", fontsize=8, va="top", bbox=label, clip_on=True)
    return _encode(figure, photo=True)


def pose_views(
    first: np.ndarray,
    second: np.ndarray,
    true_yaw_deg: float,
    true_direction: np.ndarray,
    yaw_deg: float | None,
    direction: np.ndarray | None,
) -> bytes:
    """Both images and the motion from above: camera 1 looks up the page, arrows show where camera 2 is and looks.

    Yaw in degrees, positive turns right; directions are unit vectors (x, y, z) in camera 1's frame. What was not
    predicted is not drawn.
    """
    height = 2.5 * max(p.shape[0] / p.shape[1] for p in (first, second))
    figure = Figure(figsize=(7.4, max(height, 2.3) + 0.3), dpi=_DPI, layout="constrained")
    left, right, above = figure.subplots(1, 3, width_ratios=(1, 1, 0.95))
    _photo(left, first, "first")
    _photo(right, second, "second")
    above.set_title("from above", fontsize=9, color=INK, loc="left", pad=3)
    above.set(xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), aspect="equal", xticks=[], yticks=[])
    above.spines[:].set_color(GRID)
    above.add_patch(matplotlib.patches.Circle((0, 0), 1, fc="none", ec=GRID, lw=1))
    _camera(above, np.zeros(2), 0.0, INK)
    for name, yaw, unit, colour in (
        ("true", true_yaw_deg, true_direction, TRUE),
        ("predicted", yaw_deg, direction, BAD),
    ):
        above.plot([], [], color=colour, label=name)
        at = np.zeros(2) if unit is None else np.asarray(unit, float)[[0, 2]]
        if np.hypot(*at) > 0.02:
            above.annotate("", at, (0, 0), arrowprops=dict(arrowstyle="-|>", color=colour, lw=1.6))
        if yaw is not None:
            _camera(above, at, yaw, colour)
    above.legend(frameon=False, fontsize=8, loc="lower right", handlelength=1.2)
    return _encode(figure, photo=True)


def _camera(axes, at: np.ndarray, yaw_deg: float, colour: str) -> None:
    """A camera's field of view as a small open triangle; yaw 0 looks up the page."""
    sides = np.radians(yaw_deg + np.array([-25.0, 25.0]))
    ends = at + 0.42 * np.stack([np.sin(sides), np.cos(sides)], -1)
    axes.add_patch(matplotlib.patches.Polygon([at, *ends], fc=colour, ec=colour, alpha=0.25, lw=1))
    axes.scatter(*at, color=colour, s=14, zorder=4)


def _axes(width: float, height: float):
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=INK, labelsize=8)
    axes.xaxis.label.set_size(9)
    axes.yaxis.label.set_size(9)
    axes.grid(color=GRID, lw=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def _photo(axes, pixels: np.ndarray, title: str) -> None:
    axes.imshow(pixels, interpolation="nearest" if max(pixels.shape) < 256 else "antialiased")
    axes.set_title(title, fontsize=9, color=INK, loc="left", pad=3)
    axes.set_axis_off()
    axes.set(xlim=(-0.5, pixels.shape[1] - 0.5), ylim=(pixels.shape[0] - 0.5, -0.5))


def _plain_log(axis, low: float, high: float) -> None:
    """Ticks at round metres instead of powers of ten."""
    for steps in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), np.arange(1, 10, 0.25)):
        ticks = [t for e in range(-2, 4) for s in steps if low <= (t := s * 10.0**e) <= high]
        if len(ticks) > 2:
            break
    axis.set_major_locator(matplotlib.ticker.FixedLocator(ticks))
    axis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(matplotlib.ticker.NullLocator())


def _smooth(values: np.ndarray) -> np.ndarray:
    """Running mean over 2 % of the curve, shorter at the start so that no value leaks back."""
    width = max(1, len(values) // 50)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(0, end - width)
    return (sums[end] - sums[start]) / (end - start)


def _cycle(things) -> list[str]:
    return [COLOURS[k % len(COLOURS)] for k in range(len(things))]


def _plain(text: str) -> str:
    """Dollar signs would switch matplotlib to formulas."""
    return text.replace("$", r"\$")


def _encode(figure, photo: bool = False) -> bytes:
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    if photo:
        figure.savefig(buffer, format="jpg", pil_kwargs={"quality": 84, "optimize": True})
    else:
        figure.savefig(buffer, format="png", pil_kwargs={"optimize": True})
    return buffer.getvalue()
