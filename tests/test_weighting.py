"""How components are weighed: every rule against its definition, groups, tables in files, and what is told of each."""

import json

import numpy as np
import pytest

from vlm3_jax import config as configs
from vlm3_jax import config_rules, weighting
from vlm3_jax.config import component_config, group_config
from vlm3_jax.errors import UserError

SIZES = {"a": 100, "b": 400, "c": 2500}


def resolved(rule, groups=None, draws=0, sizes=SIZES, **fields):
    """Weights of components a (weight 1), b (2), c (5) and d (0), with the given fields by name."""
    table = {name: component_config(weight=w) for name, w in {"a": 1.0, "b": 2.0, "c": 5.0, "d": 0.0}.items()}
    for name, changes in fields.items():
        table[name].update(changes)
    groups = {name: group_config(**g) for name, g in (groups or {}).items()}
    return weighting.resolve(table, groups, rule, sizes, draws)


def shares(weights):
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("table", {"a": 1, "b": 2, "c": 5}),
        ("uniform", {"a": 1, "b": 1, "c": 1}),
        ("size", SIZES),
        ("size^0.5", {"a": 10, "b": 20, "c": 50}),
        ("size^0", {"a": 1, "b": 1, "c": 1}),
        ("unimax:1", {"a": 100, "b": 400, "c": 700}),
        ("unimax:4", {"a": 400, "b": 400, "c": 400}),
        ("unimax:0.1", SIZES),
    ],
)
def test_every_rule(rule, expected):
    """Of 1,200 draws: with one epoch at most a and b are read once and c has the rest; with four all have as many."""
    assert shares(resolved(rule, draws=1200)) == pytest.approx(shares(expected))


def test_the_weights_of_a_table_stay_what_they_are():
    """Saved runs compare them: a run that goes on must not find them changed in the last digit."""
    assert resolved("table", a={"weight": 0.1}) == {"a": 0.1, "b": 2.0, "c": 5.0}


def test_unimax_fills_up_from_the_smallest():
    """Against the published algorithm's two properties, over random mixtures: no one above the cap, nobody below it who
    has less than another.
    """
    rng = np.random.default_rng(0)
    for _ in range(200):
        sizes = rng.integers(1, 10_000, rng.integers(1, 9)).tolist()
        epochs, draws = float(rng.uniform(0.5, 5)), float(rng.uniform(1, 30_000))
        given = weighting.unimax(sizes, epochs, draws)
        assert sum(given) == pytest.approx(min(draws, epochs * sum(sizes)))
        below = [g for g, size in zip(given, sizes) if g < 0.999 * epochs * size]
        assert all(g <= epochs * size * (1 + 1e-9) for g, size in zip(given, sizes))
        assert max(below, default=0) == pytest.approx(min(below, default=0))
        assert not below or max(given) <= max(below) * (1 + 1e-9)


def test_groups_are_weighed_first_and_divide_their_weight():
    groups = {"one": {"weight": 3.0, "weights": "size"}}
    found = resolved("table", groups, a={"group": "one"}, c={"group": "one"})
    assert found == pytest.approx({"a": 3 * 100 / 2600, "b": 2, "c": 3 * 2500 / 2600})
    assert list(found) == ["a", "b", "c"]
    # By size a group is as large as its components together; even, it is one of two.
    for rule, share in (("size", 2600 / 3000), ("uniform", 0.5)):
        found = shares(resolved(rule, groups, a={"group": "one"}, c={"group": "one"}))
        assert found["a"] + found["c"] == pytest.approx(share)
        assert found["a"] / found["c"] == pytest.approx(100 / 2500)
    # Within a group an epoch cap goes by the group's part of the draws: 600 of 1,000, of which a may give 200.
    groups = {"one": {"weight": 3.0, "weights": "unimax:2"}}
    found = resolved("table", groups, 1000, a={"group": "one"}, c={"group": "one"})
    assert found == pytest.approx({"a": 1.0, "b": 2.0, "c": 2.0})


def test_a_file_weighs_all_components_whatever_their_groups(tmp_path):
    path = tmp_path / "t.json"
    weighting.write_table(path, weighting.Table({"a": 0.2, "b": 0.0, "c": 0.8, "d": 1.0}, "mine"))
    found = resolved(str(path), {"one": {"weight": 9.0}}, a={"group": "one"})
    assert found == {"a": 0.2, "b": 0.0, "c": 0.8}
    # In a group it weighs the components of the group.
    found = resolved("table", {"one": {"weight": 3.0, "weights": str(path)}}, a={"group": "one"}, c={"group": "one"})
    assert found == pytest.approx({"a": 0.6, "b": 2.0, "c": 2.4})


def test_a_table_comes_back_as_it_was_written(tmp_path):
    name, image = str(tmp_path / "t.json"), (640, 480, 525.5)
    table = weighting.Table({"a": 1.0, "b": 0.0}, "from here", {"a": 7}, {"a": image}, {"runs": [1, 2]}, name)
    weighting.write_table(table.name, table)
    assert weighting.read_table(table.name) == table
    with pytest.raises(ValueError, match="finite"):
        weighting.write_table(tmp_path / "u.json", weighting.Table({"a": float("nan")}))
    assert not (tmp_path / "u.json").exists()


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"version": 1, "weights": {"a": 1, "b": 1}}, r"t\.json: weights has no 'c'; give every component a weight"),
        ({"version": 1, "weights": {"a": 1, "b": 1, "c": 1, "e": 1}}, "names 'e', which is no component"),
        ({"version": 1, "weights": {"a": 0, "b": 0, "c": 0}}, "all weights of a, b, c are 0"),
        ({"version": 1, "weights": {"a": -1, "b": 1, "c": 1}}, r"t\.json: weights: a is -1, but must be at least 0"),
        ({"version": 1, "weights": {"a": "1"}}, r"t\.json: weights: a must be a number, got '1'"),
        ({"version": 1, "weights": {}}, "weights is empty"),
        ({"version": 2, "weights": {"a": 1}}, "version = 2 is not supported"),
        ([1], "expected a JSON object"),
    ],
)
def test_a_table_that_does_not_do(tmp_path, tree, message):
    (tmp_path / "t.json").write_text(json.dumps(tree))
    with pytest.raises(UserError, match=message):
        resolved(str(tmp_path / "t.json"))


def test_what_a_rule_lacks_is_told():
    with pytest.raises(UserError, match=r"no\.json: no such table of weights"):
        resolved("no.json")
    with pytest.raises(
        UserError, match=r"data\.weights = 'size' asks how many records 'b' has.*components\.b\.records"
    ):
        resolved("size", sizes={"a": 1, "c": 1})
    with pytest.raises(UserError, match=r"data\.weights = 'unimax:4' asks how long the run is; set train\.samples"):
        resolved("unimax:4")
    with pytest.raises(UserError, match=r"data\.groups\.one\.weights = 'size' asks how many records 'a' has"):
        resolved("table", {"one": {"weights": "size"}}, sizes={}, a={"group": "one"})


@pytest.mark.parametrize("text", ["sizes", "size^", "size^-1", "unimax", "unimax:0", "unimax:x", "weights.txt", ""])
def test_a_rule_that_is_none(text):
    with pytest.raises(ValueError, match="weights are"):
        weighting.Rule.parse(text)
    config = configs.base()
    config.data.weights = text
    with pytest.raises(UserError, match=r'data\.weights is .* must be one of "table", "uniform", "size"'):
        config_rules.check(config)


def test_groups_in_a_config():
    config = configs.base()
    config.data.components.a = component_config(path="x", group="one")
    with pytest.raises(UserError, match=r"component 'a': data\.groups has no group 'one' \(there are: none\)"):
        config_rules.check(config)
    configs.override(
        config, ["data.groups.one.weight=0.25", "data.groups.one.weights=size^0.5", "data.weights=uniform"]
    )
    config_rules.check(config)
    assert config.data.groups.one.to_dict() == {"weight": 0.25, "weights": "size^0.5"}
    for field, value, message in (
        ("weight", 0.0, r"data\.groups\.one: weight = 0\.0 must be above 0; to leave a group out"),
        ("weights", "big", r"data\.groups\.one: weights are 'big'"),
    ):
        wrong = config.copy_and_resolve_references()
        wrong.data.groups.one[field] = value
        with pytest.raises(UserError, match=message):
            config_rules.check(wrong)
    with pytest.raises(UserError, match="a group has no field 'weigth'; did you mean 'weight'"):
        group_config(weigth=1.0)
