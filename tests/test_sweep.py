"""A sweep: real short runs, what is finished is not run again, and a table that training takes as it is."""

import json

import numpy as np
import pytest

from tests.support import rows_of_metrics, small_run, write_records
from vlm3_jax import sweep as sweeps
from vlm3_jax import weighting
from vlm3_jax.checkpoint import tiny
from vlm3_jax.config import component_config
from vlm3_jax.data import mixing_law
from vlm3_jax.errors import UserError
from vlm3_jax.sweep import Plan, proposal, summary, sweep
from vlm3_jax.train import loop


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model and a shard of pairs."""
    folder = tmp_path_factory.mktemp("sweep")
    tiny.make(folder / "model", "test")
    write_records(folder / "data", 24)
    return folder


@pytest.fixture
def config(folder, tmp_path):
    config = small_run(folder / "model", folder / "data", tmp_path / "sweep")
    config.eval.components.match = component_config(**dict(config.data.components.match) | {"limit": 8})
    config.data.components.idle = component_config(**dict(config.data.components.match) | {"weight": 0.0})
    config.eval.loss_batches = 1
    return config.lock()


def losses(depth, match=1.0):
    return {"depth": {"loss": depth, "answers_alone": 2.0}, "match": {"loss": match, "answers_alone": 1.0}}


@pytest.mark.slow
def test_runs_are_trained_and_their_losses_become_a_table(config, tmp_path, monkeypatch):
    """Two components, one of the four runs for real; the losses of the others are written as a run writes them."""
    trained, really = [], loop.train

    def train(run):
        trained.append(run)
        if len(trained) > 1:
            return False
        return really(run)

    monkeypatch.setattr(sweeps.loop, "train", train)
    lines = []
    assert sweep(config, 4, 2, lines.append) is None
    assert lines[-1] == "stopped in run 2 of 4; the same command goes on from there"
    plan = Plan(**json.loads((tmp_path / "sweep" / "sweep.json").read_text())["plan"])
    assert plan.shares == {"depth": pytest.approx(2 / 3), "match": pytest.approx(1 / 3)}
    for number, run in enumerate(trained):
        weights = weighting.read_table(run.data.weights).weights
        assert weights == plan.weights(number) | {"idle": 0.0}
        assert run.train.samples == plan.samples
    assert plan.weights(0) == pytest.approx(plan.shares)
    done = tmp_path / "sweep" / "runs" / "0000"
    assert not (done / "checkpoints").exists()
    rows = rows_of_metrics(done)
    assert 1 <= sum("loss" in row for row in rows) <= 4
    found = json.loads((done / "score.json").read_text())["losses"]
    assert found["match"]["loss"] == rows[-1]["eval_loss/match"]
    assert found["depth"]["answers_alone"] == rows[-1]["answer_entropy/depth"]
    for number in (1, 2, 3):
        done = tmp_path / "sweep" / "runs" / f"000{number}"
        done.mkdir(exist_ok=True)
        (done / "score.json").write_text(json.dumps({"losses": losses(1.0)}))
    path = sweep(config, 4, 2, lines.append)
    assert len(trained) == 2
    table = weighting.read_table(path)
    assert sum(table.weights.values()) == pytest.approx(1)
    assert len(table.evidence["runs"]) == 4
    assert table.evidence["steps"] == 2
    # It is a table that a run takes; without the component that was left out it would not be.
    data = config.data
    assert weighting.resolve(data.components, data.groups, str(path), {}) == table.weights


def test_another_sweep_in_the_folder_is_refused(config, monkeypatch):
    monkeypatch.setattr(sweeps.loop, "train", lambda run: False)
    assert sweep(config, 4, 2, lambda line: None) is None
    changed = config.copy_and_resolve_references().unlock()
    changed.data.rows, changed.eval.loss_batches = 4, 2
    with pytest.raises(
        UserError, match=r"other settings \(data\.rows 2 -> 4, eval, --steps 2 -> 3\); use another --work"
    ):
        sweep(changed, 4, 3, lambda line: None)


def test_what_cannot_be_swept_is_told(config):
    with pytest.raises(UserError, match="--runs=3: a fit over 2 components needs at least 2 components and 4 runs"):
        sweep(config, 3, 2)
    without = config.copy_and_resolve_references().unlock()
    without.eval.loss_batches = 0
    with pytest.raises(UserError, match="a sweep compares held-out losses"):
        sweep(without, 4, 2)


def test_the_table_has_its_evidence():
    plan = Plan({"a": 0.5, "b": 0.3, "c": 0.2}, 100, 2000, 0)
    shares = np.array([list(plan.weights(n).values()) for n in range(12)])
    found = proposal(plan, [losses(1 - 0.2 * np.log(b), 0.5 - 0.05 * np.log(c)) for _, b, c in shares])
    assert found.weights["b"] > 0.3
    assert found.weights["a"] < 0.2
    evidence = found.evidence
    assert evidence["follows"]
    assert min(evidence["r2_of_runs_left_out"].values()) > 0.95
    assert evidence["predicted"]["these weights"] < evidence["measured"]["configured weights"]
    # Scores are losses over what the answers alone cost.
    first = evidence["runs"][0]
    assert first["score"] == pytest.approx(
        (first["losses"]["depth"]["loss"] / 2 + first["losses"]["match"]["loss"]) / 2
    )
    assert "b: 30.0% ->" in " ".join(summary(plan, found))


def test_without_a_law_the_weights_stay():
    plan = Plan({"a": 0.5, "b": 0.5}, 100, 2000, 0)
    rng = np.random.default_rng(0)
    scattered = [losses(1.0 + 1e-3 * rng.normal(), 1.0) for _ in range(8)]
    law = mixing_law.fit(np.array([list(plan.weights(n).values()) for n in range(8)]), np.full((8, 1), 1.0))
    assert (law.r2 <= 0).all()
    found = proposal(plan, [losses(1.0, 1.0)] * 8)
    assert found.weights == {"a": 0.5, "b": 0.5}
    assert not found.evidence["follows"]
    assert "they stay as configured" in summary(plan, found)[-1]
    assert set(proposal(plan, scattered).weights) == {"a", "b"}
