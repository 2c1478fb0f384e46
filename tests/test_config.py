"""Configs: fields keep their types, unknown ones are named with the nearest, shipped configs load."""

import re
import shutil

import ml_collections
import pytest

from vlm3_jax import config as configs
from vlm3_jax import config_rules
from vlm3_jax.checkpoint import copying
from vlm3_jax.config import component_config
from vlm3_jax.config_rules import check_component
from vlm3_jax.errors import UserError
from vlm3_jax.model import attention, vlm
from vlm3_jax.model import params as parameters
from vlm3_jax.synth import options as synth_options
from vlm3_jax.train import trainable

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
        (
            "data.components.room.weight=1",
            "has no field 'room'; did you mean 'rooms'?; a new component needs its path "
            "(--config.data.components.room.path=...)",
        ),
        ("eval.components.rooms.limit=1", "has no field 'rooms'; a new component needs its path (--config.eval.compo"),
        ("data.components..path=a", "has no field ''"),
        ("data.components.rooms.paht=a", "has no field 'paht'; did you mean 'path'?"),
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


def test_a_component_can_be_added(config):
    added = [
        "data.components.mine.task=pose",
        "data.components.mine.path=shards/*",
        "data.components.mine.size=64,48,5.5",
    ]
    added += ["eval.components.mine.path=held_out", "data.components.rooms.weight=0"]
    configs.override(config, added)
    expected = component_config(path="shards/*", task="pose", size=(64.0, 48.0, 5.5))
    assert config.data.components.mine == expected
    assert config.data.components.rooms.weight == 0
    assert config.eval.components.mine == component_config(path="held_out")
    check_component("mine", config.data.components.mine)
    for wrong, message in {
        "data.components.other.wieght=1": "has no field 'wieght'; did you mean 'weight'?",
        "data.components.other=1": "not a ConfigDict (it is a group of fields)",
        "data.components.other.questions=many": "not a int",
        "data.components.other.size=a,b,c": "not a tuple (could not convert string to float",
    }.items():
        with pytest.raises(UserError, match=re.escape(message)):
            configs.override(config, ["data.components.other.path=x", wrong])


def test_a_file_cannot_set_what_nobody_reads():
    for field, message in {
        "batch_size": "config.batch_size: there is no such field",
        "data.row_token": "config.data.row_token: there is no such field; did you mean 'row_tokens'?",
        "train.lora.rnk": "config.train.lora.rnk: there is no such field; did you mean 'rank'?",
    }.items():
        config, (*above, last) = configs.base(), field.split(".")
        node = config
        for key in above:
            node = node[key]
        node[last] = 1
        with pytest.raises(UserError, match=re.escape(message)):
            config_rules.check(config)
    config = configs.base()
    config.data.components.mine = component_config(path="x", weight=-1.0)
    with pytest.raises(UserError, match="component 'mine': weight"):
        config_rules.check(config)


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
        check_component(entry_name, entry)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_config_stands_alone(name, tmp_path):
    alone = shutil.copy(configs.config_dir() / f"{name}.py", tmp_path)
    assert configs.load(alone).to_dict() == configs.load(name).to_dict()


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_are_in_range(name):
    config_rules.check(configs.load(name))


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
        ("optimizer.rates.vision=0", "optimizer.rates.vision is 0.0, but must be finite and above 0; to freeze it, "),
        ("train.accumulation=0", "train.accumulation is 0, but must be at least 1"),
        ("train.log_every=0", "train.log_every is 0, but must be at least 1"),
        ("train.save_every=-1", "train.save_every is -1, but must be at least 0"),
        ("train.max_skipped=0", "train.max_skipped is 0, but must be at least 1"),
        ("train.z_loss=nan", "train.z_loss is nan, but must be finite and at least 0"),
        ("train.lora.rank=-1", "train.lora.rank is -1, but must be at least 0"),
        ("train.lora.alpha=0", "train.lora.alpha is 0.0, but must be finite and above 0"),
        ("train.freeze=tower", "train.freeze is ('tower',), but must be groups of vision, merger, decoder, embeddings"),
        *((f"train.profile={text}", f"train.profile is {text!r}, but must be a window of steps FIRST:LAST, such as 20:")
          for text in ("5", "5:", "7:3", "a:b", "0:4")),
        ("eval.loss_batches=-1", "eval.loss_batches is -1, but must be at least 0"),
        ("eval.max_new_tokens=0", "eval.max_new_tokens is 0, but must be at least 1"),
        ("eval.variants=blind", "eval.variants is ('blind',), but must be of model, blind, shuffled, model among them"),
        ("eval.variants=model,deaf", "eval.variants is ('model', 'deaf'), but must be of model, blind, shuffled,"),
        ("data.row_tokens=0", "data.row_tokens is 0, but must be at least 1"),
        ("data.row_patches=-4", "data.row_patches is -4, but must be at least 0"),
        ("data.pair_block=1000", "data.row_tokens = 7168 must be a multiple of data.pair_block = 1000"),
        ("data.pair_block=7168", "data.row_patches = 16384 must be a multiple of data.pair_block = 7168"),
        ("train.keep_best=eval_loss/a", "train.keep_best: 'eval_loss/a' is not measured; choose one of ''"),
        *((f"{field}=other", f"{field} is 'other', but must be one of {', '.join(map(repr, allowed.names))}")
          for field, allowed in config_rules.ALLOWED.items() if allowed.names and field != "eval.variants"),
    ],
)  # fmt: skip
def test_values_that_are_not_allowed_are_named(config, assignment, message):
    config_rules.check(config)
    configs.override(config, [assignment])
    with pytest.raises(UserError) as caught:
        config_rules.check(config)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["train.freeze=vision", "train.lora.rank=4"], "train.freeze: with train.lora.rank above 0 only the adapters"),
        ([f"train.freeze={','.join(parameters.GROUPS)}"], "train.freeze names all groups"),
    ],
)
def test_values_that_do_not_go_together_are_named(config, assignments, message):
    configs.override(config, assignments)
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        config_rules.check(config)


def test_every_number_and_choice_is_judged():
    """A field without a rule is a text that files or the model decide on."""
    free = {"model", "base", "workdir", "train.wandb", "train.keep_best", "train.lora.targets"}
    free |= {"data.components", "eval.components"}

    def fields(node, above=""):
        for key, value in node.items():
            if isinstance(value, ml_collections.ConfigDict) and f"{above}{key}" not in free:
                yield from fields(value, f"{above}{key}.")
            else:
                yield f"{above}{key}"

    assert set(fields(configs.base())) - free == set(config_rules.ALLOWED)


@pytest.mark.parametrize(
    ("field", "names"),
    [
        ("synth.motion", synth_options.MOTIONS),
        ("train.dtype", trainable.DTYPES),
        ("train.frozen_dtype", trainable.DTYPES),
        ("train.remat", vlm.REMAT),
        ("train.attention", attention.BACK_ENDS),
        ("train.export", ("", *copying.DTYPES)),
    ],
)
def test_the_choices_are_those_of_the_code(field, names):
    assert set(config_rules.ALLOWED[field].names) == set(names)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1.0])
def test_weight_and_focal_length_of_an_entry_are_finite(value):
    with pytest.raises(UserError, match=f"component 'rooms': weight = {value} is out of range"):
        check_component("rooms", {"path": "rooms", "weight": value})
    with pytest.raises(UserError, match=f"component 'rooms': resize is 'focal:{value}'; write focal:PX"):
        check_component("rooms", {"path": "rooms", "resize": f"focal:{value}"})


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
