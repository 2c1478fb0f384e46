"""Where parameters, moments and batches lie on a mesh, for every released size and many meshes."""

import itertools

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from vlm3_jax import config as configs
from vlm3_jax.errors import UserError
from vlm3_jax.model import params as parameters
from vlm3_jax.model.config import VLMConfig
from vlm3_jax.model.sizes import released
from vlm3_jax.parallel import mesh as meshes
from vlm3_jax.train import optimizer as optimizers
from vlm3_jax.train import step as steps

SIZES = [2**k for k in range(10)]


def row_of(cfg, name) -> parameters.Param:
    return next(row for row in parameters.table(cfg) if row.name == name)


@pytest.mark.parametrize("name", ["2b", "4b", "8b", "32b"])
def test_every_mesh_divides_what_it_cuts(name):
    rows = parameters.table(released(name))
    for fsdp, tensor in itertools.product(SIZES, SIZES[:5]):
        sizes = {"replica": 2, "fsdp": fsdp, "tensor": tensor}
        for row in rows:
            spec, fallbacks = meshes.resolve(row, sizes)
            assert len(spec) == len(row.shape)
            used = [axis for axis in spec if axis is not None]
            assert len(used) == len(set(used)), row.name
            assert "replica" not in used
            whole = {fallback.axis for fallback in fallbacks}
            for size, logical, axis in zip(row.shape, row.axes, spec, strict=True):
                if axis is not None:
                    assert sizes[axis] > 1
                    assert size % sizes[axis] == 0, (row.name, logical)
                    assert logical not in whole


def largest_power_of_two(cfg, name, axis) -> int:
    """The largest fsdp or tensor size at which the named parameter's axis is still cut."""
    row = row_of(cfg, name)
    which = "tensor" if axis.endswith(("heads", "mlp")) or axis == "vocab" else "fsdp"
    cut = [n for n in SIZES[1:] if not meshes.resolve(row, {"replica": 1, "fsdp": 1, "tensor": 1} | {which: n})[1]]
    return max(cut)


def test_largest_powers_of_two_that_divide():
    eight = released("8b")
    assert largest_power_of_two(eight, "text.embed", "vocab") == 128
    assert largest_power_of_two(eight, "vision.table", "vision_embed") == 128
    assert largest_power_of_two(eight, "vision.blocks_0.fc1_bias", "vision_mlp") == 16
    assert largest_power_of_two(eight, "text.layers.k_proj", "kv_heads") == 8
    assert largest_power_of_two(eight, "text.layers.q_proj", "heads") == 32


def test_fallbacks_are_listed():
    cfg = released("8b")
    found = {
        fallback.name: fallback
        for row in parameters.table(cfg)
        for fallback in meshes.resolve(row, {"replica": 1, "fsdp": 256, "tensor": 16})[1]
    }
    assert found["text.layers.k_proj"] == meshes.Fallback("text.layers.k_proj", "kv_heads", 8, ("tensor",))
    # 1152 is no multiple of 256, and tensor is not an option for a width.
    assert found["vision.table"] == meshes.Fallback("vision.table", "vision_embed", 1152, ("fsdp",))
    assert "text.layers.q_proj" not in found
    assert "text.embed" not in found
    assert {fallback.axis for fallback in found.values()} == {"kv_heads", "vision_embed"}
    # One device cuts nothing, and so lacks nothing.
    one = {"replica": 1, "fsdp": 1, "tensor": 1}
    for row in parameters.table(cfg):
        assert meshes.resolve(row, one) == (PartitionSpec(*[None] * len(row.shape)), [])


def test_the_first_axis_that_divides_wins():
    cfg = released("8b")
    both = {"replica": 1, "fsdp": 4, "tensor": 2}
    assert meshes.resolve(row_of(cfg, "text.embed"), both)[0] == PartitionSpec("tensor", "fsdp")
    assert meshes.resolve(row_of(cfg, "text.layers.q_proj"), both)[0] == PartitionSpec(None, "fsdp", "tensor", None)
    # tensor 32 does not divide 4304, so the vision MLP takes fsdp for it where its other axis leaves it free.
    wide = {"replica": 1, "fsdp": 16, "tensor": 32}
    assert meshes.resolve(row_of(cfg, "vision.blocks_0.fc1_bias"), wide)[0] == PartitionSpec(None, "fsdp")
    assert meshes.resolve(row_of(cfg, "vision.blocks_0.fc1"), wide)[0] == PartitionSpec(None, "fsdp", None)


def test_moments_lie_as_their_parameters(tiny_model):
    cfg = VLMConfig.from_dir(tiny_model)
    mesh = AbstractMesh((1, 4, 2), meshes.AXES)
    opt = configs.base().optimizer
    opt.weight_decay = 0.1
    tx = optimizers.make(cfg, opt)
    shardings = steps.state_shardings(cfg, tx, mesh)
    (adam,) = (part for part in shardings.opt_state if isinstance(part, optax.ScaleByAdamState))
    lying = meshes.param_shardings(cfg, mesh)
    assert shardings.params == adam.mu == adam.nu == lying
    assert sum(s.spec != PartitionSpec(*[None] * len(s.spec)) for s in jax.tree.leaves(lying)) > 20
    whole = meshes.replicated(mesh)
    assert adam.count == shardings.step == shardings.samples == whole
    state = steps.abstract_state(cfg, tx, mesh)
    table = {row.path: row.shape for row in parameters.table(cfg)}
    assert {k: v.shape for k, v in parameters.flatten(state.params).items()} == table
    for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding == sharding
        assert leaf.dtype == (np.float32 if leaf.shape else np.int32)


def test_rows_are_spread_over_replica_and_fsdp():
    mesh = AbstractMesh((2, 4, 1), meshes.AXES)
    assert meshes.batch_sharding(mesh).shard_shape((8, 5)) == (1, 5)
    assert meshes.batch_sharding(mesh, 3).shard_shape((3, 8, 5)) == (3, 1, 5)


def test_a_mesh_takes_all_devices():
    assert dict(meshes.make_mesh().shape) == {"replica": 1, "fsdp": jax.device_count(), "tensor": 1}
    with pytest.raises(UserError, match=r"mesh: replica 1 x fsdp 1 x tensor 3 is not the number of devices, 1"):
        meshes.make_mesh(tensor=3, devices=jax.devices()[:1])
