"""Procedural textures: a pattern maps texture coordinates (m) to a mixing value in [0, 1].

Each pattern fades to its mean where a pixel covers more than about half a period, which stands in for filtering.
"""

import numpy as np

PLAIN, CHECKS, STRIPES, PLANKS, BRICKS, TILES, NOISE, DOTS, GRAIN = range(9)

_TABLE = np.random.default_rng(2024).random((256, 256), np.float32).ravel()


def mix_values(patterns, periods, part: np.ndarray, s, t, footprint) -> np.ndarray:
    """The mixing value of every hit, float32 [N].

    `part` int [N] selects a row of `patterns` uint8 [parts] and `periods` float32 [parts, 2] (m); `s`, `t` float32
    [N]: texture coordinates (m); `footprint` float32 [N]: what a pixel covers on the surface (m).
    """
    out = np.zeros(len(part), np.float32)
    of_hit = patterns[part]
    for number, function in _FUNCTIONS.items():
        rows = np.flatnonzero(of_hit == number)
        if len(rows):
            parts = part[rows]
            a, b = periods[:, 0].take(parts), periods[:, 1].take(parts)
            out[rows] = function(s[rows], t[rows], a, b, footprint[rows])
    return out


def _fade(value, mean, period, footprint):
    return mean + (value - mean) * np.minimum(0.5 * period / footprint, np.float32(1))


def _cell(x):
    cell = np.floor(x)
    return cell.astype(np.int32), x - cell


def _hash(i, j):
    return _TABLE.take(((i & 255) << 8) | (j & 255))


def _smooth(x, y):
    """Value noise: a random table interpolated bilinearly."""
    i, fx = _cell(x)
    j, fy = _cell(y)
    top = _hash(i, j)
    top += (_hash(i + 1, j) - top) * fx
    low = _hash(i, j + 1)
    low += (_hash(i + 1, j + 1) - low) * fx
    return top + (low - top) * fy


def _checks(s, t, a, b, footprint):
    i = np.floor(s / a).astype(np.int32) + np.floor(t / a).astype(np.int32)
    return _fade((i & 1).astype(np.float32), np.float32(0.5), a, footprint)


def _stripes(s, t, a, b, footprint):
    return _fade((np.floor(s / a).astype(np.int32) & 1).astype(np.float32), np.float32(0.5), a, footprint)


def _planks(s, t, a, b, footprint):
    j, fy = _cell(t / a)
    i, fx = _cell(s / b + _hash(j, j) * np.float32(7))
    seam = (fy < 0.06) | (fx < 0.008)
    return _fade(np.where(seam, np.float32(0), 0.35 + 0.65 * _hash(i, j)), np.float32(0.65), 0.5 * a, footprint)


def _bricks(s, t, a, b, footprint):
    j, fy = _cell(t / b)
    i, fx = _cell(s / a + (j & 1) * np.float32(0.5))
    joint = (fy < 0.14) | (fx < 0.14 * b / a)
    return _fade(np.where(joint, np.float32(1), 0.55 * _hash(i, j)), np.float32(0.42), 0.5 * b, footprint)


def _tiles(s, t, a, b, footprint):
    i, fx = _cell(s / a)
    j, fy = _cell(t / a)
    joint = (fx < 0.035) | (fy < 0.035)
    return _fade(np.where(joint, np.float32(0), 0.7 + 0.3 * _hash(i, j)), np.float32(0.8), 0.5 * a, footprint)


def _noise(s, t, a, b, footprint):
    coarse = _fade(_smooth(s / b, t / b), np.float32(0.5), b, footprint)
    fine = _fade(
        _hash(np.floor(s / a).astype(np.int32), np.floor(t / a).astype(np.int32)), np.float32(0.5), a, footprint
    )
    return 0.6 * coarse + 0.4 * fine


def _dots(s, t, a, b, footprint):
    x = s / a
    y = t / a
    x -= np.floor(x) + np.float32(0.5)
    y -= np.floor(y) + np.float32(0.5)
    return _fade((x * x + y * y < 0.09).astype(np.float32), np.float32(0.28), a, footprint)


def _grain(s, t, a, b, footprint):
    return _fade(_smooth(s / a, t / b), np.float32(0.5), np.minimum(a, b), footprint)


_FUNCTIONS = {
    CHECKS: _checks,
    STRIPES: _stripes,
    PLANKS: _planks,
    BRICKS: _bricks,
    TILES: _tiles,
    NOISE: _noise,
    DOTS: _dots,
    GRAIN: _grain,
}
