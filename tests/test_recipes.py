"""The paper's recipes: what was published stands in them, and their rows hold the batch that was published."""

import re

import pytest

from vlm3_jax import config as configs
from vlm3_jax import mixtures, weighting
from vlm3_jax.config import protocol_of
from vlm3_jax.data.packing import RowBudget
from vlm3_jax.errors import UserError
from vlm3_jax.model import flops
from vlm3_jax.planning.plan import model_config
from vlm3_jax.planning.samples import total_rows, typical_rows

# samples, questions, rate, batch, steps, resize rule; S and P.
PUBLISHED = {
    "depth": (32e6, 10, 5.5e-5, 1344, 23_810, "focal:1000", 7168, 16_384),
    "objects": (1e6, 6, 3.5e-4, 640, 1562, "focal:1000", 6656, 16_384),
    "correspondence": (80e6, 10, 2e-5, 2816, 28_409, "longest:1024", 8704, 22_528),
    "pose": (10e6, 3, 5e-5, 448, 22_321, "focal:750:per_axis", 12_288, 45_056),
}
NAMES = [*PUBLISHED, "joint"]


def weights(config) -> dict:
    """How a run weighs the components, by the numbers of records that the tables tell."""
    data = config.data
    sizes = {name: entry.records for name, entry in data.components.items()}
    return weighting.resolve(data.components, data.groups, data.weights, sizes, config.train.samples)


def planned(name):
    config = configs.load(name)
    data = config.data
    budget = RowBudget(data.row_tokens, data.row_patches, data.row_targets, pair_block=data.pair_block)
    cfg = model_config(config.model)
    return config, cfg, typical_rows(config, cfg, budget)


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_was_published(name):
    samples, questions, rate, batch, steps, resize, S, P = PUBLISHED[name]
    config = configs.load(name)
    assert config.train.samples == samples
    assert config.train.batch == batch
    assert samples / batch == pytest.approx(steps, rel=1e-3)
    opt = config.optimizer
    assert (opt.learning_rate, opt.clip, opt.warmup, opt.schedule) == (rate, 0.02, 0.1, "cosine")
    assert (opt.b1, opt.b2, opt.eps, opt.weight_decay) == (0.9, 0.999, 1e-8, 0.0)
    assert (config.train.dtype, config.data.row_tokens, config.data.row_patches) == ("bfloat16", S, P)
    for entry in config.data.components.values():
        asked = protocol_of(entry)
        assert (asked.task, asked.questions, asked.wording) == (name, questions, "release")
        assert str(asked.resize) == resize


def test_depth_mixture_has_the_published_shares():
    found = weights(configs.load("depth"))
    assert sum(found.values()) == pytest.approx(2.566)
    shares = {name: 100 * weight / 2.566 for name, weight in found.items()}
    published = {"argoverse2": 8.2, "waymo": 1.6, "taskonomy": 19.9, "hm3d": 30.4, "matterport3d": 0.23}
    assert {name: shares[name] for name in published} == pytest.approx(published, rel=0.03)


def test_pairs_are_weighed_by_their_number():
    assert mixtures.PAIRS.weights == {name: count / 1e6 for name, count in mixtures.PAIRS.records.items()}
    assert sum(mixtures.PAIRS.records.values()) == 9_903_000
    config = configs.load("pose")
    config.data.weights = "size"
    by_size, table = weights(config), weights(configs.load("pose"))
    assert {name: weight / 1e6 for name, weight in by_size.items()} == pytest.approx(table)


def test_the_joint_recipe_weighs_tasks_and_then_their_sets():
    config = configs.load("joint")
    found = weights(config)
    for task, share in mixtures.JOINT.items():
        assert sum(w for name, w in found.items() if name.startswith(task)) == pytest.approx(share)
    assert found["depth_hm3d"] / found["depth_taskonomy"] == pytest.approx(0.78 / 0.51)
    # Another rule within the task leaves its share alone.
    config.data.groups.depth.weights = "uniform"
    uniform = weights(config)
    assert [w for name, w in uniform.items() if name.startswith("depth")] == pytest.approx([0.4 / 8] * 8)
    assert uniform["pose_ase"] == found["pose_ase"]


@pytest.mark.parametrize("name", NAMES)
def test_a_step_holds_the_batch(name):
    config, cfg, rows = planned(name)
    assert rows.samples * total_rows(config) == pytest.approx(config.train.batch, rel=0.02)
    # There is room for the fullest row, and attention stays in bounds.
    pairs, patch_pairs, targets = rows.needs
    assert pairs <= config.data.pairs
    assert patch_pairs <= config.data.patch_pairs
    assert targets <= config.data.row_targets
    assert rows.looked_at[0] <= 1.3 * rows.lengths.text_pairs
    assert rows.looked_at[1] <= 1.3 * rows.lengths.vision_pairs
    assert rows.token_fill > 0.75
    if name == "depth":
        # 61 TFLOP at 912 visual tokens and 70 at 1,102; these sizes have 1,037 on average.
        assert rows.token_fill > 0.9
        assert flops.training(cfg, rows.lengths) / rows.samples == pytest.approx(67.8e12, rel=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_the_size_is_one_argument(name):
    for size in ("2b", "4b", "8b", "32b"):
        config = configs.load(f"{name}:{size}")
        assert config.model == f"Qwen/Qwen3-VL-{size.upper()}-Instruct"
        assert config.workdir == f"runs/{name}-{size}"
    assert configs.load(name).model == configs.load(f"{name}:4b").model
    with pytest.raises(UserError, match=f"--config={name}:7b: choose {name}:2b or"):
        configs.load(f"{name}:7b")


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("depth:8b,sets=waymo+argoverse2", {"argoverse2": 0.21, "waymo": 0.04}),
        ("depth:sets=nuscenes", {"nuscenes": 0.01}),
        ("objects:2b,sets=open_spatial", {"open_spatial": 1.0}),
        ("correspondence:4b,sets=ase+dl3dv", {"ase": 2.0, "dl3dv": 2.6}),
        ("pose:4b,sets=realestate10k", {"realestate10k": 0.88}),
        # Shares of the tasks stay what they are to each other; a task without any of the sets is left out.
        (
            "joint:32b,sets=waymo+hm3d+realestate10k+ase",
            {"depth_hm3d": 0.4 * 0.78 / 0.82, "depth_waymo": 0.4 * 0.04 / 0.82, "correspondence_ase": 0.3}
            | {"pose_ase": 0.2 * 2 / 2.88, "pose_realestate10k": 0.2 * 0.88 / 2.88},
        ),
    ],
)
def test_the_sets_that_one_has(argument, expected):
    config = configs.load(argument)
    assert weights(config) == pytest.approx(expected)
    assert set(config.eval.components) == set(expected)
    whole = configs.load(argument.partition(":")[0])
    size = re.search("[0-9]+b", argument)
    assert config.model == f"Qwen/Qwen3-VL-{size[0].upper() if size else '4B'}-Instruct"
    for name, entry in config.data.components.items():
        assert entry.path == whole.data.components[name].path
    assert config.train == whole.train


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "depth:4b,sets=argoverse",
            "--config=depth:4b,sets=argoverse: no set 'argoverse'; there are argoverse2, waymo, .*",
        ),
        ("depth:sets=", "no set ''; there are argoverse2"),
        ("pose:sets=ase+waymo", "no set 'waymo'; there are blended_mvs, .*"),
        ("correspondence:sets=realestate10k", "no set 'realestate10k'; there are"),
        ("joint:sets=ase+all", "no set 'all'; there are argoverse2, .*realestate10k, open_spatial$"),
        ("depth:4b,set=waymo", "--config=depth:4b,set=waymo: choose depth:2b or .*; or sets, as in depth:4b,sets="),
    ],
)
def test_an_unknown_set_is_named(argument, message):
    with pytest.raises(UserError, match=message):
        configs.load(argument)


def test_data_are_looked_for_where_the_environment_says(monkeypatch):
    monkeypatch.setenv("VLM3_DATA", "/mnt/sets")
    config = configs.load("joint")
    assert config.data.components.depth_waymo.path == "/mnt/sets/depth/waymo/train"
    assert config.eval.components.pose_realestate10k.path == "/mnt/sets/pairs/realestate10k/held_out"
    assert sum(weights(config).values()) == pytest.approx(1)
    monkeypatch.delenv("VLM3_DATA")
    assert configs.load("depth").data.components.waymo.path == "runs/data/depth/waymo/train"
