"""Answers as text for a terminal: columns that line up, one line a point."""

import numpy as np

from vlm3_jax.answers.values import Depth, Match, RelativePose
from vlm3_jax.pose import euler_from_matrix


def of_depth(depth: Depth) -> str:
    """x and y (px of the upright image), distance and z in metres; "-" where the answer cannot be read."""
    head = ["x", "y", "distance_m", "z_m"]
    columns = [depth.points_px[:, 0], depth.points_px[:, 1], depth.distance_m, depth.z_m]
    if (spread := depth.spread) is not None:
        head += ["expected_m", "deviation_m"]
        columns += [spread.expected_m, spread.deviation_m]
        if np.isfinite(spread.level):
            head += [f"low_m ({spread.level:.0%})", f"high_m ({spread.level:.0%})"]
            columns += [spread.low_m, spread.high_m]
    return _lined([head, *([_cell(value) for value in row] for row in zip(*columns, strict=True))])


def of_dense(depth: Depth) -> str:
    """A dense map in one line: its range, and how many questions it took."""
    values = depth.map_m()
    known = values[np.isfinite(values)]
    if not len(known):
        return f"no map: none of {depth.dense.questions:,} answers can be read"
    low, middle, high = np.quantile(known, (0.02, 0.5, 0.98))
    height, width = values.shape
    line = (
        f"map of {width} x {height} from {depth.dense.questions:,} questions: {depth.kind} {low:.2f} to {high:.2f} m "
        f"(2 to 98 %), median {middle:.2f} m"
    )
    share = depth.relative_deviation()
    if share is not None and np.isfinite(share).any():
        low, middle, high = np.nanquantile(share, (0.02, 0.5, 0.98))
        line += f"; deviation {low:.0%} to {high:.0%}, median {middle:.0%}"
    return line


def of_match(match: Match) -> str:
    """Pixels of the first image and where they are in the second; "-" where the answer cannot be read."""
    rows = [[_cell(value) for value in (*a, *b)] for a, b in zip(match.points_px, match.matches_px, strict=True)]
    for row, outside in zip(rows, match.outside, strict=True):
        row.append("outside" if outside else "")
    return _lined([["x1", "y1", "x2", "y2", ""], *rows])


def of_pose(pose: RelativePose) -> str:
    """The motion in words and numbers."""
    lines = []
    if np.isfinite(pose.rotation).all():
        yaw, pitch, roll = np.round(euler_from_matrix(pose.rotation), 1) + 0.0
        lines.append(f"rotation   yaw {yaw:+.1f}, pitch {pitch:+.1f}, roll {roll:+.1f} degrees")
    else:
        lines.append("rotation   - (the answer cannot be read)")
    if np.isfinite(pose.direction).all():
        # Zero has no sign.
        x, y, z = np.round(pose.direction, 2) + 0.0
        lines.append(f"direction  ({x:+.2f}, {y:+.2f}, {z:+.2f}) x right, y down, z forward, of the first camera")
    else:
        lines.append("direction  - (the answer cannot be read)")
    lines.append(f"distance   {pose.distance_m:.2f} m" if pose.metric else "distance   - (the answer cannot be read)")
    return "\n".join(lines)


def unread(count: int, total: int, what: str = "points") -> str:
    """How many have no readable answer; "" if all have."""
    return f"{count:,} of {total:,} {what} have no readable answer" if count else ""


def _cell(value) -> str:
    if isinstance(value, int | np.integer):
        return str(value)
    return "-" if not np.isfinite(value) else f"{value:.2f}"


def _lined(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)
