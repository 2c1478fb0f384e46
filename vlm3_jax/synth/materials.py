"""Random materials by what they stand for; texture periods follow real sizes, so they are cues of scale."""

import colorsys

import numpy as np

from vlm3_jax.synth import textures as tx
from vlm3_jax.synth.shapes import Material

Rng = np.random.Generator


def colour(rng: Rng, saturation=(0.1, 0.75), value=(0.3, 0.95)) -> tuple[float, float, float]:
    """A random RGB colour in [0, 1]."""
    h, s, v = rng.random(3)
    return colorsys.hsv_to_rgb(h, saturation[0] + s * np.ptp(saturation), value[0] + v * np.ptp(value))


def _scaled(rgb, factor: float):
    return tuple(min(c * factor, 1.0) for c in rgb)


def plain(rng: Rng, rgb=None) -> Material:
    """One colour."""
    rgb = rgb or colour(rng)
    return Material(tx.PLAIN, (1.0, 1.0), rgb, rgb)


def wood(rng: Rng) -> Material:
    """Grained wood, light to dark brown."""
    dark, red = rng.uniform(0.35, 0.95), rng.uniform(0.62, 0.8)
    rgb = (dark, dark * red, dark * red * rng.uniform(0.5, 0.75))
    return Material(tx.GRAIN, (rng.uniform(0.1, 0.3), rng.uniform(0.015, 0.04)), _scaled(rgb, 0.7), rgb)


def fabric(rng: Rng) -> Material:
    """Plain, striped, checked or dotted cloth."""
    a, b = colour(rng), colour(rng)
    pattern = (tx.PLAIN, tx.STRIPES, tx.CHECKS, tx.DOTS, tx.NOISE)[rng.integers(5)]
    period = rng.uniform(0.05, 0.16)
    return Material(pattern, (period, period * 3), a, b)


def metal(rng: Rng) -> Material:
    """Grey metal."""
    grey = rng.uniform(0.15, 0.8)
    return plain(rng, (grey, grey, min(grey * 1.05, 1.0)))


def leaves(rng: Rng) -> Material:
    """Foliage."""
    g = rng.uniform(0.35, 0.7)
    rgb = (g * rng.uniform(0.3, 0.9), g, g * rng.uniform(0.2, 0.5))
    return Material(tx.NOISE, (0.08, 0.4), _scaled(rgb, 0.4), rgb)


def bricks(rng: Rng) -> Material:
    """A brick wall with light joints."""
    h = rng.uniform(0.065, 0.1)
    rgb = colour(rng, (0.3, 0.65), (0.4, 0.75))
    joint = rng.uniform(0.6, 0.9)
    return Material(tx.BRICKS, (h * rng.uniform(2.6, 3.4), h), rgb, (joint, joint, joint * 0.95))


def room_wall(rng: Rng) -> Material:
    """Paint, wallpaper, bricks, tiles or panels."""
    rgb = colour(rng, (0.03, 0.35), (0.6, 0.97))
    other = _scaled(rgb, rng.uniform(0.7, 0.9))
    choice = rng.integers(6)
    if choice == 4:
        return bricks(rng)
    pattern = (tx.PLAIN, tx.STRIPES, tx.NOISE, tx.TILES, None, tx.DOTS)[choice]
    period = rng.uniform(0.15, 0.3)
    return Material(pattern, (period, period * 2), other, rgb)


def room_floor(rng: Rng) -> Material:
    """Planks, tiles, checks, carpet."""
    choice = rng.integers(4)
    if choice == 0:
        rgb = wood(rng).high
        return Material(tx.PLANKS, (rng.uniform(0.1, 0.2), rng.uniform(1.0, 2.0)), _scaled(rgb, 0.5), rgb)
    rgb = colour(rng, (0.03, 0.5), (0.45, 0.95))
    if choice == 1:
        return Material(tx.TILES, (rng.uniform(0.3, 0.6), 1.0), _scaled(rgb, 0.55), rgb)
    if choice == 2:
        return Material(tx.CHECKS, (rng.uniform(0.25, 0.5), 1.0), _scaled(rgb, rng.uniform(0.3, 0.8)), rgb)
    return Material(tx.NOISE, (0.03, 0.25), _scaled(rgb, 0.75), rgb)


def ground(rng: Rng) -> Material:
    """Grass, sand, asphalt, paving, a deck or a checked yard."""
    choice = rng.integers(6)
    if choice == 0:
        return leaves(rng)._replace(period=(0.05, 0.6))
    if choice in (1, 2):
        rgb = colour(rng, (0.02, 0.4), (0.35, 0.8))
        return Material(tx.NOISE, (0.06, rng.uniform(0.4, 1.2)), _scaled(rgb, 0.7), rgb)
    rgb = colour(rng, (0.02, 0.4), (0.45, 0.9))
    if choice == 3:
        return Material(tx.TILES, (rng.uniform(0.4, 1.0), 1.0), _scaled(rgb, 0.6), rgb)
    if choice == 4:
        return Material(tx.PLANKS, (rng.uniform(0.12, 0.2), rng.uniform(1.5, 3.0)), _scaled(rgb, 0.5), rgb)
    return Material(tx.CHECKS, (rng.uniform(0.5, 1.0), 1.0), _scaled(rgb, rng.uniform(0.4, 0.8)), rgb)
