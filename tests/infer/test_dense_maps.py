"""Dense maps of functions that are known exactly: where they are asked, and what becomes of edges."""

import numpy as np
import pytest

from vlm3_jax.errors import UserError
from vlm3_jax.infer import dense
from vlm3_jax.infer.dense import DensePlan, Lattice, dense_map

WIDTH, HEIGHT = 200, 150


class World:
    """A floor that recedes and a disc in front of it: metres of every pixel, and what was asked."""

    def __init__(self):
        rows, columns = np.indices((HEIGHT, WIDTH))
        self.disc = (columns - 120) ** 2 + (rows - 60) ** 2 < 35**2
        self.metres = np.where(self.disc, 1.5, 3.0 + columns / 100)
        texture = 20 * np.sin(columns / 3)[..., None]
        self.pixels = np.clip(np.where(self.disc[..., None], (200, 60, 40), (60, 90, 150)) + texture, 0, 255)
        self.pixels = self.pixels.astype(np.uint8)
        self.calls = []

    def ask(self, points):
        self.calls.append(points)
        return self.metres[points[:, 1], points[:, 0]]

    def error(self, found) -> float:
        return float(np.abs(np.log(found.distance_m / self.metres)).mean())


@pytest.fixture
def world() -> World:
    return World()


def test_edges_are_those_of_the_image(world):
    found, points, _ = dense_map(world.ask, world.pixels, DensePlan(questions=600))
    assert found.distance_m.shape == (HEIGHT, WIDTH)
    assert found.distance_m.dtype == np.float32
    assert len(points) == found.questions <= 600
    assert world.error(found) < 0.004
    # All but a few pixels are on the right side of the edge, which the questions alone (2 px apart) do not tell.
    near = found.distance_m < 2.2
    assert (near != world.disc).mean() < 0.002
    # Every node is asked once.
    asked = np.concatenate(world.calls)
    assert len(np.unique(asked, axis=0)) == len(asked) == len(points)
    np.testing.assert_array_equal(np.unique(asked, axis=0), np.unique(points, axis=0))


def test_questions_go_where_answers_change(world):
    """On a grey image as many evenly spaced ones give a map twice as wrong; an image with edges helps further."""
    grey = np.full_like(world.pixels, 90)
    found, points, _ = dense_map(world.ask, grey, DensePlan(questions=500))
    centre = np.hypot(points[:, 0] - 120, points[:, 1] - 60)
    first = len(world.calls[0])
    assert (np.abs(centre - 35) < 15).sum() > 0.9 * (len(points) - first)
    even, *_ = dense_map(world.ask, grey, DensePlan(questions=500, cells=24, halvings=0))
    assert even.questions > 400
    assert world.error(even) > 2 * world.error(found)
    seen, *_ = dense_map(world.ask, world.pixels, DensePlan(questions=500))
    assert world.error(found) > 1.5 * world.error(seen)


def test_nothing_is_asked_twice_where_nothing_changes(world):
    found, points, _ = dense_map(lambda points: np.full(len(points), 2.0), world.pixels, DensePlan())
    assert len(points) == 17 * 13
    np.testing.assert_allclose(found.distance_m, 2.0, rtol=1e-6)


def test_there_are_no_more_questions_than_allowed(world):
    noise = np.random.default_rng(0)
    for most in (4, 17, 60, 250, 700):
        found, points, _ = dense_map(lambda points: noise.uniform(1, 9, len(points)), world.pixels, DensePlan(most))
        assert found.questions == len(points) <= most
        assert np.isfinite(found.distance_m).all()


def test_unread_answers_leave_no_holes_beside_others(world):
    """A tenth unread: filled from the neighbours. Nothing read: nothing is made up."""
    noise = np.random.default_rng(0)
    lost = noise.random((HEIGHT, WIDTH)) < 0.1
    world.metres = np.where(lost, np.nan, world.metres)
    found, points, _ = dense_map(world.ask, world.pixels, DensePlan(questions=600))
    assert np.isnan(world.metres[points[:, 1], points[:, 0]]).any()
    assert np.isfinite(found.distance_m).all()
    there = ~lost
    assert np.abs(np.log(found.distance_m[there] / world.metres[there])).mean() < 0.01
    found, *_ = dense_map(lambda points: np.full(len(points), np.nan), world.pixels, DensePlan())
    assert np.isnan(found.distance_m).all()


def test_other_values_are_brought_to_pixels_as_depth_is(world):
    """Of the points asked, in their order; where one is unknown its neighbours tell."""
    found, points, carry = dense_map(world.ask, world.pixels, DensePlan(questions=600))
    metres = world.metres[points[:, 1], points[:, 0]]
    np.testing.assert_allclose(carry(3 * metres), 3 * found.distance_m, rtol=1e-5)
    share = np.where(points[:, 0] < WIDTH // 2, 0.1, 0.3)
    share[5] = np.nan
    shares = carry(share)
    assert np.isfinite(shares).all()
    assert (shares[:, : WIDTH // 4] < 0.11).all()
    assert (shares[:, -WIDTH // 4 :] > 0.29).all()


@pytest.mark.parametrize("size", [(200, 150), (150, 201), (17, 300), (5, 4), (2, 2), (2, 7)])
def test_nodes_of_images_of_any_size(size):
    """All different pixels, the corners of the image among them."""
    width, height = size
    lattice = Lattice.of(width, height, DensePlan())
    for nodes, side in ((lattice.x, width), (lattice.y, height)):
        assert nodes[0] == 0
        assert nodes[-1] == side - 1
        assert (np.diff(nodes) >= 1).all()
    pixels = np.zeros((height, width, 3), np.uint8)
    found, *_ = dense_map(lambda points: 1.0 + points[:, 0] / width, pixels, DensePlan())
    assert found.distance_m.shape == (height, width)
    assert np.isfinite(found.distance_m).all()


def test_nodes_are_no_nearer_than_the_model_can_tell_apart():
    lattice = Lattice.of(1000, 750, DensePlan(finest_px=(10.0, 30.0)))
    assert np.diff(lattice.x).min() >= 10
    assert np.diff(lattice.y).min() >= 30


def test_large_photos_are_filled_at_their_own_size(world, monkeypatch):
    """The guide is smaller than the photo; edges stay edges and no values arise between."""
    monkeypatch.setattr(dense, "GUIDE_SIDE", 70)
    found, *_ = dense_map(world.ask, world.pixels, DensePlan(questions=600))
    assert found.distance_m.shape == (HEIGHT, WIDTH)
    assert world.error(found) < 0.03
    between = (found.distance_m > 1.7) & (found.distance_m < 2.8)
    assert between.mean() < 0.02


def test_plans_that_cannot_be():
    with pytest.raises(UserError, match="dense: an image of 1 x 7 px is too small for a map"):
        Lattice.of(1, 7, DensePlan())
    for values in ({"questions": 3}, {"questions": 5.5}, {"cells": 0}, {"tolerance": float("nan")}, {"batch": 0}):
        with pytest.raises(UserError, match="dense: "):
            DensePlan(**values)
