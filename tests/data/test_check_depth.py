"""Kinds of depth, units and cameras: what is wrong is found, what is right or unknown is left alone."""

import dataclasses
import json

import numpy as np
import pytest
from check_world import CAMERA, facts, pair, points, with_cameras

from vlm3_jax.camera import Camera
from vlm3_jax.data.checks import planes
from vlm3_jax.data.checks.base import depths
from vlm3_jax.data.checks.lengths import Cameras, Lengths
from vlm3_jax.data.checks.planes import DepthKind, verdict
from vlm3_jax.records import DepthPoints, Record, encode_depth


@pytest.mark.parametrize("kind", ["z", "distance"])
@pytest.mark.parametrize("told", ["z", "distance"])
def test_the_kind_of_depth_is_found(kind, told):
    found = facts(DepthKind(), [points(number, kind, told) for number in range(12)])
    assert (found.values["told"], found.values["found"]) == (told, kind)
    assert len(found.faults) == (kind != told)


def test_dense_maps_tell_their_kind_too():
    items = [pair(number, matches=False) for number in range(6)]
    assert facts(DepthKind(), items).values["found"] == "z"
    wrong = [
        dataclasses.replace(r, depth_maps=tuple(dataclasses.replace(m, kind="distance") for m in r.depth_maps))
        for r in items
    ]
    (fault,) = facts(DepthKind(), wrong).faults
    assert fault == "depth is told to be distance, but its planes are flat only as z"


def test_too_little_evidence_is_no_verdict(rng):
    few = facts(DepthKind(), [points(number, "z", "distance") for number in range(5)])
    assert (few.values["found"], few.faults) == (None, ())
    # A telephoto lens: distance and z are the same.
    far = Camera(2000.0, 2000.0, 31.5, 23.5, 64, 48)
    tele = [with_cameras(points(number, "z", "distance"), lambda _: far) for number in range(12)]
    assert facts(DepthKind(), tele).values["found"] is None
    # No planes at all.
    noise = []
    for number in range(20):
        record = points(number)
        label = dataclasses.replace(record.depth[0], depth_m=rng.uniform(1, 9, len(record.depth[0].depth_m)))
        noise.append(dataclasses.replace(record, depth=(label,)))
    assert facts(DepthKind(), noise).values["found"] is None
    # Depth cut off at a largest value is flat as z whatever it is.
    flat = []
    for number in range(20):
        record = points(number, "distance")
        label = dataclasses.replace(record.depth[0], depth_m=np.minimum(record.depth[0].depth_m, 1.5))
        flat.append(dataclasses.replace(record, depth=(label,)))
    assert facts(DepthKind(), flat).values["found"] != "z"


def test_verdicts_need_votes():
    assert verdict(np.array([[40, 10]] * 8))[0] == "z"
    assert verdict(np.array([[40, 10]] * 7))[0] is None
    assert verdict(np.array([[10, 40]] * 8 + [[40, 10]] * 3))[0] is None
    assert verdict(np.array([[10, 40]] * 40 + [[40, 10]] * 10)) == ("distance", (10, 40))
    # Ties do not vote.
    assert verdict(np.array([[40, 38]] * 50)) == (None, (0, 0))
    assert verdict(np.zeros((0, 2), int)) == (None, (0, 0))


def test_real_depth_is_z(samples):
    """70 rooms with 100 points each, told to be distances until they were measured."""
    check, counts = DepthKind(), []
    for index, line in enumerate((samples / "ibims1" / "ibims1.jsonl").read_text().splitlines()[:30]):
        row = json.loads(line)
        label = DepthPoints(np.array(row["pixel_coords"]), np.array(row["depth"]), "distance")
        view = dataclasses.replace(pair(0, False, False).views[0], camera=Camera.from_intrinsics(row["intrinsics"]))
        record = Record("r", (view,), (label,))
        check.add(index, record)
        counts += [planes.count(found) for found in depths(record)]
    found = check.facts()
    z, distance = np.sum(counts, 0)
    assert found.values["on_planes"] == {"z": z, "distance": distance}
    assert z > 1.5 * distance
    assert found.values["found"] == "z"
    assert found.faults


def lengths_of(values, **fields):
    record = points(0)
    label = DepthPoints(np.zeros((len(values), 2), int), np.asarray(values, float), "z")
    return facts(Lengths(), [dataclasses.replace(record, depth=(label,), **fields)])


def test_lengths_that_can_hardly_be_metres(rng):
    metres = rng.uniform(0.5, 80, 200)
    assert not lengths_of(metres).faults
    assert not lengths_of(metres).warnings
    assert "millimetres" in lengths_of(metres * 1000).faults[0]
    # Of a near scene, and whole.
    assert "whole numbers" in lengths_of(np.rint(rng.uniform(10, 90, 200))).faults[0]
    assert "above 500 m; are these millimetres" in lengths_of([*metres, 2500]).warnings[0]
    assert "shares of a range" in lengths_of(rng.uniform(0.1, 0.9, 200)).warnings[0]
    # Without a metric scale nothing is known, and a handful says little.
    assert not lengths_of(metres * 1000, metric=False).faults
    assert not lengths_of([1, 1, 2500, 2600, 2700]).faults


def cameras_of(change, count=6, size=(64, 48)):
    items = [with_cameras(points(number), change) for number in range(count)]
    return facts(Cameras(), items)


def test_intrinsics_of_other_images_are_found():
    found = facts(Cameras(), [points(number) for number in range(6)])
    assert not found.faults
    assert found.values["fov_across_deg"]["median"] == pytest.approx(2 * np.degrees(np.arctan(32 / 52)))

    def half(camera):
        return dataclasses.replace(camera, cx=camera.cx / 2, cy=camera.cy / 2)

    (fault,) = cameras_of(half).faults
    assert "at 0.494 times the middle" in fault or "at 0.5" in fault or "images of another size" in fault

    def turned(camera):
        return dataclasses.replace(camera, cx=camera.cy, cy=camera.cx)

    (fault,) = cameras_of(turned).faults
    assert "turned by 90 degrees" in fault

    def outside(camera):
        return dataclasses.replace(camera, cx=camera.cx + 60)

    (fault,) = cameras_of(outside).faults
    assert "outside the images" in fault
    (warning,) = cameras_of(lambda camera: dataclasses.replace(camera, fy=30.0)).warnings
    assert "fx is 1.73 times fy" in warning


@pytest.mark.parametrize(
    ("size", "fault"),
    [((64, 48), ""), ((31, 24), ""), ((48, 64), "turned by 90 degrees"), ((48, 48), "48 x 48 for 64")],
)
def test_dense_maps_of_other_proportions_are_found(size, fault):
    maps = (encode_depth(np.full(size[::-1], 2.0), "z"),)
    items = [dataclasses.replace(points(number), depth_maps=maps) for number in range(4)]
    found = facts(Cameras(), items).faults
    assert len(found) == bool(fault)
    assert not fault or fault in found[0]


def test_cut_images_have_off_centre_principal_points():
    def crop(camera):
        return dataclasses.replace(camera, cx=camera.cx + 12)

    assert not cameras_of(crop).faults
    assert not cameras_of(lambda camera: dataclasses.replace(CAMERA, cx=5.0), count=3).faults
