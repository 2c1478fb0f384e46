"""Which device stands where on a mesh of several slices or hosts."""

import dataclasses

import numpy as np
import pytest

from vlm3_jax.errors import UserError
from vlm3_jax.parallel import mesh as meshes
from vlm3_jax.planning.topology import parse


@dataclasses.dataclass(frozen=True)
class Device:
    """What the arrangement looks at."""

    id: int
    slice_index: int
    process_index: int = 0
    device_kind: str = "a GPU"
    platform: str = "gpu"
    coords: tuple[int, ...] = ()
    core_on_chip: int = 0


def slices(mesh_shape, counts, shuffled=None) -> np.ndarray:
    """The slice of every device of the mesh [replica, fsdp, tensor]; `counts`: devices of each slice."""
    devices = [Device(8 * number + k, number) for number, count in enumerate(counts) for k in range(count)]
    if shuffled is not None:
        shuffled.shuffle(devices)
    placed = meshes.arranged(devices, mesh_shape)
    assert placed.shape == mesh_shape
    assert {d.id for d in placed.flat} == {d.id for d in devices}
    return np.vectorize(lambda device: device.slice_index)(placed)


def test_replicas_are_spread_over_slices(rng):
    found = slices((4, 4, 2), [8, 8, 8, 8], rng)
    assert found[:, 0, 0].tolist() == [0, 1, 2, 3]
    assert (found == found[:, :1, :1]).all()


def test_several_replicas_share_a_slice(rng):
    found = slices((4, 2, 2), [8, 8], rng)
    assert found[:, 0, 0].tolist() == [0, 0, 1, 1]
    assert (found == found[:, :1, :1]).all()


def test_fsdp_crosses_slices_where_replicas_do_not_suffice(rng):
    found = slices((2, 8, 2), [8, 8, 8, 8], rng)
    assert found[:, :, 0].tolist() == [[0] * 4 + [1] * 4, [2] * 4 + [3] * 4]
    assert (found == found[:, :, :1]).all()


def test_an_odd_number_of_replicas():
    assert slices((3, 4, 1), [6, 6])[:, :, 0].tolist() == [[0, 0, 1, 1]] * 3


def test_one_slice_keeps_its_order():
    devices = [Device(number, 0, number // 2) for number in range(8)]
    placed = meshes.arranged(devices, (2, 2, 2))
    assert [device.id for device in placed.flat] == list(range(8))


@pytest.mark.parametrize("slices", [1, 2])
@pytest.mark.parametrize("name", ["v5e:8x8", "v5p:4x4x4", "v5p:4x4x12", "v6e:2x4", "v6e:8x8"])
def test_every_mesh_that_a_plan_names_can_be_laid_over_a_torus(name, slices):
    topology = parse(name)
    torus = list(np.ndindex(*topology.shape))
    devices = [
        Device(len(torus) * number + place, number, 0, topology.chip.kind, "tpu", (*coords, 0, 0)[:3])
        for number in range(slices)
        for place, coords in enumerate(torus)
    ]
    for replica, fsdp, tensor in topology.meshes():
        placed = meshes.arranged(devices, (slices * replica, fsdp, tensor))
        assert placed.shape == (slices * replica, fsdp, tensor)
        assert {device.id for device in placed.flat} == set(range(len(devices)))
        # Tensor parallel devices are neighbours: no two of them further apart than as a line.
        coords = np.array([device.coords for device in placed.flat]).reshape(*placed.shape, 3)
        assert np.ptp(coords, 2).sum(-1).max() < max(tensor, 2)


@pytest.mark.parametrize(
    ("shape", "counts", "message"),
    [
        (
            (1, 1, 16),
            [8, 8],
            r"replica 1 x fsdp 1 x tensor 16 cannot be laid over 2 slices or hosts of 8 devices; make",
        ),
        ((2, 6, 1), [8, 4], r"mesh: the slices or hosts have different numbers of devices \(4 and 8\)"),
    ],
)
def test_what_does_not_fit(shape, counts, message):
    with pytest.raises(UserError, match=message):
        slices(shape, counts)
