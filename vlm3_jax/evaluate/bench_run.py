"""Benchmarks asked of a model one after the other, each with a folder of its own, and the tables of all.

`OUT/NAME` holds a benchmark's predictions and scores as `vlm3 eval` writes them, and bench.json, which says what was
asked; `OUT/run.json` says of whom. So benchmarks may be added to an output folder later, by the same command with other
names, and all tables are made from the folders.
"""

from collections.abc import Sequence
from typing import Any

import jax

from vlm3_jax import storage
from vlm3_jax.data.quarantine import Quarantine
from vlm3_jax.errors import UserError
from vlm3_jax.evaluate import manifest, outputs, tables
from vlm3_jax.evaluate.answering import Share
from vlm3_jax.evaluate.benchmarks import Asked
from vlm3_jax.evaluate.frozen import FrozenQuestions
from vlm3_jax.evaluate.run import QUARANTINE, asked_spread, evaluate, make_engine, settings_of, spreads_of
from vlm3_jax.evaluate.spreads import TASK
from vlm3_jax.parallel import processes
from vlm3_jax.setup import Setup
from vlm3_jax.tasks.protocol import RELEASE, Protocol


def evaluate_benchmarks(
    config,
    asked: Sequence[Asked],
    out: storage.AnyPath,
    limit: int | None = None,
    labels: int | None = None,
    progress: bool = True,
    spread: bool = False,
) -> tables.Tables | None:
    """Asks the model of `config.model` all benchmarks whose data are there, and writes predictions, scores and tables.

    Called by every process of a run, each with the devices of its own; the first returns the tables, in which what was
    not run stands with the reason. `limit`: only so many records of each, evenly spaced; `labels`: only so many points
    or matches of each record; `spread`: depths with what the probabilities of their digits say. UserError if `out`
    holds another model's results, or none of the benchmarks can be run.
    """
    found, missing = _manifests(asked)
    if not found:
        name, reason = next(iter(missing.items()))
        raise UserError(f"nothing to run of {len(asked)} benchmarks; {name}: {reason}")
    if spread:
        asked_spread(one.asked.benchmark.task for one in found)
    setup = Setup.from_config(config)
    first = jax.process_index() == 0
    if first:
        outputs.claim(out, _about(setup))
    processes.all_here("claimed")
    engine = make_engine(setup)
    spreads = spreads_of(setup, engine) if spread else None
    with setup.work.published(*([QUARANTINE] if first else [])):
        for one in found:
            protocol = protocol_of(setup, one.asked.benchmark.task)
            questions = FrozenQuestions(one, protocol, setup.spec, limit=limit, labels=labels)
            _run(setup, engine, questions, out, progress, spreads if one.asked.benchmark.task == TASK else None)
    return tables.write(out, missing) if first else None


def protocol_of(setup: Setup, task: str) -> Protocol:
    """How the model says that it is to be asked; as the release asks, if it says nothing."""
    return setup.model.protocols.get(task) or RELEASE[task]


def _manifests(asked: Sequence[Asked]) -> tuple[list[manifest.Manifest], dict[str, str]]:
    """The manifests that are there, and by benchmark why the others are not run."""
    found, missing = [], {}
    for one in asked:
        try:
            found.append(manifest.read(one))
        except manifest.NotThere as error:
            missing[one.key] = str(error)
    return found, missing


def _about(setup: Setup) -> dict[str, Any]:
    protocols = {task: protocol_of(setup, task).facts() for task in RELEASE if task != "conversation"}
    return {"answers_by": short(setup.config.model), **settings_of(setup), "protocols": protocols}


def short(model: str) -> str:
    """What a model is called in tables: its name as given, of a longer path the end."""
    parts = model.rstrip("/").split("/")
    return "/".join(parts[-2:])


def _run(setup: Setup, engine, questions: FrozenQuestions, out: storage.AnyPath, progress: bool, spreads) -> None:
    config, folder = setup.config, out / questions.name
    where = setup.work.folder / QUARANTINE if jax.process_index() == 0 else None
    if jax.process_index() == 0:
        outputs.retract(folder, questions.manifest, questions.partial)
    results = evaluate(
        engine,
        questions,
        folder,
        variants=config.eval.variants,
        progress=progress,
        share=Share(jax.process_index(), jax.process_count()),
        settings={**settings_of(setup), "manifest": questions.manifest.sha256},
        spec=setup.spec,
        quarantine=Quarantine(where, config.data.max_bad_fraction),
        spreads=spreads,
    )
    if results is not None:
        outputs.write_bench(folder, questions.manifest, questions.partial)
