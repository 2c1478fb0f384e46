"""Charts of the report as encoded pictures."""

from collections.abc import Mapping, Sequence

import numpy as np

from vlm3_jax.evaluate.report.drawing import (
    BAD,
    COLOURS,
    DPI,
    GOOD,
    INK,
    MUTED,
    TRUE,
    Figure,
    axes,
    cycle,
    encode,
    plain,
    plain_log,
    style,
)
from vlm3_jax.evaluate.report.groups import DepthBin
from vlm3_jax.tasks.depth import DELTA


def loss_curve(
    steps: Sequence[int],
    losses: Sequence[float],
    held_out: Mapping[str, tuple[Sequence[int], Sequence[float]]],
    entropies: Mapping[str, float],
) -> bytes:
    """Train loss, held-out loss by source and, dashed, what a model that ignores the image can reach (nats a token)."""
    figure, own = axes(8.2, 3.6)
    top = []
    if len(losses):
        own.plot(steps, losses, color="#cbd2d9", lw=0.8, label="training, each step")
        own.plot(steps, _smooth(np.asarray(losses, float)), color=INK, lw=1.4, label="training, smoothed")
        # The fall from random weights is not what one looks for; it may leave the picture.
        top.append(np.quantile(losses[len(losses) // 20 :], 0.995))
    sources = sorted(held_out.keys() | entropies.keys())
    for colour, source in zip(cycle(sources), sources):
        if source in held_out:
            own.plot(*held_out[source], color=colour, lw=1.6, marker="o", ms=3.5, label=f"held out: {source}")
            values = held_out[source][1]
            top.append(max(values[1:] or values))
        if source in entropies:
            own.axhline(entropies[source], color=colour, lw=1, ls=(0, (5, 3)), label=f"answers alone: {source}")
            top.append(entropies[source])
    own.set_xlabel("step")
    own.set_ylabel("loss (nats per token)")
    if top:
        own.set_ylim(0, 1.08 * max(top))
    own.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    return encode(figure)


def intervals(
    names: Sequence[str],
    values: Sequence[float],
    lows: Sequence[float],
    highs: Sequence[float],
    label: str,
    guide: bool = True,
) -> bytes:
    """One dot with its interval a line; with a `guide` the first stands out and its value runs down the others."""
    figure, own = axes(5.2, 0.75 + 0.27 * len(names))
    y = np.arange(len(names))
    colours = [TRUE] + [MUTED if guide else TRUE] * (len(names) - 1)
    if guide:
        own.axvline(values[0], color=TRUE, lw=0.8, ls=":", zorder=1)
    for k in y:
        own.plot([lows[k], highs[k]], [k, k], color=colours[k], lw=2, solid_capstyle="round")
    own.scatter(values, y, c=colours, s=26, zorder=3)
    own.set_yticks(y, [plain(n) for n in names])
    own.set_ylim(len(names) - 0.4, -0.6)
    own.set_xlabel(plain(label))
    own.grid(axis="y", visible=False)
    return encode(figure)


def depth_scatter(true_m: np.ndarray, predicted_m: np.ndarray, threshold: float = 1.25) -> bytes:
    """Predicted against true depth (m), both logarithmic, with the band of delta1 (ratio below `threshold`)."""
    shown = (predicted_m > 0) & (true_m > 0)
    true_m, predicted_m = true_m[shown], predicted_m[shown]
    figure, own = axes(4.3, 4.1)
    if len(true_m):
        low, high = 0.8 * true_m.min(), 1.25 * true_m.max()
        line = np.array([low, high])
        own.fill_between(line, line / threshold, line * threshold, color=GOOD, alpha=0.15, lw=0, label="δ1 band")
        own.plot(line, line, color=GOOD, lw=0.8)
        inside = np.maximum(true_m / predicted_m, predicted_m / true_m) < threshold
        clipped = np.clip(predicted_m, low, high)
        for mask, colour, name in ((inside, TRUE, "inside"), (~inside, BAD, "outside")):
            own.scatter(true_m[mask], clipped[mask], s=7, c=colour, alpha=0.45, lw=0, label=f"{name} ({mask.sum()})")
        own.set(xscale="log", yscale="log", xlim=line, ylim=line, aspect="equal")
        plain_log(own.xaxis, low, high)
        plain_log(own.yaxis, low, high)
        own.legend(frameon=False, fontsize=8, loc="upper left")
    own.set_xlabel("true depth (m)")
    own.set_ylabel("predicted depth (m)")
    return encode(figure)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Running mean over 2 % of the curve, shorter at the start so that no value leaks back."""
    width = max(1, len(values) // 50)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(0, end - width)
    return (sums[end] - sums[start]) / (end - start)


def by_depth(bins: Sequence[DepthBin], others: Mapping[str, Sequence[DepthBin]], label: str) -> bytes:
    """delta1 against true depth, of `label` with intervals and of the others, and below how the answers spread.

    The bands hold a half and 90 % of answer / truth, the line is their median.
    """
    figure = Figure(figsize=(7.4, 4.6), dpi=DPI, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1))
    for own in (above, below):
        style(own)
        own.set_xscale("log")
    for colour, (name, theirs) in zip(COLOURS[1:], others.items()):
        above.plot(
            [one.middle for one in theirs], [one.delta1 for one in theirs], color=colour, lw=1, label=plain(name)
        )
    x, delta1 = [one.middle for one in bins], np.array([one.delta1 for one in bins])
    ends = np.array([[one.low, one.high] for one in bins]).T
    above.vlines(x, *ends, color=TRUE, lw=2, alpha=0.5)
    above.plot(x, delta1, color=TRUE, lw=1.6, marker="o", ms=4, label=plain(label))
    above.set(ylim=(-0.03, 1.03), ylabel="δ1 ↑")
    above.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    read = [one for one in bins if one.ratios is not None]
    if read:
        x, ratios = [one.middle for one in read], np.array([one.ratios for one in read]).T
        below.fill_between(x, ratios[0], ratios[4], color=TRUE, alpha=0.12, lw=0, label="90 % of answers")
        below.fill_between(x, ratios[1], ratios[3], color=TRUE, alpha=0.25, lw=0, label="half of them")
        below.plot(x, ratios[2], color=TRUE, lw=1.6, marker="o", ms=4, label="median")
        below.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
        _ratio_axis(below, ratios)
    below.axhspan(1 / DELTA, DELTA, color=GOOD, alpha=0.12, lw=0)
    below.axhline(1, color=GOOD, lw=0.8)
    below.set(xlabel="true depth (m)", ylabel="answer / truth")
    plain_log(below.xaxis, 0.9 * bins[0].middle, 1.1 * bins[-1].middle)
    return encode(figure)


def _ratio_axis(axes, ratios: np.ndarray) -> None:
    low, high = np.clip([0.9 * ratios[0].min(), 1.1 * ratios[4].max()], [0.1, 1.5], [0.67, 10])
    axes.set(yscale="log", ylim=(low, high))
    plain_log(axes.yaxis, low, high)


def reliability(spread_m: np.ndarray, error_m: np.ndarray) -> bytes:
    """Root mean square errors of answers against the spreads that were told (m), both of groups of equal size."""
    figure, own = axes(4.3, 4.1)
    seen = np.concatenate([spread_m, error_m])
    seen = seen[seen > 0]
    low, high = 0.7 * seen.min(), 1.4 * seen.max()
    own.plot([low, high], [low, high], color=GOOD, lw=1, label="as told")
    own.fill_between([low, high], [low / 2, high / 2], [low * 2, high * 2], color=GOOD, alpha=0.1, lw=0)
    own.plot(spread_m, np.maximum(error_m, low), color=TRUE, lw=1.4, marker="o", ms=4.5, label="answers")
    own.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal")
    own.set(xlabel="spread told (m)", ylabel="root mean square error (m)")
    plain_log(own.xaxis, low, high)
    plain_log(own.yaxis, low, high)
    own.legend(frameon=False, fontsize=8, loc="upper left")
    return encode(figure)
