"""A depth of every pixel from few questions: asked where answers change, filled in along the edges of the image.

It knows a function from pixels to metres and nothing of models. The questions lie on a lattice: first on its coarse
nodes, then cell by cell on finer ones where depth jumps inside a cell. What was not asked is interpolated between
the corners of its cell, and the lattice is brought to the image's size by joint bilateral upsampling (Kopf et al.,
2007): a pixel takes after the nodes near it that look like it.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from vlm3_jax.answers.values import DenseMap
from vlm3_jax.errors import UserError

# Pixels [N, 2] -> metres [N], NaN where there is no answer.
Ask = Callable[[np.ndarray], np.ndarray]

# The upsampling: how fast nodes count less with difference of colour (of 1), and what an unlike one counts at least.
SIGMA_COLOUR, LEAST = 0.07, 1e-4
# Lines of a texture thinner than this share of a cell are no edges; PIL's filter takes odd sizes.
TEXTURE, MOST_TEXTURE_PX = 1 / 8, 9
# The image is looked at with a longer side of so many px at most.
GUIDE_SIDE = 1024
# Neighbours that differ by more than this share are not mixed where a map is enlarged to the photo's size.
EDGE = 0.03


@dataclasses.dataclass(frozen=True)
class DensePlan:
    """How many questions, and where.

    `questions`: at most so many. `cells`: of the first lattice along the longer side. `halvings`: how often a cell may
    be cut in four. `tolerance`: cells in which depth jumps by less than this share are left whole. `finest_px`: nodes
    are no nearer to each other, across and down. `batch`: cells are chosen anew after so many questions.
    """

    questions: int = 1024
    cells: int = 16
    halvings: int = 2
    tolerance: float = 0.05
    finest_px: tuple[float, float] = (1.0, 1.0)
    batch: int = 256

    def __post_init__(self):
        if type(self.questions) is not int or self.questions < 4:
            raise UserError(f"dense: at most {self.questions!r} questions; give a whole number of at least 4")
        if self.cells < 1 or self.halvings < 0 or not self.tolerance >= 0 or self.batch < 1:
            raise UserError(f"dense: {self} cannot be asked")


def dense_map(
    ask: Ask, pixels: np.ndarray, plan: DensePlan
) -> tuple[DenseMap, np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """The map of an image, uint8 [H, W, 3]; the pixels that were asked about, int64 [N, 2]; and what brings other
    positive values of theirs [N] (NaN: none) to all pixels as it does depth, float32 [H, W].
    """
    lattice = Lattice.of(pixels.shape[1], pixels.shape[0], plan)
    lattice.sample(ask, plan)
    asked = np.argwhere(lattice.asked)
    points = np.stack([lattice.x[asked[:, 1]], lattice.y[asked[:, 0]]], -1)

    def everywhere() -> np.ndarray:
        return upsampled(lattice.filled(), lattice.x, lattice.y, pixels)

    def carry(values: np.ndarray) -> np.ndarray:
        lattice.put(asked, values)
        return everywhere()

    distance = everywhere()
    step = max(np.diff(lattice.x).mean(), np.diff(lattice.y).mean())
    return DenseMap(distance, len(points), float(step)), points, carry


@dataclasses.dataclass(eq=False)
class Lattice:
    """Nodes at the pixel columns `x` [w] and rows `y` [h]; `logs` [h, w] of metres (NaN: none), `asked` bool [h, w].

    `leaves` [n, 3]: row, column (of nodes) and size (in nodes, a power of two) of the cells as they are cut now.
    """

    x: np.ndarray
    y: np.ndarray
    logs: np.ndarray
    asked: np.ndarray
    leaves: np.ndarray

    @classmethod
    def of(cls, width: int, height: int, plan: DensePlan) -> "Lattice":
        """The nodes of an image of this size: no more at first than there may be questions."""
        if min(width, height) < 2:
            raise UserError(f"dense: an image of {width} x {height} px is too small for a map")
        cells = plan.cells
        while True:
            first = [max(1, round(cells * side / max(width, height))) for side in (width, height)]
            if (first[0] + 1) * (first[1] + 1) <= plan.questions or cells == 1:
                break
            cells -= 1
        # Images of few pixels have fewer nodes, so that no two share a pixel.
        sides = [(side - 1) / max(least, 1.0) for side, least in zip((width, height), plan.finest_px)]
        first = [min(n, max(1, int(most))) for n, most in zip(first, sides)]
        halvings = plan.halvings
        while halvings and any(n << halvings > most for n, most in zip(first, sides)):
            halvings -= 1
        size = 1 << halvings
        x, y = (
            np.floor(np.linspace(0, side - 1, n * size + 1) + 0.5).astype(np.int64)
            for n, side in zip(first, (width, height))
        )
        rows, columns = np.meshgrid(np.arange(0, len(y) - 1, size), np.arange(0, len(x) - 1, size), indexing="ij")
        leaves = np.stack([rows.ravel(), columns.ravel(), np.full(rows.size, size)], -1)
        shape = len(y), len(x)
        return cls(x, y, np.full(shape, np.nan), np.zeros(shape, bool), leaves)

    def sample(self, ask: Ask, plan: DensePlan) -> None:
        """Asks about the corners of all cells, then of those where the answers change most, until nothing is left."""
        self._ask(ask, self._corners(self.leaves).reshape(-1, 2))
        while (left := plan.questions - int(self.asked.sum())) > 0:
            chosen = self._changing(plan.tolerance, min(left, plan.batch))
            if not len(chosen):
                return
            cut = self.leaves[chosen]
            half = cut[:, 2] // 2
            parts = [np.stack([cut[:, 0] + a * half, cut[:, 1] + b * half, half], -1) for a in (0, 1) for b in (0, 1)]
            self.leaves = np.concatenate([np.delete(self.leaves, chosen, 0), *parts])
            self._ask(ask, self._corners(np.concatenate(parts)).reshape(-1, 2))

    def filled(self) -> np.ndarray:
        """The logs [h, w] of all nodes, those between interpolated from the corners of their cell that have an answer.

        NaN where none has one.
        """
        total, weight = np.zeros(self.logs.shape), np.zeros(self.logs.shape)
        for size in np.unique(self.leaves[:, 2]):
            cells = self.leaves[self.leaves[:, 2] == size]
            corners = self._corners(cells)
            values = self.logs[corners[..., 0], corners[..., 1]]
            known = np.isfinite(values)
            steps = np.arange(size + 1) / size
            share = np.stack([1 - steps, steps])
            # [corner, row, column]: bilinear.
            shares = np.einsum("ar,bc->abrc", share, share).reshape(4, size + 1, size + 1)
            sums = np.einsum("nk,krc->nrc", np.where(known, values, 0), shares)
            have = np.einsum("nk,krc->nrc", known.astype(float), shares)
            rows = cells[:, 0, None, None] + np.arange(size + 1)[:, None]
            columns = cells[:, 1, None, None] + np.arange(size + 1)
            # Nodes that cells share get the mean of both.
            np.add.at(total, (rows, columns), np.where(have > 0, sums / np.maximum(have, 1e-12), 0))
            np.add.at(weight, (rows, columns), have > 0)
        between = np.where(weight > 0, total / np.maximum(weight, 1), np.nan)
        return np.where(np.isfinite(self.logs), self.logs, between)

    def put(self, nodes: np.ndarray, values) -> None:
        """Gives nodes [n, 2] (row, column) their values [n]; those that are not above 0 are unknown."""
        values = np.asarray(values, np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            self.logs[nodes[:, 0], nodes[:, 1]] = np.where(values > 0, np.log(values), np.nan)

    def _corners(self, cells: np.ndarray) -> np.ndarray:
        """Row and column of the corners of cells [n, 3]: [n, 4, 2], row by row."""
        offsets = np.array([(0, 0), (0, 1), (1, 0), (1, 1)])
        return cells[:, None, :2] + offsets * cells[:, 2, None, None]

    def _change(self, cells: np.ndarray) -> np.ndarray:
        """By which share depth jumps along the sides of cells [n, 3]: [n]; 0 where nothing tells.

        A side's jump is what neighbours on its line do not foretell, from whichever end they foretell it better:
        a floor that recedes evenly has none, however fast.
        """
        logs, (row, column, size) = self.filled(), cells.T
        jumps = []
        for down, right in ((0, 1), (1, 0)):
            for side in (0, size):
                at, step = (row + side * right, column + side * down), (size * down, size * right)
                before, first, second, after = (
                    _looked_up(logs, at[0] + k * step[0], at[1] + k * step[1]) for k in (-1, 0, 1, 2)
                )
                bends = np.abs([before - 2 * first + second, first - 2 * second + after])
                # fmin leaves NaN out: at the image's edge one end tells, and a lone cell has its plain difference.
                bend = np.fmin(*bends)
                jumps.append(np.where(np.isnan(bend), np.abs(second - first), bend))
        return np.expm1(np.fmax.reduce([*jumps, np.zeros(len(cells))]))

    def _changing(self, tolerance: float, most: int) -> np.ndarray:
        """Numbers of the leaves to cut, about `most` new nodes in all: those with most change over most area."""
        change = np.where(self.leaves[:, 2] > 1, self._change(self.leaves), 0.0)
        candidates = np.flatnonzero(change > tolerance)
        weight = change[candidates] * self.leaves[candidates, 2] ** 2
        order = candidates[np.argsort(-weight, kind="stable")]
        chosen, new = [], set()
        for number in order:
            row, column, size = self.leaves[number].tolist()
            half = size // 2
            five = [(row, column + half), (row + half, column), (row + half, column + half),
                    (row + half, column + size), (row + size, column + half)]  # fmt: skip
            more = {node for node in five if not self.asked[node]} - new
            if len(new) + len(more) > most:
                break
            new |= more
            chosen.append(number)
        return np.array(chosen, np.int64)

    def _ask(self, ask: Ask, nodes: np.ndarray) -> None:
        nodes = np.unique(nodes, axis=0)
        nodes = nodes[~self.asked[nodes[:, 0], nodes[:, 1]]]
        if len(nodes):
            self.put(nodes, ask(np.stack([self.x[nodes[:, 1]], self.y[nodes[:, 0]]], -1)))
            self.asked[nodes[:, 0], nodes[:, 1]] = True


def upsampled(logs: np.ndarray, x: np.ndarray, y: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Metres, float32 [H, W], of the pixels uint8 [H, W, 3] from the logs [h, w] of nodes at columns x and rows y.

    A pixel is the mean of the nodes around it that have a value, weighed by nearness and likeness of colour.
    """
    height, width = pixels.shape[:2]
    scale = min(1.0, GUIDE_SIDE / max(height, width))
    guide = Image.fromarray(pixels)
    if scale < 1:
        guide = guide.resize([max(1, round(n * scale)) for n in (width, height)], Image.Resampling.BOX)
    # Where the guide's pixels and the nodes are, in nodes.
    columns = np.interp((np.arange(guide.width) + 0.5) * width / guide.width - 0.5, x, np.arange(len(x)))
    rows = np.interp((np.arange(guide.height) + 0.5) * height / guide.height - 0.5, y, np.arange(len(y)))
    cell = float(x[-1] - x[0]) / max(len(x) - 1, 1) * guide.width / width
    lines = min(int(cell * TEXTURE) // 2 * 2 + 1, MOST_TEXTURE_PX)
    guide = guide.filter(ImageFilter.MedianFilter(lines)) if lines > 1 else guide
    # A node has the colour of its surroundings, not of one pixel.
    soft = np.asarray(guide.filter(ImageFilter.BoxBlur(max(1.0, cell / 4))), np.float32) / 255
    at = [
        np.clip(((place + 0.5) * n / side).astype(int), 0, n - 1)
        for place, n, side in ((y, guide.height, height), (x, guide.width, width))
    ]
    colours = soft[np.ix_(*at)]
    looks = np.asarray(guide, np.float32) / 255
    known = np.isfinite(logs)
    nodes = np.concatenate([np.where(known, logs, 0)[..., None], colours], -1).astype(np.float32)
    found = np.empty(looks.shape[:2], np.float32)
    # A band of rows at a time stays in the processor's cache.
    for top in range(0, guide.height, 64):
        band = slice(top, top + 64)
        found[band] = _joint_bilateral(nodes, known, rows[band], columns, looks[band])
    return _at_full_size(np.exp(found), height, width)


def _joint_bilateral(nodes, known, rows, columns, looks) -> np.ndarray:
    """Logs [r, c] at fractional rows and columns of the nodes [h, w, 4] (log, colour); NaN where none is near."""
    low = [np.floor(place).astype(int) for place in (rows, columns)]
    total = np.zeros(looks.shape[:2], np.float32)
    weight = np.zeros(looks.shape[:2], np.float32)
    for down in (-1, 0, 1, 2):
        row = low[0] + down
        for right in (-1, 0, 1, 2):
            column = low[1] + right
            inside = ((row >= 0) & (row < len(nodes)))[:, None] & ((column >= 0) & (column < nodes.shape[1]))
            place = np.ix_(np.clip(row, 0, len(nodes) - 1), np.clip(column, 0, nodes.shape[1] - 1))
            node = nodes[place]
            unlike = np.square(looks - node[..., 1:]).sum(-1)
            near = (_bump(rows - row)[:, None] * _bump(columns - column)).astype(np.float32)
            share = near * (known[place] & inside) * (np.exp(-unlike / np.float32(2 * SIGMA_COLOUR**2)) + LEAST)
            total += share * node[..., 0]
            weight += share
    return np.where(weight > 0, total / np.maximum(weight, 1e-30), np.nan)


def _looked_up(values: np.ndarray, rows, columns) -> np.ndarray:
    """The values [h, w] at rows and columns [n]; NaN outside."""
    inside = (rows >= 0) & (rows < values.shape[0]) & (columns >= 0) & (columns < values.shape[1])
    place = np.clip(rows, 0, values.shape[0] - 1), np.clip(columns, 0, values.shape[1] - 1)
    return np.where(inside, values[place], np.nan)


def _bump(apart: np.ndarray) -> np.ndarray:
    """The cubic B-spline: 0 from two cells on, so that no edge of a cell is seen."""
    apart = np.abs(apart)
    return np.maximum(2 - apart, 0) ** 3 / 6 - 4 * np.maximum(1 - apart, 0) ** 3 / 6


def _at_full_size(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """The map at the photo's size: bilinear where neighbours are alike, the nearest across edges."""
    if values.shape == (height, width):
        return values.astype(np.float32)
    found = np.empty((height, width), np.float32)
    x = np.clip((np.arange(width) + 0.5) * values.shape[1] / width - 0.5, 0, values.shape[1] - 1)
    left = np.minimum(x.astype(int), max(values.shape[1] - 2, 0))
    right, u = np.minimum(left + 1, values.shape[1] - 1), (x - left).astype(np.float32)
    for top in range(0, height, 256):
        y = np.clip((np.arange(top, min(top + 256, height)) + 0.5) * values.shape[0] / height - 0.5, 0, len(values) - 1)
        above = np.minimum(y.astype(int), max(len(values) - 2, 0))
        below, v = np.minimum(above + 1, len(values) - 1), (y - above).astype(np.float32)[:, None]
        four = [values[np.ix_(r, c)] for r in (above, below) for c in (left, right)]
        mixed = (four[0] * (1 - u) + four[1] * u) * (1 - v) + (four[2] * (1 - u) + four[3] * u) * v
        nearest = values[np.ix_(np.rint(y).astype(int), np.rint(x).astype(int))]
        low, high = np.minimum.reduce(four), np.maximum.reduce(four)
        # NaN compares false: the nearest.
        found[top : top + 256] = np.where(high < low * (1 + EDGE), mixed, nearest)
    return found
