"""Configs: fields keep their types, unknown ones are named with the nearest, shipped configs load."""

import re
import shutil

import pytest

from vlm3_jax import config as configs
from vlm3_jax.data.sources import check_entry, component_config
from vlm3_jax.errors import UserError

SHIPPED = sorted(path.stem for path in configs.config_dir().glob("*.py"))


@pytest.fixture
def config():
    config = configs.base()
    config.data.components.rooms = component_config(path="rooms", weight=2.0)
    return config


@pytest.mark.parametrize(
    ("assignment", "path", "value"),
    [
        ("seed=7", "seed", 7),
        ("model=a/b=c", "model", "a/b=c"),
        ("model=", "model", ""),
        ("optimizer.learning_rate=1e-4", "optimizer.learning_rate", 1e-4),
        ("optimizer.learning_rate=1", "optimizer.learning_rate", 1.0),
        ("data.rows=16", "data.rows", 16),
        ("mesh.fsdp=-1", "mesh.fsdp", -1),
        ("eval.variants=model,blind", "eval.variants", ("model", "blind")),
        ("data.components.rooms.weight=3", "data.components.rooms.weight", 3.0),
        ("data.components.rooms.think=true", "data.components.rooms.think", True),
        ("data.components.rooms.think=0", "data.components.rooms.think", False),
        ("data.components.rooms.path=gs://bucket/a=b", "data.components.rooms.path", "gs://bucket/a=b"),
    ],
)
def test_an_override_takes_the_type_of_its_field(config, assignment, path, value):
    configs.override(config, [assignment])
    for key in path.split("."):
        config = config[key]
    assert config == value
    assert type(config) is type(value)


def test_the_last_override_wins(config):
    configs.override(config, ["seed=1", "data.rows=2", "seed=3"])
    assert (config.seed, config.data.rows) == (3, 2)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        (
            "optimizer.learning_rat=1",
            "--config.optimizer.learning_rat: the config has no field 'learning_rat'; did you mean 'learning_rate'?",
        ),
        ("optimiser.clip=1", "--config.optimiser.clip: the config has no field 'optimiser'; did you mean 'optimizer'?"),
        ("data.components.room.weight=1", "has no field 'room'; did you mean 'rooms'?"),
        ("zzz=1", "--config.zzz: the config has no field 'zzz'"),
        ("seed.more=1", "--config.seed.more: the config has no field 'more'"),
        ("seed", "--config.seed: write --config.seed=VALUE"),
        ("seed=many", "--config.seed=many: not a int (invalid literal"),
        ("data.rows=1.5", "--config.data.rows=1.5: not a int"),
        ("optimizer.clip=small", "--config.optimizer.clip=small: not a float"),
        ("data.components.rooms.think=perhaps", "not a bool ('perhaps')"),
        ("optimizer=adam", "--config.optimizer=adam: not a ConfigDict (it is a group of fields)"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_explained(config, assignment, message):
    before = config.to_dict()
    with pytest.raises(UserError, match=re.escape(message)):
        configs.override(config, [assignment])
    assert config.to_dict() == before


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_are_found_by_name(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = configs.load(name)
    base = configs.base()
    # Strict: a config only sets fields that the base has, in their types.
    for key, value in config.items():
        assert type(value) is type(base[key]), key
        if hasattr(value, "keys"):
            assert set(value.keys()) == set(base[key].keys()), key
    assert config.data.components
    assert set(config.eval.components) == set(config.data.components)
    for entry_name, entry in (*config.data.components.items(), *config.eval.components.items()):
        check_entry(entry_name, entry)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_config_stands_alone(name, tmp_path):
    alone = shutil.copy(configs.config_dir() / f"{name}.py", tmp_path)
    assert configs.load(alone).to_dict() == configs.load(name).to_dict()


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_are_in_range(name):
    configs.check(configs.load(name))


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("seed=-1", "seed is -1, but must be at least 0 and below 2^63"),
        (f"seed={2**63}", f"seed is {2**63}, but must be at least 0 and below 2^63"),
        ("data.rows=0", "data.rows is 0, but must be at least 1"),
        ("data.workers=-1", "data.workers is -1, but must be at least 0"),
        ("data.prefetch=-1", "data.prefetch is -1, but must be at least 0"),
        ("data.max_bad_fraction=-1", "data.max_bad_fraction is -1.0, but must be from 0 to 1"),
        ("data.max_bad_fraction=1.01", "data.max_bad_fraction is 1.01, but must be from 0 to 1"),
        ("data.max_bad_fraction=nan", "data.max_bad_fraction is nan, but must be from 0 to 1"),
        ("data.worker_timeout_s=0", "data.worker_timeout_s is 0.0, but must be above 0"),
        ("data.worker_timeout_s=nan", "data.worker_timeout_s is nan, but must be above 0"),
        ("data.first_answer_weight=-1", "data.first_answer_weight is -1.0, but must be finite and at least 0"),
        ("data.first_answer_weight=nan", "data.first_answer_weight is nan, but must be finite and at least 0"),
        ("data.first_answer_weight=inf", "data.first_answer_weight is inf, but must be finite and at least 0"),
        ("mesh.replica=0", "mesh.replica is 0, but must be at least 1"),
        ("mesh.fsdp=0", "mesh.fsdp is 0, but must be at least 1, or -1 for what the others leave"),
        ("mesh.tensor=-1", "mesh.tensor is -1, but must be at least 1"),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate is nan, but must be finite and above 0"),
        ("optimizer.b2=1", "optimizer.b2 is 1.0, but must be at least 0 and below 1"),
        ("optimizer.eps=0", "optimizer.eps is 0.0, but must be finite and above 0"),
        ("optimizer.clip=-1", "optimizer.clip is -1.0, but must be finite and at least 0 (0: no clipping)"),
        ("optimizer.warmup=100", "optimizer.warmup is 100.0, but must be a share of the run: at least 0 and below 1"),
        ("optimizer.warmup=1", "optimizer.warmup is 1.0, but must be a share of the run: at least 0 and below 1"),
        ("optimizer.tail=0", "optimizer.tail is 0.0, but must be a share of the run: above 0 and at most 1"),
        ("optimizer.final=-0.1", "optimizer.final is -0.1, but must be a share of the rate: from 0 to 1"),
        ("train.max_skipped=0", "train.max_skipped is 0, but must be at least 1"),
        ("eval.loss_batches=-1", "eval.loss_batches is -1, but must be at least 0"),
    ],
)
def test_numbers_out_of_range_are_named(config, assignment, message):
    configs.check(config)
    configs.override(config, [assignment])
    with pytest.raises(UserError) as caught:
        configs.check(config)
    assert str(caught.value) == message


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1.0])
def test_weight_and_focal_length_of_an_entry_are_finite(value):
    with pytest.raises(UserError, match=f"mixture entry 'rooms': weight = {value} is out of range"):
        check_entry("rooms", {"path": "rooms", "weight": value})
    with pytest.raises(UserError, match=f"mixture entry 'rooms': resize is 'focal:{value}'; write focal:PX"):
        check_entry("rooms", {"path": "rooms", "resize": f"focal:{value}"})


def test_demo_takes_an_argument():
    long, short, plain = (configs.load(name).train.samples for name in ("demo:long", "demo:short", "demo"))
    assert long > short == plain


def test_a_config_may_be_any_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from vlm3_jax import config\n\n"
        "def get_config(argument='none'):\n    c = config.base()\n    c.workdir = argument\n    return c\n"
    )
    assert configs.load(str(path)).workdir == "none"
    assert configs.load(f"{path}:somewhere:else").workdir == "somewhere:else"


def test_an_unknown_config_is_named():
    with pytest.raises(
        UserError, match=r"--config: no file .*nothere\.py; shipped configs are .*demo, .*ibims1_overfit"
    ):
        configs.load("nothere")
    with pytest.raises(UserError, match=r"--config: no file a/b\.py"):
        configs.load("a/b.py")
