"""Kills a tiny training at random moments, also during saves, and compares its end bit by bit with an undisturbed run.

    python tools/fault_test.py --kills 20 --seed 0

What is killed is the real command, `vlm3 train` with this file as its config. Prints a table; exit code 1 where
parameters, optimizer, data cursors, losses or sample ids differ, or a kill has left a damaged checkpoint.
"""

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import warnings

import numpy as np

PACKAGE = pathlib.Path(__file__).resolve().parents[1]
FOCAL = 40.0
SAVE_EVERY = 2
# A process that does nothing for so long hangs, seconds.
PATIENCE = 600
TEMPORARY = "*.orbax-checkpoint-tmp*"


@dataclasses.dataclass(frozen=True)
class Kill:
    """When a process is killed: `after` seconds behind the moment that `kind` names.

    "step": the process has done `steps` new steps and finished a checkpoint; "save": it has done `steps` new steps and
    then begun a checkpoint; "start": it has been started, and `after` is a share of what that took before.
    """

    kind: str
    steps: int
    after: float


@dataclasses.dataclass
class Tally:
    """What the kills have hit. `resumed`: the steps that runs went on from; `again`: steps that were done once more."""

    kinds: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    in_a_save: int = 0
    resumed: list[int] = dataclasses.field(default_factory=list)
    again: int = 0


def get_config(argument: str):
    """The run on the model and data in the folder FOLDER of "FOLDER@STEPS"."""
    from vlm3_jax import config as configs
    from vlm3_jax.config import component_config

    folder, steps = argument.rsplit("@", 1)
    config = configs.base()
    config.model = f"{folder}/model"
    config.data.components.depth = component_config(
        task="depth", path=f"{folder}/data", protocol="short", resize=f"focal:{FOCAL:g}", questions=3
    )
    config.data.rows, config.data.row_tokens, config.data.row_patches, config.data.row_targets = 2, 128, 128, 32
    config.data.workers = 1
    config.optimizer.learning_rate, config.optimizer.clip = 3e-3, 1.0
    config.train.samples, config.train.max_steps = 10 * int(steps), int(steps)
    config.train.dtype, config.train.remat, config.train.export = "float32", "none", ""
    config.train.save_every, config.train.keep_every = SAVE_EVERY, 5 * SAVE_EVERY
    return config


def write_inputs(folder: pathlib.Path) -> None:
    """The tiny model and 24 records of noise with depths, which is all that a run needs."""
    from array_record.python.array_record_module import ArrayRecordWriter

    from vlm3_jax import records
    from vlm3_jax.camera import Camera
    from vlm3_jax.checkpoint import tiny

    tiny.make(folder / "model", "test")
    (folder / "data").mkdir()
    writer = ArrayRecordWriter(str(folder / "data" / "noise.array_record"), "group_size:1")
    rng = np.random.default_rng(0)
    for number in range(24):
        width, height = ((32, 24), (40, 32), (24, 48))[number % 3]
        image = records.encode_image(rng.integers(0, 255, (height, width, 3), np.uint8), f"image {number}")
        view = records.View(image, Camera(FOCAL, FOCAL, width / 2, height / 2, width, height), np.eye(4))
        depth = records.DepthPoints(rng.integers(0, (width, height), (12, 2)), rng.uniform(1, 9, 12), "z", 0)
        writer.write(records.to_bytes(records.Record(f"r{number}", (view,), (depth,))))
    writer.close()


class Trainer:
    """The training in one workdir, started again and again."""

    def __init__(self, root: pathlib.Path, name: str, steps: int):
        self.workdir, self._log = root / name, root / f"{name}.log"
        config = f"--config={pathlib.Path(__file__).resolve()}:{root}@{steps}"
        self._command = [sys.executable, "-m", "vlm3_jax.cli", "train", config, f"--workdir={self.workdir}"]
        self._start_s = 0.0

    def saved_steps(self) -> list[int]:
        """Complete checkpoints."""
        return sorted(int(path.name) for path in (self.workdir / "checkpoints").glob("*") if path.name.isdecimal())

    def rows(self) -> list[dict]:
        """Rows of steps in metrics.jsonl; a torn last line is left out."""
        path = self.workdir / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [row for row in (json.loads(line) for line in lines if line.endswith("}")) if "ids" in row]

    def saving(self) -> bool:
        """Whether a checkpoint is being written, or was when its process died."""
        return any((self.workdir / "checkpoints").glob(TEMPORARY))

    def run(self) -> None:
        """Runs to the end."""
        if self._start().wait(PATIENCE):
            raise SystemExit(f"a run that nobody killed failed:\n{self._log.read_text()}")

    def run_and_kill(self, kill: Kill) -> bool:
        """Runs until it is killed; False if it was over before."""
        metrics = self.workdir / "metrics.jsonl"
        old = metrics.stat().st_ino if metrics.exists() else None
        saved = (self.saved_steps() or [0])[-1]
        target = saved + kill.steps
        process, begun = self._start(), time.monotonic()
        if kill.kind == "start":
            time.sleep(kill.after * self._start_s)
        else:
            # A run that goes on writes the rows before its checkpoint anew.
            self._await(process, lambda: metrics.exists() and metrics.stat().st_ino != old)
            self._start_s = time.monotonic() - begun
            self._await(process, lambda: (self.rows() or [{"step": 0}])[-1]["step"] >= target)
            if kill.kind == "save":
                self._await(process, self.saving, pause=0.002)
            else:
                # So that a later process has something new to go on from.
                self._await(process, lambda: (self.saved_steps() or [0])[-1] > saved)
            time.sleep(kill.after)
        process.kill()
        return process.wait() != 0

    def _start(self) -> subprocess.Popen:
        # What an earlier kill has left would be taken for a save.
        for path in (self.workdir / "checkpoints").glob(TEMPORARY):
            shutil.rmtree(path)
        with self._log.open("w") as log:
            environment = os.environ | {"PYTHONPATH": str(PACKAGE)}
            return subprocess.Popen(self._command, stdout=log, stderr=log, env=environment)

    def _await(self, process, condition, pause: float = 0.02) -> None:
        """Returns when `condition` is true or the process has ended."""
        end = time.monotonic() + PATIENCE
        while process.poll() is None and not condition():
            if time.monotonic() > end:
                process.kill()
                raise SystemExit(f"a run hangs:\n{self._log.read_text()}")
            time.sleep(pause)


def run_here(trainer: Trainer, root: pathlib.Path, steps: int) -> None:
    """The training in this process, undisturbed."""
    from vlm3_jax.train import loop

    config = get_config(f"{root}@{steps}")
    config.workdir = str(trainer.workdir)
    loop.train(config)


def draw_kills(count: int, seed: int) -> list[Kill]:
    """Two fifths during a save, a fifth while a process starts (and restores), the others between steps."""
    rng = np.random.default_rng(seed)
    saves, starts = max(1, round(0.4 * count)), round(0.2 * count)
    kinds = rng.permutation(["save"] * (saves - 1) + ["start"] * starts + ["step"] * (count - saves - starts))
    longest = {"save": 0.1, "start": 1.0, "step": 0.1}
    # The first one shows how long a start takes.
    return [Kill(str(kind), int(rng.integers(2, 7)), rng.uniform(0, longest[kind])) for kind in ("save", *kinds)]


def disturb(trainer: Trainer, kills: list[Kill]) -> Tally:
    """Kills the training by the list, then lets it end."""
    tally = Tally()
    for kill in kills:
        before = (trainer.saved_steps() or [0])[-1]
        if not trainer.run_and_kill(kill):
            raise SystemExit(f"the run ended before kill {sum(tally.kinds.values()) + 1}: give more --steps")
        tally.kinds[kill.kind] += 1
        tally.in_a_save += trainer.saving()
        newest = (trainer.saved_steps() or [0])[-1]
        tally.resumed.append(newest)
        tally.again += max(0, (trainer.rows() or [{"step": 0}])[-1]["step"] - max(newest, before))
    trainer.run()
    return tally


def arrays(trainer: Trainer, item: str) -> dict[str, np.ndarray]:
    """The arrays of an item of the last checkpoint by their names."""
    import jax
    import orbax.checkpoint as ocp

    path = trainer.workdir / "checkpoints" / str(trainer.saved_steps()[-1]) / item
    with warnings.catch_warnings(), ocp.StandardCheckpointer() as checkpointer:
        warnings.filterwarnings("ignore", "Sharding info not provided")
        found = jax.tree_util.tree_leaves_with_path(checkpointer.restore(path))
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(value) for path, value in found}


def differences(one: Trainer, two: Trainer, steps: int) -> dict[str, list]:
    """{what was compared, with its size: what differs}."""
    result = {}
    for item in ("params", "optimizer"):
        a, b = arrays(one, item), arrays(two, item)
        same = {k for k in a.keys() & b.keys() if a[k].dtype == b[k].dtype and a[k].tobytes() == b[k].tobytes()}
        size = f"{len(a)} arrays, {sum(value.size for value in a.values()):,} values"
        result[f"{item}: {size}"] = sorted((a.keys() | b.keys()) - same)
    for key in ("ids", "loss"):
        a, b = ([(row["step"], row.get(key)) for row in trainer.rows()] for trainer in (one, two))
        whole = list(range(1, steps + 1))
        # A loss may be None, which compares with nothing.
        wrong = sorted(set(a) ^ set(b), key=lambda pair: (pair[0], str(pair[1])))
        done = ([step for step, _ in pairs] for pairs in (a, b))
        result[f"{key}: {len(a)} steps"] = wrong or [steps for steps in done if steps != whole]
    metas = [json.loads((t.workdir / f"checkpoints/{steps}/meta/metadata").read_text()) for t in (one, two)]
    result["data cursors"] = [key for key in ("cursors", "phases") if metas[0][key] != metas[1][key]]
    result["damaged checkpoints"] = sorted(path.name for path in two.workdir.glob("checkpoints/*.damaged*"))
    return result


def table(tally: Tally, found: dict[str, list], seconds: float) -> str:
    """What was done and what came out, a line each."""
    kills = tally.kinds.total()
    rows = [
        ("kills", f"{kills} ({', '.join(f'{n} aimed at a {kind}' for kind, n in sorted(tally.kinds.items()))})"),
        ("kills that left a half-written checkpoint", tally.in_a_save),
        ("resumed after steps", ", ".join(map(str, tally.resumed))),
        ("steps done again", tally.again),
        *((name, f"WRONG: {wrong[:3]}" if wrong else "as undisturbed") for name, wrong in found.items()),
        ("seconds", f"{seconds:.0f}"),
    ]
    return "\n".join(f"{name:44} {value}" for name, value in rows)


def main(argv: list[str] | None = None) -> int:
    """Both runs, the table; 1 if something differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, help="length of the run (default: eight times the kills)")
    parser.add_argument("--seed", type=int, default=0, help="draws the moments")
    parser.add_argument("--workdir", type=pathlib.Path, help="empty folder for both runs (default: a temporary one)")
    args = parser.parse_args(argv)
    steps, begun = args.steps or 8 * args.kills, time.monotonic()
    root = (args.workdir or pathlib.Path(tempfile.mkdtemp(prefix="fault-test-"))).resolve()
    root.mkdir(parents=True, exist_ok=True)
    if any(root.iterdir()):
        parser.error(f"--workdir: {root} is not empty")
    # Only this process compiles; the others read the same programs.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(root / "compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
    write_inputs(root)
    undisturbed, disturbed = (Trainer(root, name, steps) for name in ("undisturbed", "disturbed"))
    run_here(undisturbed, root, steps)
    tally = disturb(disturbed, draw_kills(args.kills, args.seed))
    found = differences(undisturbed, disturbed, steps)
    print(table(tally, found, time.monotonic() - begun))
    if any(found.values()):
        print(f"the runs are kept in {root}")
        return 1
    if not args.workdir:
        shutil.rmtree(root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
