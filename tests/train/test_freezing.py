"""Named groups stay as they are: no gradient, no moments, not a byte changed; what a run trains survives a restart."""

import collections
import functools
import itertools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import partial_steps
import pytest
from partial_steps import Partial, flat, settings

from tests.support import rows_of_metrics, small_run, write_records
from vlm3_jax.checkpoint import hf
from vlm3_jax.errors import UserError
from vlm3_jax.model import params as parameters
from vlm3_jax.parallel import mesh as meshes
from vlm3_jax.train import loop
from vlm3_jax.train import optimizer as optimizers
from vlm3_jax.train import step as steps
from vlm3_jax.train.trainable import Trainable

# Parameters of the model "test" by group.
LEAVES = {"vision": 39, "merger": 12, "decoder": 23, "embeddings": 1}
FROZEN = (("vision",), ("decoder",), ("merger", "embeddings"))
ALSO = (("merger",), ("embeddings",), ("vision", "merger"), ("vision", "decoder", "embeddings"))


RATES = {"vision": 0.25, "decoder": 2.0}
First = collections.namedtuple("First", "mu nu params")


@pytest.fixture(scope="module")
def start(tiny_model, tmp_path_factory):
    return partial_steps.start(tiny_model, tmp_path_factory.mktemp("freezing"))


@pytest.fixture(scope="module")
def stepped(start):
    """freeze -> (three steps with these groups frozen, their losses, the state after the first)."""

    @functools.cache
    def three(freeze):
        partial = Partial(start, settings(freeze, rates=RATES))
        losses = partial.run(1)
        first = First(flat(partial.adam().mu), flat(partial.adam().nu), flat(partial.state.params))
        return partial, losses + partial.run(2), first

    return three


def group_of(path) -> str:
    """The group of a parameter by its path, without the table's own column."""
    if path[0] == "vision":
        return "merger" if path[1] in ("merger", "tap_mergers") else "vision"
    return "embeddings" if path[-1] in ("embed", "head") else "decoder"


@pytest.mark.parametrize("freeze", [*FROZEN, *(pytest.param(f, marks=pytest.mark.slow) for f in ALSO)], ids="+".join)
def test_frozen_groups_stay(stepped, freeze):
    partial, losses, _ = stepped(freeze)
    changes = partial.changed()
    moved = {path for path, change in changes.items() if change > 0}
    assert moved == {path for path in changes if group_of(path) not in freeze}
    assert len(moved) == sum(count for group, count in LEAVES.items() if group not in freeze)
    assert losses[2] < losses[0]
    # Moments for what is trained, the counter of steps, and nothing else.
    assert parameters.flatten(partial.adam().mu).keys() == parameters.flatten(partial.adam().nu).keys() == moved
    assert len(jax.tree.leaves(partial.state.opt_state)) == 2 * len(moved) + 1


def test_every_choice_of_groups_has_its_state(start):
    """All fifteen: shapes of what would be trained, and moments beside nothing else."""
    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    choices = [f for n in range(4) for f in itertools.combinations(parameters.GROUPS, n)]
    for freeze in choices:
        config = settings(freeze, frozen_dtype="bfloat16")
        trainable = Trainable.from_config(start.cfg, config)
        tx = optimizers.make(start.cfg, config.optimizer, trainable.trained_rows)
        state = steps.abstract_state(start.cfg, tx, mesh, trainable)
        count = sum(leaves for group, leaves in LEAVES.items() if group not in freeze)
        assert len(jax.tree.leaves(state.opt_state)) == 2 * count + 1
        assert len(jax.tree.leaves(state.params)) == sum(LEAVES.values())
        for path, leaf in parameters.flatten(state.params).items():
            assert leaf.dtype == jnp.float32 or group_of(path) in freeze
    assert len(choices) == 15


def test_gradients_do_not_depend_on_what_is_frozen(stepped):
    """Every group's gradient, from the runs that train it."""
    runs = [(freeze, stepped(freeze)) for freeze in FROZEN]
    assert len({losses[0] for _, (_, losses, _) in runs}) <= 2
    for group in LEAVES:
        first, *others = (state.mu for freeze, (_, _, state) in runs if group not in freeze)
        names = [path for path in first if group_of(path) == group and path[-1] != "qkv_bias"]
        scale = max(np.abs(first[path]).max() for path in names)
        assert others
        assert scale > 1e-5
        for other in others:
            for path in names:
                np.testing.assert_allclose(other[path], first[path], atol=1e-5 * scale, err_msg=str(path))


def test_less_memory_the_more_is_frozen(stepped):
    """What the compiled step holds: no moments of frozen groups, and no activations for gradients nobody asks for."""
    used = {freeze: stepped(freeze)[0].compiled.memory_analysis() for freeze in FROZEN}
    for freeze, memory in used.items():
        partial = stepped(freeze)[0]
        sizes = {path: value.nbytes for path, value in partial.params.items()}
        moments = 2 * sum(size for path, size in sizes.items() if group_of(path) not in freeze)
        held = sum(value.nbytes for value in partial.batch.values()) + sum(sizes.values()) + moments
        assert held <= memory.argument_size_in_bytes < held + 64
    temporary = {freeze: memory.temp_size_in_bytes for freeze, memory in used.items()}
    assert temporary["vision",] < 0.8 * min(temporary["decoder",], temporary["merger", "embeddings"])


def test_frozen_matrices_in_bfloat16(start):
    """Of a model released in bfloat16 nothing is lost: the same losses, from half the bytes."""
    released = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(np.float32), start.params)
    freeze, losses, states = ("vision", "merger", "decoder"), [], []
    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    for dtype in ("float32", "bfloat16"):
        config = settings(freeze, frozen_dtype=dtype)
        trainable = Trainable.from_config(start.cfg, config)
        tx = optimizers.make(start.cfg, config.optimizer, trainable.trained_rows)
        states.append(flat(steps.create_state(start.cfg, released, tx, mesh, trainable).params))
        evaluate = steps.make_evaluate(start.cfg, mesh, groups=4, dtype=jnp.bfloat16, trainable=trainable)
        losses.append(np.asarray(evaluate(parameters.nest(states[-1]), start.batch)["loss"]))
    np.testing.assert_array_equal(*losses)
    assert np.count_nonzero(losses[0]) == 4
    rows = parameters.table(start.cfg)
    halved = {row.path for row in rows if states[1][row.path].dtype == jnp.bfloat16}
    assert halved == {row.path for row in rows if row.group in freeze and len(row.hf_shape) > 1}
    for path, value in states[0].items():
        np.testing.assert_array_equal(value, states[1][path].astype(np.float32))


@pytest.mark.parametrize("freeze", FROZEN, ids="+".join)
def test_rates_by_group(stepped, freeze):
    """The first step of Adam from its moments, times the factor of the group."""
    partial, _, (mu, nu, params) = stepped(freeze)
    for path, moment in mu.items():
        factor = RATES.get(group_of(path), 1.0)
        change, update = params[path] - partial.params[path], (moment / 0.1) / (np.sqrt(nu[path] / 0.001) + 1e-8)
        np.testing.assert_allclose(change, -1e-3 * factor * update, atol=2e-6)
        assert np.abs(change).max() > 0.9e-3 * factor


def run(model, data, workdir, **fields):
    """The config of a run of four steps without held-out data."""
    config = small_run(model, data, workdir)
    config.train.max_steps, config.train.save_every, config.eval.loss_batches = 4, 2, 0
    config.train.update(fields)
    return config


@pytest.mark.slow
def test_resumed_runs_end_bit_equal(tiny_model, tmp_path):
    data, freeze = write_records(tmp_path / "data"), ("vision", "merger", "embeddings")
    assert loop.train(run(tiny_model, data, tmp_path / "whole", freeze=freeze))
    shutil.copytree(tmp_path / "whole" / "checkpoints" / "2", tmp_path / "resumed" / "checkpoints" / "2")
    assert loop.train(run(tiny_model, data, tmp_path / "resumed", freeze=freeze))
    whole, resumed = ([row["loss"] for row in rows_of_metrics(tmp_path / name)] for name in ("whole", "resumed"))
    assert len(whole) == 4
    assert whole[2:] == resumed
    name = f"export/{hf.SINGLE}"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "resumed" / name).read_bytes()
    before, after = flat(hf.load(tiny_model)[1]), flat(hf.load(tmp_path / "whole" / "export")[1])
    same = {path for path in before if before[path].tobytes() == after[path].tobytes()}
    assert {group_of(path) for path in same} == set(freeze)
    assert len(same) == sum(LEAVES[group] for group in freeze)
    with pytest.raises(
        UserError, match=r"the saved run has frozen = \['embeddings', .*\], the configuration None; use"
    ):
        loop.train(run(tiny_model, data, tmp_path / "whole"))


@pytest.mark.parametrize(
    ("fields", "rates", "message"),
    [
        ({"freeze": ("tower",)}, {}, r"train\.freeze is \('tower',\), but must be groups of vision, merger, decoder, "),
        ({"freeze": parameters.GROUPS}, {}, r"train\.freeze names all groups .*: nothing is left to train"),
        ({"frozen_dtype": "int8"}, {}, r"train\.frozen_dtype is 'int8', but must be one of 'float32', 'bfloat16'"),
        ({}, {"vision": 0.0}, r"optimizer\.rates\.vision is 0\.0, but must be finite and above 0; to freeze it, name"),
    ],
)
def test_settings_are_judged_before_any_work(tiny_model, tmp_path, fields, rates, message):
    config = run(tiny_model, write_records(tmp_path / "data"), tmp_path / "workdir", **fields)
    config.optimizer.rates.update(rates)
    with pytest.raises(UserError, match=message) as caught:
        loop.train(config)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "workdir").exists()
