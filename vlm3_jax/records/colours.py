"""Depth as colours, for pictures: red is near, blue is far."""

import numpy as np

# Near to far: red, yellow, green, cyan, blue.
DEPTH_COLOURS = np.array([[215, 25, 28], [253, 200, 80], [120, 200, 100], [60, 190, 210], [44, 60, 170]], np.float64)
NO_DEPTH = (0, 0, 0)


def depth_colours(depth_m: np.ndarray) -> np.ndarray:
    """Depth [H, W] (NaN: none) as uint8 [H, W, 3], by its logarithm: red is the nearest twentieth, blue the last."""
    there = np.isfinite(depth_m) & (depth_m > 0)
    colours = np.full((*depth_m.shape, 3), NO_DEPTH, np.uint8)
    if there.any():
        logs = np.log(depth_m[there].astype(np.float64))
        low, high = np.quantile(logs, (0.05, 0.95))
        place = np.clip((logs - low) / max(high - low, 1e-6), 0, 1) * (len(DEPTH_COLOURS) - 1)
        channels = [np.interp(place, np.arange(len(DEPTH_COLOURS)), channel) for channel in DEPTH_COLOURS.T]
        colours[there] = np.stack(channels, -1).astype(np.uint8)
    return colours
