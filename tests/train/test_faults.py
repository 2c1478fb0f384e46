"""Faults of the machine under a whole run: kills, a full disk, damaged files, workdirs that cannot be written."""

import importlib.util
import json
import pathlib
import shutil

import pytest

from tests.support import files_of_at_most, rows_of_metrics
from vlm3_jax import cli
from vlm3_jax.config import component_config
from vlm3_jax.errors import UserError
from vlm3_jax.train import loop

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "fault_test.py"
STEPS = 24


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("fault_test", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def inputs(tool, tmp_path_factory) -> pathlib.Path:
    """A folder with model and data, for runs that end before they begin."""
    root = tmp_path_factory.mktemp("inputs")
    tool.write_inputs(root)
    return root


@pytest.fixture(scope="module")
def killed(tool, tmp_path_factory):
    """(the folder with both runs, what was printed, the exit code) of three kills."""
    root, printed = tmp_path_factory.mktemp("killed"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *line, **_: printed.append(" ".join(map(str, line))))
        code = tool.main(["--kills=3", f"--steps={STEPS}", "--seed=0", f"--workdir={root / 'runs'}"])
    return root / "runs", "\n".join(printed), code


@pytest.mark.slow
def test_killed_at_random_moments(killed):
    """The quick form of the run with 20 kills in docs/scaling.md."""
    _, printed, code = killed
    table = {line[:44].strip(): line[45:] for line in printed.splitlines()}
    assert code == 0, printed
    assert table["kills"] == "3 (1 aimed at a save, 1 aimed at a start, 1 aimed at a step)"
    assert int(table["kills that left a half-written checkpoint"]) >= 1
    # Something was restored, not only begun anew.
    assert max(map(int, table["resumed after steps"].split(", "))) > 0
    same = [name for name, value in table.items() if value == "as undisturbed"]
    assert [name.split(":")[0] for name in same] == [
        *("params", "optimizer", "ids", "loss", "data cursors", "damaged checkpoints"),
    ]


def flip(path: pathlib.Path, place: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 8
    path.write_bytes(data)


def largest(folder: pathlib.Path) -> pathlib.Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def other_row(run, **change):
    path = run / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[7] |= change
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def other_cursor(run):
    path = run / f"checkpoints/{STEPS}/meta/metadata"
    meta = json.loads(path.read_text())
    meta["cursors"][0] += 1
    path.write_text(json.dumps(meta))


DIFFERENCES = {
    "params": lambda run: flip(largest(run / f"checkpoints/{STEPS}/params")),
    "ids": lambda run: other_row(run, ids="00000000"),
    "loss": lambda run: other_row(run, loss=1.0),
    "data cursors": other_cursor,
    "damaged checkpoints": lambda run: (run / "checkpoints/4.damaged").mkdir(),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", list(DIFFERENCES))
def test_the_tool_sees_differences(what, tool, killed, tmp_path):
    root, _, _ = killed
    for name in ("undisturbed", "disturbed"):
        shutil.copytree(root / name, tmp_path / name)
    DIFFERENCES[what](tmp_path / "disturbed")
    one, two = (tool.Trainer(tmp_path, name, STEPS) for name in ("undisturbed", "disturbed"))
    found = tool.differences(one, two, STEPS)
    assert [name.split(":")[0] for name, wrong in found.items() if wrong] == [what]


# Reads and writes that fail behind the first one of their checkpoint, which is raised, end in threads of Orbax.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_full_disk_then_damage(tool, inputs, tmp_path, capfd):
    """A run that meets both ends as the one that met nothing; the best held-out loss is kept beside the newest."""
    config = tool.get_config(f"{inputs}@{STEPS}")
    config.workdir, config.train.keep_every, config.train.max_steps = str(tmp_path / "run"), 0, 4
    config.eval.components.depth = component_config(**dict(config.data.components.depth) | {"limit": 4})
    config.train.eval_every, config.eval.loss_batches, config.train.keep_best = 3, 1, "eval_loss/depth"
    folder = tmp_path / "run" / "checkpoints"

    def steps():
        return sorted(path.name for path in folder.iterdir())

    assert loop.train(config)
    # Every evaluation is saved; that of step 4, the last, is the best, and the newest as well.
    assert steps() == ["3", "4"]
    losses = {row["step"]: row["eval_loss/depth"] for row in rows_of_metrics(tmp_path / "run") if "ids" not in row}
    saved = {step: json.loads((folder / f"{step}/meta/metadata").read_text())["losses"] for step in (3, 4)}
    assert saved == {step: {"eval_loss/depth": losses[step]} for step in (3, 4)}

    config.train.max_steps = 8
    capfd.readouterr()
    line = rf"{folder}: step 6 cannot be saved \(File too large\); .* the same command goes on from step 4"
    with files_of_at_most(200_000), pytest.raises(UserError, match=line):
        loop.train(config)
    assert "Traceback" not in capfd.readouterr().err
    assert steps()[:2] == ["3", "4"]

    flip(largest(folder / "4" / "params"))
    config.optimizer.eps = config.optimizer.eps * (1 + 1e-12)
    assert loop.train(config)
    told = capfd.readouterr().err
    assert f"{folder}: step 4 is damaged (params." in told
    assert " not what was saved), kept aside as 4.damaged; going on from step 3\n" in told
    assert "settings changed since step 3, and are used as they are now: optimizer.eps 1e-08 -> 1.0" in told
    assert steps() == ["4.damaged", "6", "8"]
    whole = tool.get_config(f"{inputs}@{STEPS}")
    whole.workdir, whole.train.max_steps = str(tmp_path / "whole"), 8
    assert loop.train(whole)
    undisturbed = [(row["step"], row["ids"], row["loss"]) for row in rows_of_metrics(tmp_path / "whole")]
    rows = [row for row in rows_of_metrics(tmp_path / "run") if "ids" in row]
    assert [(row["step"], row["ids"], row["loss"]) for row in rows] == undisturbed


def test_an_unknown_held_out_loss(tool, inputs):
    config = tool.get_config(f"{inputs}@{STEPS}")
    config.workdir, config.train.keep_best = "unused", "eval_loss/depth"
    with pytest.raises(UserError, match=r"train\.keep_best: 'eval_loss/depth' is not measured; choose one of ''"):
        loop.train(config)


@pytest.mark.parametrize(
    ("workdir", "reason"),
    [
        ("{file}", "it is a file"),
        ("{file}/run", "Not a directory"),
        ("/proc/vlm3-run", "No such file or directory"),
    ],
)
@pytest.mark.parametrize("model", ["as it is", "tiny:test"])
def test_a_workdir_that_cannot_be_written(workdir, reason, model, inputs, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    workdir = workdir.format(file=tmp_path / "file")
    arguments = ["train", f"--config={TOOL}:{inputs}@{STEPS}", f"--workdir={workdir}"]
    if model != "as it is":
        # Made in the workdir, before all else.
        arguments.append(f"--model={model}")
        reason = "Not a directory" if "file" in workdir else reason
    assert cli.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    where, _, rest = line.partition(": cannot be written ")
    assert where.removesuffix("/tiny-test-0.writing") == f"vlm3 train: {workdir}"
    assert rest == f"({reason}); mend that and run the same command again, or use another --workdir"
    assert (tmp_path / "file").read_text() == "mine"
