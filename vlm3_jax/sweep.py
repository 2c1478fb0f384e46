"""A sweep over mixtures: short runs with drawn weights, and a table of weights from what they lost on held-out data.

Every run has a folder in WORKDIR/runs; what is finished stands in its score.json, and the same command goes on with
what is missing. A run that was stopped is resumed, as training is. The regression and the proposal: data/mixing_law.py.
"""

import dataclasses
import json
import math
import shutil
from collections.abc import Callable

import numpy as np

from vlm3_jax import storage, weighting
from vlm3_jax.data import mixing_law, survey
from vlm3_jax.errors import UserError
from vlm3_jax.files import read_json, write_text
from vlm3_jax.setup import Setup
from vlm3_jax.train import loop
from vlm3_jax.train.settings import changes

PLAN, SCORE, TABLE = "sweep.json", "score.json", "weights.json"
# So many samples tell how many a step holds.
DRAWN = 200


@dataclasses.dataclass(frozen=True)
class Plan:
    """What all runs of a sweep have in common: `shares` by component, as configured, and `samples` a run."""

    shares: dict[str, float]
    steps: int
    samples: int
    seed: int

    def weights(self, number: int) -> dict[str, float]:
        """Those of run `number`; those of run 0 are the configured ones."""
        (drawn,) = mixing_law.draw_shares(list(self.shares.values()), 1, self.seed, number)
        return dict(zip(self.shares, drawn.tolist(), strict=True))


def sweep(config, runs: int, steps: int, say: Callable[[str], None] = print) -> storage.AnyPath | None:
    """Runs what is missing of `runs` runs of about `steps` steps, and writes WORKDIR/weights.json; None if interrupted.

    UserError if the config has nothing to compare, too few runs are asked for, or WORKDIR holds another sweep.
    """
    plan = _plan(config, runs, steps)
    workdir = storage.path(config.workdir)
    scores = []
    for number in range(runs):
        folder = workdir / "runs" / f"{number:04d}"
        if not (folder / SCORE).is_file():
            say(f"run {number + 1} of {runs}: {_percent(plan.weights(number))}")
            if not _run(config, plan, number, folder):
                say(f"stopped in run {number + 1} of {runs}; the same command goes on from there")
                return None
        scores.append(read_json(folder / SCORE)["losses"])
        say(f"run {number + 1} of {runs}: {_told(scores[-1])}")
    table = proposal(plan, scores, config.model)
    for line in summary(plan, table):
        say(line)
    weighting.write_table(workdir / TABLE, table)
    return workdir / TABLE


def _plan(config, runs: int, steps: int) -> Plan:
    """The plan that stands in the workdir, or a new one, which is written there."""
    if not config.eval.components or not config.eval.loss_batches:
        raise UserError("eval.components is empty, or eval.loss_batches 0: a sweep compares held-out losses")
    setup = Setup.from_config(config)
    settings = json.loads(config.to_json_best_effort())
    path = setup.workdir / PLAN
    if path.is_file():
        saved = read_json(path)
        plan = Plan(**saved["plan"])
        other = [found] if (found := changes(saved["settings"], settings)) else []
        other += ["eval"] if saved["settings"]["eval"] != settings["eval"] else []
        other += [f"--steps {plan.steps} -> {steps}"] if plan.steps != steps else []
        if other:
            raise UserError(
                f"{setup.workdir} holds a sweep with other settings ({', '.join(other)}); use another --workdir"
            )
    else:
        data = config.data
        run = survey.Run(rows=data.rows * config.train.accumulation)
        report = survey.mix_report(
            data.components, setup.settings(), config.seed, DRAWN, data.max_bad_fraction, run, setup.weights
        )
        shares = {part.name: part.share for part in report.shares if part.share > 0}
        plan = Plan(shares, steps, math.ceil(steps * report.samples_per_step), config.seed)
    least = len(plan.shares) + 2
    if len(plan.shares) < 2 or runs < least:
        raise UserError(
            f"--runs={runs}: a fit over {len(plan.shares)} components needs at least 2 components and {least} runs"
        )
    setup.workdir.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"plan": dataclasses.asdict(plan), "settings": settings}, indent=2) + "\n")
    return plan


def _run(config, plan: Plan, number: int, folder: storage.AnyPath) -> bool:
    """One run, to its score; False if it was interrupted."""
    folder.mkdir(parents=True, exist_ok=True)
    table = weighting.Table(plan.weights(number), f"run {number} of a sweep")
    left_out = {name: 0.0 for name in config.data.components if name not in table.weights}
    weighting.write_table(folder / TABLE, dataclasses.replace(table, weights=table.weights | left_out))
    run = config.copy_and_resolve_references().unlock()
    run.workdir, run.data.weights = str(folder), str(folder / TABLE)
    run.train.samples, run.train.max_steps = plan.samples, 0
    run.train.eval_every, run.train.keep, run.train.keep_every, run.train.keep_best = 0, 1, 0, ""
    run.train.export, run.train.wandb, run.train.profile = "", "", ""
    if not loop.train(run.lock()):
        return False
    write_text(folder / SCORE, json.dumps({"weights": table.weights, "losses": _losses(folder)}, indent=2) + "\n")
    # A model and its moments a run would soon fill a disk.
    for name in ("checkpoints", "model"):
        if storage.is_remote(folder):
            (folder / name).rmtree()
        else:
            shutil.rmtree(folder / name, ignore_errors=True)
    return True


def _losses(folder: storage.AnyPath) -> dict[str, dict[str, float]]:
    """The held-out losses at the end of a run, and what the answers alone would cost, in nats a token, by component."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if any(key.startswith("eval_loss/") for key in row)]
    names = [key.removeprefix("eval_loss/") for key in rows[-1] if key.startswith("eval_loss/")]
    return {
        name: {"loss": rows[-1][f"eval_loss/{name}"], "answers_alone": rows[-1][f"answer_entropy/{name}"]}
        for name in names
    }


def score(loss: dict[str, float]) -> float:
    """A held-out loss over what the answers alone cost: 1 for a model that has learnt nothing from the images.

    So components count alike, however long their answers are. Without an entropy (a single answer) the loss itself.
    """
    alone = loss["answers_alone"]
    return loss["loss"] / alone if alone > 0 else loss["loss"]


def proposal(plan: Plan, losses: list[dict], model: str = "") -> weighting.Table:
    """The table of weights that the runs speak for, with its evidence; `losses`: of each run, by held-out component.

    Where they do not follow the weights (`mixing_law.Law.r2`), the configured weights stay.
    """
    names, own = list(losses[0]), np.array(list(plan.shares.values()))
    weights = [plan.weights(number) for number in range(len(losses))]
    shares = np.array([list(each.values()) for each in weights])
    scores = np.array([[score(each[name]) for name in names] for each in losses])
    law = mixing_law.fit(shares, scores)
    follows = bool(law.r2.mean() > 0)
    found = mixing_law.propose(law, own, plan.seed) if follows else own / own.sum()
    predicted = law.predict(np.stack([mixing_law.draw_shares(own, 1, plan.seed)[0], found])).mean(1)
    best = int(scores.mean(1).argmin())
    evidence = {
        "method": f"ridge regression of held-out scores on {law.features}; penalty by leaving out one run at a time",
        "score": "mean over held-out components of loss / loss of the answers alone; lower is better",
        "model": model,
        "steps": plan.steps,
        "samples": plan.samples,
        "follows": follows,
        "r2_of_runs_left_out": dict(zip(names, law.r2.tolist(), strict=True)),
        "predicted": {"configured weights": float(predicted[0]), "these weights": float(predicted[1])},
        "measured": {"configured weights": float(scores[0].mean()), "best run": float(scores[best].mean())},
        "best_run": best,
        "runs": [
            {"weights": w, "score": float(s.mean()), "losses": each}
            for w, s, each in zip(weights, scores, losses, strict=True)
        ],
    }
    about = f"proposed by a sweep of {len(losses)} runs of about {plan.steps} steps"
    return weighting.Table(dict(zip(plan.shares, found.tolist(), strict=True)), about, evidence=evidence)


def summary(plan: Plan, table: weighting.Table) -> list[str]:
    """The proposal in a few lines."""
    found = table.evidence
    r2 = ", ".join(f"{name} {value:.2f}" for name, value in found["r2_of_runs_left_out"].items())
    lines = [f"{found['method']}; R2 of runs left out: {r2}"]
    if not found["follows"]:
        return [
            *lines,
            "held-out losses do not follow the weights: they stay as configured; more or longer runs may tell",
        ]
    lines += [f"  {name}: {plan.shares[name]:.1%} -> {weight:.1%}" for name, weight in table.weights.items()]
    before, after = found["predicted"].values()
    return [*lines, f"predicted score {before:.4f} -> {after:.4f}; a longer run has to confirm it"]


def _percent(weights: dict[str, float]) -> str:
    return ", ".join(f"{name} {weight:.1%}" for name, weight in weights.items())


def _told(losses: dict[str, dict[str, float]]) -> str:
    parts = ", ".join(f"{name} {loss['loss']:.3f}" for name, loss in losses.items())
    return f"score {np.mean([score(loss) for loss in losses.values()]):.4f} (held-out loss, nats a token: {parts})"
