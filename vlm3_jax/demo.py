"""The demo: render scenes, measure, train, measure again, write the report. Every stage is resumable."""

import platform
import time

import jax
import rich.console

from vlm3_jax import storage, synth
from vlm3_jax.errors import UserError
from vlm3_jax.evaluate.report.page import write_report
from vlm3_jax.evaluate.results import load_results
from vlm3_jax.evaluate.run import evaluate_model
from vlm3_jax.train.loop import train

# Held-out scenes have numbers of their own, so no amount of training data reaches them.
HELD_OUT_FIRST = 1_000_000


def options(motion: str = "orbit") -> synth.SynthOptions:
    """Scenes of the demo: 128 x 96 px at the focal target itself, since resizing to 32 px steps would shift it.

    Near and far points are asked alike (and none beyond 15 m), so that no constant answer is right often.
    """
    return synth.SynthOptions(
        width=128,
        height=96,
        focal_px=128.0,
        focal_factor=(1.0, 1.0),
        room_share=0.35,
        max_depth_m=15.0,
        even_depth=True,
        motion=motion,
    )


def demo(config, scenes: int, name: str = "demo", workers: int = 2) -> bool:
    """All stages in `config.workdir`; True when the report stands, False if the training was interrupted.

    `name`: what the config was loaded by, for the command in the report.
    """
    say = rich.console.Console(stderr=True, highlight=False).print
    workdir, start = storage.path(config.workdir), time.perf_counter()
    place_data(config)

    def stage(text):
        say(f"[{time.perf_counter() - start:5.0f} s] {text}")

    held_out = max(fields.limit or config.eval.records for fields in config.eval.components.values())
    kind = options(config.synth.motion)
    for part, count, first in (("train", scenes, 0), ("held_out", held_out, HELD_OUT_FIRST)):
        stage(f"rendering {count} scenes of two views: {workdir / 'data' / part}")
        synth.build(workdir / "data" / part, count, kind, seed=config.seed, first=first, workers=workers)
    before, after = workdir / "eval_before", workdir / "eval_after"
    if not _evaluated(before):
        stage("questions to the untrained model")
        untrained = config.copy_and_resolve_references()
        untrained.eval.variants = ("model",)
        # It never ends an answer, so each costs the longest one; a part of the questions shows as much.
        untrained.eval.records = min(32, config.eval.records)
        evaluate_model(untrained, before)
    stage("training")
    if not train(config):
        return False
    stage("questions to the trained model, with its own images, blank ones and those of other scenes")
    trained = config.copy_and_resolve_references()
    trained.model = str(workdir / "export")
    results = evaluate_model(trained, after)
    stage("report")
    report = write_report(
        workdir / "report.html",
        {"before training": before, "after training": after},
        title="vlm3_jax demo",
        metrics=workdir / "metrics.jsonl",
        summary=_summary(config, scenes, time.perf_counter() - start),
        commands=(f"vlm3 demo --config={name} --workdir={workdir} --scenes={scenes} --config.seed={config.seed}",),
    )
    rich.console.Console().print(results.table())
    stage(f"done; look at {report}")
    return True


def _evaluated(folder: storage.AnyPath) -> bool:
    try:
        load_results(folder)
    except UserError:
        return False
    return True


def _summary(config, scenes: int, seconds: float) -> dict[str, str]:
    return {
        "model": f"{config.model}, random weights of seed {config.seed}",
        "training data": f"{scenes} rendered scenes of two 128 x 96 views, {config.train.samples} samples drawn",
        "held-out data": f"{config.eval.records} scenes never trained on",
        "machine": f"{platform.machine()}, {jax.local_device_count()} {jax.devices()[0].device_kind} device(s)",
        "time": f"{seconds:.0f} s in all stages of this call",
    }


def place_data(config) -> None:
    """Points every component at the data that the demo renders below its workdir."""
    data = storage.path(config.workdir) / "data"
    for fields in config.data.components.values():
        fields.path = str(data / "train")
    for fields in config.eval.components.values():
        fields.path = str(data / "held_out")
