"""Named objects made of primitives: furniture, outdoor things and things on walls. Sizes in metres.

Every maker takes a generator and returns a `Thing` that stands on height 0 with its front facing -z.
"""

import numpy as np

from vlm3_jax.synth import materials as mat
from vlm3_jax.synth.shapes import BALL, BOX, CONE, CYLINDER, WHEEL, Part, Thing

Rng = np.random.Generator


def _legs(w, d, h, thick, material):
    """Four legs under a w x d top."""
    x, z = w / 2 - thick / 2, d / 2 - thick / 2
    return [Part(BOX, (thick, h, thick), (sx * x, 0, sz * z), material) for sx in (-1, 1) for sz in (-1, 1)]


def crate(rng: Rng) -> Thing:
    """A cuboid."""
    w, h, d = rng.uniform(0.3, 0.8, 3)
    material = (mat.wood, mat.fabric, mat.plain)[rng.integers(3)](rng)
    return Thing("crate", [Part(BOX, (w, h, d), (0, 0, 0), material)], w, d)


def table(rng: Rng) -> Thing:
    """A top on four legs."""
    w, d, h = rng.uniform(0.9, 1.7), rng.uniform(0.6, 0.9), rng.uniform(0.68, 0.78)
    top, leg = mat.wood(rng), mat.wood(rng)
    parts = [Part(BOX, (w, 0.04, d), (0, h - 0.04, 0), top), *_legs(w - 0.06, d - 0.06, h - 0.04, 0.06, leg)]
    return Thing("table", parts, w, d)


def round_table(rng: Rng) -> Thing:
    """A round top on one foot."""
    w, h = rng.uniform(0.6, 1.2), rng.uniform(0.45, 0.78)
    top, foot = mat.wood(rng), mat.metal(rng)
    parts = [
        Part(CYLINDER, (w, 0.04, w), (0, h - 0.04, 0), top),
        Part(CYLINDER, (0.1, h - 0.06, 0.1), (0, 0.02, 0), foot),
        Part(CYLINDER, (w / 2, 0.02, w / 2), (0, 0, 0), foot),
    ]
    return Thing("round table", parts, w, w)


def chair(rng: Rng) -> Thing:
    """A seat with a back on four legs."""
    w, seat, back = rng.uniform(0.4, 0.5), rng.uniform(0.42, 0.48), rng.uniform(0.35, 0.55)
    frame, cloth = mat.wood(rng), mat.fabric(rng)
    parts = [
        Part(BOX, (w, 0.05, w), (0, seat - 0.05, 0), cloth),
        Part(BOX, (w, back, 0.04), (0, seat, w / 2 - 0.02), cloth if rng.random() < 0.5 else frame),
        *_legs(w, w, seat - 0.05, 0.045, frame),
    ]
    return Thing("chair", parts, w, w)


def stool(rng: Rng) -> Thing:
    """A round seat on a foot."""
    w, h = rng.uniform(0.3, 0.42), rng.uniform(0.4, 0.7)
    foot = mat.metal(rng)
    parts = [
        Part(CYLINDER, (w, 0.07, w), (0, h - 0.07, 0), mat.fabric(rng)),
        Part(CYLINDER, (0.07, h - 0.09, 0.07), (0, 0.02, 0), foot),
        Part(CYLINDER, (w, 0.02, w), (0, 0, 0), foot),
    ]
    return Thing("stool", parts, w, w)


def sofa(rng: Rng) -> Thing:
    """Seat, back and two arms."""
    w, d = rng.uniform(1.3, 2.2), rng.uniform(0.8, 0.95)
    seat, back = rng.uniform(0.38, 0.46), rng.uniform(0.75, 0.95)
    cloth, cushion = mat.fabric(rng), mat.fabric(rng)
    parts = [
        Part(BOX, (w - 0.36, seat, d - 0.2), (0, 0, -0.1), cushion),
        Part(BOX, (w - 0.36, back, 0.2), (0, 0, d / 2 - 0.1), cloth),
        *(Part(BOX, (0.18, seat + 0.18, d), (side * (w / 2 - 0.09), 0, 0), cloth) for side in (-1, 1)),
    ]
    return Thing("sofa", parts, w, d)


def bed(rng: Rng) -> Thing:
    """Frame, mattress, pillow and head board."""
    w, d = rng.uniform(0.9, 1.7), 2.05
    frame, cloth = mat.wood(rng), mat.fabric(rng)
    parts = [
        Part(BOX, (w, 0.25, d - 0.06), (0, 0, -0.03), frame),
        Part(BOX, (w - 0.06, 0.22, d - 0.12), (0, 0.25, -0.03), cloth),
        Part(BOX, (w * 0.7, 0.1, 0.4), (0, 0.47, d / 2 - 0.32), mat.plain(rng, (0.92, 0.92, 0.88))),
        Part(BOX, (w, rng.uniform(0.8, 1.1), 0.06), (0, 0, d / 2 - 0.03), frame),
    ]
    return Thing("bed", parts, w, d)


def shelf(rng: Rng) -> Thing:
    """An open shelf with rows of books."""
    w, d, h = rng.uniform(0.6, 1.2), 0.32, rng.uniform(1.2, 2.1)
    board = mat.wood(rng)
    parts = [Part(BOX, (0.03, h, d), (side * (w / 2 - 0.015), 0, 0), board) for side in (-1, 1)]
    parts.append(Part(BOX, (w - 0.06, h, 0.02), (0, 0, d / 2 - 0.01), board))
    levels = int(rng.integers(3, 6))
    for k in range(levels + 1):
        parts.append(Part(BOX, (w - 0.06, 0.03, d - 0.02), (0, k * (h - 0.03) / levels, -0.01), board))
    for k in range(levels):
        fill = rng.uniform(0.2, 0.9) * (w - 0.08)
        size = (fill, min(0.24, h / levels - 0.08), 0.2)
        at = (rng.uniform(-0.5, 0.5) * (w - 0.08 - fill), k * (h - 0.03) / levels + 0.03, 0.0)
        parts.append(Part(BOX, size, at, mat.fabric(rng)))
    return Thing("shelf", parts, w, d)


def cabinet(rng: Rng) -> Thing:
    """A closed body with doors and knobs."""
    w, d, h = rng.uniform(0.6, 1.5), rng.uniform(0.4, 0.6), rng.choice([rng.uniform(0.7, 1.1), rng.uniform(1.6, 2.1)])
    body, door, knob = mat.wood(rng), mat.wood(rng), mat.metal(rng)
    parts = [Part(BOX, (w, h, d - 0.02), (0, 0, 0.01), body)]
    for side in (-1, 1):
        parts.append(Part(BOX, (w / 2 - 0.03, h - 0.08, 0.02), (side * w / 4, 0.04, -d / 2 + 0.01), door))
        parts.append(Part(BALL, (0.04, 0.04, 0.04), (side * 0.05, h / 2, -d / 2 - 0.01), knob))
    return Thing("cabinet", parts, w, d + 0.04)


def television(rng: Rng) -> Thing:
    """A screen on a low board."""
    w, h = rng.uniform(1.0, 1.6), rng.uniform(0.4, 0.55)
    screen = w * rng.uniform(0.7, 0.95)
    black, panel = mat.plain(rng, (0.05, 0.05, 0.06)), mat.plain(rng, mat.colour(rng, (0.2, 0.6), (0.1, 0.5)))
    parts = [
        Part(BOX, (w, h, 0.4), (0, 0, 0), mat.wood(rng)),
        Part(BOX, (screen / 3, 0.06, 0.16), (0, h, 0), black),
        Part(BOX, (screen, screen * 0.58, 0.05), (0, h + 0.06, 0), black),
        Part(BOX, (screen - 0.06, screen * 0.58 - 0.06, 0.01), (0, h + 0.09, -0.03), panel),
    ]
    return Thing("television", parts, w, 0.4)


def lamp(rng: Rng) -> Thing:
    """A floor lamp."""
    h, w = rng.uniform(1.3, 1.8), rng.uniform(0.3, 0.45)
    pole = mat.metal(rng)
    parts = [
        Part(CYLINDER, (0.28, 0.03, 0.28), (0, 0, 0), pole),
        Part(CYLINDER, (0.035, h - 0.2, 0.035), (0, 0.03, 0), pole),
        Part(CONE, (w, 0.32, w), (0, h - 0.27, 0), mat.plain(rng, mat.colour(rng, (0.1, 0.5), (0.8, 1.0)))),
    ]
    return Thing("lamp", parts, w, w)


def plant(rng: Rng) -> Thing:
    """Foliage in a pot."""
    w, h = rng.uniform(0.4, 0.7), rng.uniform(0.5, 1.1)
    parts = [
        Part(CYLINDER, (0.3, 0.3, 0.3), (0, 0, 0), mat.plain(rng)),
        Part(CYLINDER, (0.05, 0.25, 0.05), (0, 0.3, 0), mat.wood(rng)),
        Part(BALL, (w, h, w), (0, 0.4, 0), mat.leaves(rng)),
    ]
    return Thing("plant", parts, w, w)


def ball(rng: Rng) -> Thing:
    """A ball on the floor."""
    w = rng.uniform(0.2, 0.5)
    return Thing("ball", [Part(BALL, (w, w, w), (0, 0, 0), mat.fabric(rng))], w, w)


def barrel(rng: Rng) -> Thing:
    """A drum with a rim."""
    w, h = rng.uniform(0.45, 0.65), rng.uniform(0.7, 1.0)
    skin = mat.fabric(rng)
    parts = [
        Part(CYLINDER, (w, h, w), (0, 0, 0), skin),
        Part(CYLINDER, (w + 0.04, 0.05, w + 0.04), (0, h / 2, 0), mat.metal(rng)),
    ]
    return Thing("barrel", parts, w + 0.04, w + 0.04)


def cone(rng: Rng) -> Thing:
    """A traffic cone."""
    h = rng.uniform(0.5, 0.9)
    stripes = mat.Material(mat.tx.STRIPES, (0.2, 0.2), (0.95, 0.4, 0.1), (0.95, 0.9, 0.85))
    upright = stripes._replace(pattern=mat.tx.PLAIN, high=stripes.low) if rng.random() < 0.5 else stripes
    parts = [
        Part(BOX, (h / 2 + 0.1, 0.04, h / 2 + 0.1), (0, 0, 0), mat.plain(rng, (0.15, 0.15, 0.15))),
        Part(CONE, (h / 2, h, h / 2), (0, 0.04, 0), upright),
    ]
    return Thing("traffic cone", parts, h / 2 + 0.1, h / 2 + 0.1)


def car(rng: Rng) -> Thing:
    """Body, cabin, windows, four wheels; the side faces -z."""
    length, width, body, cabin = rng.uniform(3.6, 4.7), rng.uniform(1.65, 1.85), rng.uniform(0.55, 0.7), 0.55
    paint, glass, tyre = mat.plain(rng), mat.plain(rng, (0.12, 0.16, 0.2)), mat.plain(rng, (0.06, 0.06, 0.06))
    wheel = rng.uniform(0.6, 0.7)
    parts = [
        Part(BOX, (width, body, length), (0, 0.25, 0), paint),
        Part(BOX, (width - 0.1, cabin, length * 0.5), (0, 0.25 + body, 0.1 * length), glass),
        Part(BOX, (width - 0.06, 0.05, length * 0.48), (0, 0.25 + body + cabin, 0.1 * length), paint),
        Part(BOX, (width - 0.3, 0.15, 0.04), (0, 0.45, -length / 2), mat.plain(rng, (0.9, 0.9, 0.75))),
    ]
    for x in (-1, 1):
        for z in (-0.3, 0.3):
            parts.append(Part(WHEEL, (0.22, wheel, wheel), (x * (width / 2 - 0.09), 0, z * length), tyre))
    return Thing("car", parts, width, length)


def tree(rng: Rng) -> Thing:
    """A trunk with a round or pointed crown."""
    trunk, crown, w = rng.uniform(0.8, 2.2), rng.uniform(1.5, 3.5), rng.uniform(1.4, 3.2)
    bark, leaf = mat.wood(rng), mat.leaves(rng)
    thick = rng.uniform(0.18, 0.35)
    parts = [Part(CYLINDER, (thick, trunk + 0.4, thick), (0, 0, 0), bark)]
    if rng.random() < 0.4:
        parts += [
            Part(CONE, (w * s, crown * 0.6, w * s), (0, trunk + k * crown * 0.3, 0), leaf)
            for k, s in enumerate((1, 0.75, 0.5))
        ]
    else:
        parts.append(Part(BALL, (w, crown, w), (0, trunk, 0), leaf))
    return Thing("tree", parts, max(0.8, w * 0.6), max(0.8, w * 0.6))


def bench(rng: Rng) -> Thing:
    """Seat slats, a back and two feet."""
    w, wood, foot = rng.uniform(1.3, 1.9), mat.wood(rng), mat.metal(rng)
    parts = [Part(BOX, (w, 0.04, 0.12), (0, 0.42, z), wood) for z in (-0.16, 0.0, 0.16)]
    parts += [Part(BOX, (w, 0.12, 0.04), (0, h, 0.24), wood) for h in (0.55, 0.72)]
    for side in (-1, 1):
        parts.append(Part(BOX, (0.06, 0.42, 0.44), (side * w * 0.38, 0, 0.02), foot))
        parts.append(Part(BOX, (0.06, 0.84, 0.03), (side * w * 0.38, 0, 0.27), foot))
    return Thing("bench", parts, w, 0.56)


def lamp_post(rng: Rng) -> Thing:
    """A street lamp."""
    h, pole = rng.uniform(3.0, 5.0), mat.metal(rng)
    parts = [
        Part(CYLINDER, (0.3, 0.3, 0.3), (0, 0, 0), pole),
        Part(CYLINDER, (0.11, h, 0.11), (0, 0, 0), pole),
        Part(BOX, (0.16, 0.08, 0.9), (0, h, -0.35), pole),
    ]
    return Thing("lamp post", parts, 0.4, 0.4)


def bin_(rng: Rng) -> Thing:
    """A waste bin with a lid."""
    w, h, skin = rng.uniform(0.45, 0.65), rng.uniform(0.8, 1.1), mat.plain(rng)
    lid = mat.plain(rng)
    parts = [Part(BOX, (w, h, w), (0, 0, 0), skin), Part(BOX, (w + 0.06, 0.06, w + 0.06), (0, h, 0), lid)]
    return Thing("bin", parts, w + 0.06, w + 0.06)


def fence(rng: Rng) -> Thing:
    """Posts and rails."""
    w, h, wood = rng.uniform(2.0, 4.0), rng.uniform(0.8, 1.3), mat.wood(rng)
    parts = [Part(BOX, (w, 0.1, 0.03), (0, h * s, 0), wood) for s in (0.3, 0.6, 0.9)]
    parts += [Part(BOX, (0.1, h, 0.1), (x * (w - 0.1), 0, 0.05), wood) for x in (-0.5, 0.0, 0.5)]
    return Thing("fence", parts, w, 0.2)


def wall(rng: Rng) -> Thing:
    """A free-standing wall."""
    w, h = rng.uniform(1.5, 4.0), rng.uniform(0.6, 1.8)
    return Thing("wall", [Part(BOX, (w, h, 0.24), (0, 0, 0), mat.bricks(rng))], w, 0.24)


def house(rng: Rng) -> Thing:
    """A block with a door and windows."""
    w, d, storeys = rng.uniform(5, 10), rng.uniform(5, 8), int(rng.integers(1, 4))
    h = 2.9 * storeys
    skin = mat.bricks(rng) if rng.random() < 0.5 else mat.room_wall(rng)
    glass, frame = mat.plain(rng, (0.2, 0.26, 0.33)), mat.plain(rng)
    parts = [
        Part(BOX, (w, h, d), (0, 0, 0), skin),
        Part(BOX, (w + 0.4, 0.25, d + 0.4), (0, h, 0), mat.plain(rng)),
        Part(BOX, (1.0, 2.05, 0.1), (0, 0, -d / 2), frame),
    ]
    for storey in range(storeys):
        for x in (-0.34, 0.34):
            parts.append(Part(BOX, (1.2, 1.3, 0.08), (x * w, 2.9 * storey + 0.9, -d / 2), glass))
            parts.append(Part(BOX, (0.08, 1.3, 1.2), (np.sign(x) * w / 2, 2.9 * storey + 0.9, x * d), glass))
    return Thing("house", parts, w, d)


def picture(rng: Rng) -> Thing:
    """A framed picture; hangs."""
    w, h = rng.uniform(0.4, 1.2), rng.uniform(0.4, 0.9)
    parts = [
        Part(BOX, (w, h, 0.03), (0, 0, 0.02), mat.wood(rng)),
        Part(BOX, (w - 0.1, h - 0.1, 0.04), (0, 0.05, 0.01), mat.fabric(rng)),
    ]
    return Thing("picture", parts, w, 0.06)


def window(rng: Rng) -> Thing:
    """A window with a cross bar; hangs."""
    w, h = rng.uniform(0.8, 1.8), rng.uniform(0.9, 1.3)
    frame, sky = mat.plain(rng, (0.93, 0.93, 0.9)), rng.uniform(0.7, 1.0)
    parts = [
        Part(BOX, (w, h, 0.03), (0, 0, 0.02), frame),
        Part(BOX, (w - 0.12, h - 0.12, 0.04), (0, 0.06, 0.01), mat.plain(rng, (sky * 0.7, sky * 0.85, sky))),
        Part(BOX, (0.05, h, 0.06), (0, 0, 0), frame),
    ]
    return Thing("window", parts, w, 0.06)


def door(rng: Rng) -> Thing:
    """A door with a knob; stands in front of a wall."""
    w, leaf = rng.uniform(0.8, 1.0), mat.plain(rng) if rng.random() < 0.5 else mat.wood(rng)
    parts = [
        Part(BOX, (w, 2.02, 0.05), (0, 0, 0), leaf),
        Part(BOX, (w + 0.14, 2.1, 0.03), (0, 0, 0.01), mat.plain(rng, (0.9, 0.9, 0.88))),
        Part(BALL, (0.06, 0.06, 0.06), (w / 2 - 0.1, 1.0, -0.05), mat.metal(rng)),
    ]
    return Thing("door", parts, w + 0.14, 0.06)


def rug(rng: Rng) -> Thing:
    """A thin cloth on the floor."""
    w, d = rng.uniform(1.2, 2.4), rng.uniform(0.9, 1.7)
    return Thing("rug", [Part(BOX, (w, 0.012, d), (0, 0, 0), mat.fabric(rng))], w, d)


AGAINST_WALL = (sofa, bed, shelf, cabinet, television, cabinet, shelf, table)
INSIDE = (crate, table, round_table, chair, chair, stool, lamp, plant, ball)
OUTSIDE = (crate, crate, barrel, cone, car, car, tree, tree, bench, lamp_post, bin_, fence, wall, ball, table, chair)
ON_WALL = (picture, window, picture)
