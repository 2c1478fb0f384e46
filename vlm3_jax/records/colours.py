"""Depth as colours, for pictures: red is near, blue is far."""

import numpy as np

# Near to far: red, yellow, green, cyan, blue.
DEPTH_COLOURS = np.array([[215, 25, 28], [253, 200, 80], [120, 200, 100], [60, 190, 210], [44, 60, 170]], np.float64)
NO_DEPTH = (0, 0, 0)


def depth_range(depth_m: np.ndarray) -> tuple[float, float] | None:
    """What is coloured red and blue: the depths that a twentieth is nearer and farther than; None if there are none."""
    there = np.isfinite(depth_m) & (depth_m > 0)
    if not there.any():
        return None
    low, high = np.exp(np.quantile(np.log(depth_m[there].astype(np.float64)), (0.05, 0.95)))
    return float(low), float(high)


def depth_colours(depth_m: np.ndarray, span: tuple[float, float] | None = None) -> np.ndarray:
    """Depth [H, W] (NaN: none) as uint8 [H, W, 3], by its logarithm: red is the nearest twentieth, blue the last.

    `span`: the depths of red and blue, in place of those.
    """
    there = np.isfinite(depth_m) & (depth_m > 0)
    colours = np.full((*depth_m.shape, 3), NO_DEPTH, np.uint8)
    if there.any():
        logs = np.log(depth_m[there].astype(np.float64))
        low, high = np.log(span or depth_range(depth_m))
        place = np.clip((logs - low) / max(high - low, 1e-6), 0, 1) * (len(DEPTH_COLOURS) - 1)
        channels = [np.interp(place, np.arange(len(DEPTH_COLOURS)), channel) for channel in DEPTH_COLOURS.T]
        colours[there] = np.stack(channels, -1).astype(np.uint8)
    return colours
