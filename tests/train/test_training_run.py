"""Whole runs: stopped and killed they end bit-equal, they refuse what does not belong together, their losses stay."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
import run_config
import run_processes

import vlm3_jax
from tests.support import FOCAL, SIZES, rows_of_metrics, small_run, write_records
from vlm3_jax import cli, pretrained
from vlm3_jax.camera import Camera
from vlm3_jax.checkpoint import hf, tiny
from vlm3_jax.errors import UserError
from vlm3_jax.processor.image import ImageLayout
from vlm3_jax.tasks import protocol
from vlm3_jax.train import loop
from vlm3_jax.train import step as steps
from vlm3_jax.train.checkpoints import Checkpoints
from vlm3_jax.train.feed import Feed
from vlm3_jax.train.goodput import KINDS
from vlm3_jax.train.metrics import Metrics
from vlm3_jax.train.workdir import LOCK

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Losses of the 20 steps. A change needs a reason in the commit; to refresh them run this file and copy what the failing
# test prints.
GOLDEN = [
    33.09897, 33.41479, 33.68937, 32.74779, 29.75306, 28.19442, 26.69417, 24.19123, 19.3625, 17.27919,
    13.00452, 10.49098, 8.7261, 8.40099, 6.564386, 5.333734, 5.129079, 4.178286, 4.020123, 3.80882,
]  # fmt: skip


@dataclasses.dataclass
class Finished:
    """A run that nothing has disturbed."""

    workdir: pathlib.Path
    model: pathlib.Path
    data: pathlib.Path
    programs: int
    grids: set


@pytest.fixture(scope="module")
def finished(tiny_model, tmp_path_factory) -> Finished:
    root = tmp_path_factory.mktemp("run")
    data = write_records(root / "data")
    compiled, grids = [], set()
    make_step, load = steps.make_step, ImageLayout.load

    def remember(*args, **kwargs):
        compiled.append(make_step(*args, **kwargs))
        return compiled[-1]

    def look(layout, spec):
        grids.add(layout.grid)
        return load(layout, spec)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "make_step", remember)
        patch.setattr(ImageLayout, "load", look)
        assert loop.train(small_run(tiny_model, data, root / "workdir"))
    (step,) = compiled
    return Finished(root / "workdir", tiny_model, data, step._cache_size(), grids)


def per_step(workdir) -> list[dict]:
    """The rows of metrics with what depends neither on the clock nor on when the last row was logged."""
    each = {"step", "samples", "lr", "ids", "loss", "grad_norm", "skipped_steps"}
    return [
        {k: v for k, v in row.items() if k in each or k.startswith(("eval_loss/", "answer_entropy/"))}
        for row in rows_of_metrics(workdir)
    ]


def same_export(one, two) -> bool:
    """Whether two workdirs exported the same files."""
    files = [{p.name: p.read_bytes() for p in (workdir / "export").iterdir()} for workdir in (one, two)]
    return files[0] == files[1]


def test_golden_losses(finished):
    losses = [row["loss"] for row in rows_of_metrics(finished.workdir) if "loss" in row]
    print([float(f"{loss:.7g}") for loss in losses])
    np.testing.assert_allclose(losses, GOLDEN, rtol=1e-4)


def test_one_program_for_all_image_sizes(finished):
    assert len(finished.grids) == len(SIZES)
    assert finished.programs == 1


def test_rows_of_metrics(finished):
    rows = rows_of_metrics(finished.workdir)
    trained = [row for row in rows if "loss" in row]
    held_out = [row for row in rows if "eval_loss/depth" in row]
    assert [row["step"] for row in trained] == list(range(1, 21))
    assert [row["step"] for row in held_out] == [0, 12, 20]
    assert len(rows) == 23
    assert held_out[2]["eval_loss/depth"] < held_out[0]["eval_loss/depth"]
    assert np.diff([row["samples"] for row in trained]).min() >= 1
    assert len({row["ids"] for row in trained}) == 20
    logged = [row for row in trained if "samples_per_s" in row]
    assert [row["step"] for row in logged] == [5, 10, 15, 20]
    # Everything is compiled before the first of them.
    assert len({row["compilations"] for row in logged}) == 1
    for row in logged:
        speed = {"mfu", "samples_per_s_device", "tokens_per_s_device", "patches_per_s_device", "step_s"}
        assert min(row["text_work"], row["vision_work"]) >= 1
        assert speed | {"token_fill", "loss/depth/first", "loss/match/first", "task_loss/depth"} <= row.keys()
        times = [row[f"time/{kind}"] for kind in (*KINDS, "step")]
        assert min(times) >= 0
        assert row["goodput"] == pytest.approx(times[-1] / sum(times))
        assert row["memory_gib"] > 0.1
        # Independent questions have no later turns.
        assert not any(key.endswith("/later") for key in row)


def test_export_is_a_model_directory(finished):
    export = finished.workdir / "export"
    cfg, params = hf.load(export)
    old_cfg, old = hf.load(finished.model)
    assert cfg == old_cfg
    changes = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), params, old)
    # The vision key bias has no gradient but rounding; everything else is trained.
    assert min(jax.tree.leaves(changes)) > 1e-4
    assert {p.name for p in export.iterdir()} == {p.name for p in finished.model.iterdir()} | {protocol.FILE}
    assert not list(finished.workdir.glob("*.writing"))
    assert json.loads((finished.workdir / "config.json").read_text())["train"]["max_steps"] == 20


def test_an_export_tells_how_it_was_asked(finished, tmp_path, caplog):
    """So that `load` of the workdir, or of what it is converted to, asks as training did, without a word."""
    asked = {
        task: protocol.given(task, "short", resize=f"focal:{FOCAL:g}", questions=3)
        for task in ("depth", "correspondence")
    }
    assert cli.main(["convert", str(finished.workdir), str(tmp_path / "converted")]) == 0
    assert cli.main(["convert", str(tmp_path / "converted"), str(tmp_path / "back")]) == 0
    for folder in (finished.workdir, finished.workdir / "export", tmp_path / "converted", tmp_path / "back"):
        assert pretrained.open(folder).protocols == asked
    model = vlm3_jax.load(finished.workdir, max_new_tokens=4)
    model.depth(np.zeros((24, 32, 3), np.uint8), Camera.from_fov(32, 24, 60), points=[[3, 4]])
    assert model.protocol("depth") == asked["depth"]
    assert not caplog.records
    assert model.protocol("pose") == protocol.RELEASE["pose"]
    assert [record.getMessage() for record in caplog.records if "pose" in record.getMessage()]


def command(finished, monkeypatch, workdir, argument) -> list[str]:
    """The arguments of `vlm3` for the run, with a signal sent to itself on the way."""
    monkeypatch.setenv("RUN_MODEL", str(finished.model))
    monkeypatch.setenv("RUN_DATA", str(finished.data))
    return ["train", f"--config={run_config.__file__}:{argument}", f"--workdir={workdir}"]


def in_a_process(arguments) -> subprocess.CompletedProcess:
    program = [sys.executable, "-m", "vlm3_jax.cli", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(program, capture_output=True, text=True, env=environment, check=False)


def test_stopped_and_killed_runs_end_bit_equal(finished, tmp_path, monkeypatch, capsys):
    """SIGTERM in step 5, Ctrl-C in step 9, SIGKILL in step 16 (back to the checkpoint of step 12), then to the end."""
    for stop, step in (("SIGTERM@4", 5), ("SIGINT@8", 9)):
        with monkeypatch.context() as patch:
            # The config puts another in its place.
            patch.setattr(Metrics, "write", Metrics.write)
            assert cli.main(command(finished, monkeypatch, tmp_path, stop)) == 0
        assert Checkpoints(tmp_path).latest_step() == step
        assert f"stopped and saved at step {step}; the same command goes on from there" in capsys.readouterr().err
    assert not (tmp_path / "export").exists()
    done = in_a_process(command(finished, monkeypatch, tmp_path, "SIGKILL@15/12"))
    assert done.returncode == -signal.SIGKILL
    assert Checkpoints(tmp_path).latest_step() == 12
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 17, "lo')
    assert loop.train(small_run(finished.model, finished.data, tmp_path))
    assert per_step(tmp_path) == per_step(finished.workdir)
    assert same_export(tmp_path, finished.workdir)


def test_two_processes_and_one_go_on_as_one_run(finished, tmp_path):
    """The first of two is killed; one goes on alone: the ids bit-equal, the losses equal up to rounding."""
    settings = ["--config.train.save_every=3", "--config.train.eval_every=0"]
    first, second = run_processes.train(finished.model, finished.data, tmp_path, 2, 2, {0: "SIGKILL@4/3"}, settings)
    assert first.code == -signal.SIGKILL
    assert run_processes.lost(second), second.errors
    assert Checkpoints(tmp_path).latest_step() == 3
    config = small_run(finished.model, finished.data, tmp_path)
    config.train.max_steps, config.train.export = 12, ""
    assert loop.train(config)
    ours, theirs = ([row for row in per_step(workdir) if "ids" in row] for workdir in (tmp_path, finished.workdir))
    assert [row["step"] for row in ours] == list(range(1, 13))
    assert [(row["ids"], row["samples"]) for row in ours] == [(row["ids"], row["samples"]) for row in theirs[:12]]
    np.testing.assert_allclose([row["loss"] for row in ours], [row["loss"] for row in theirs[:12]], rtol=1e-6)


def test_a_finished_run_stays_as_it_is(finished):
    before = per_step(finished.workdir)
    assert loop.train(small_run(finished.model, finished.data, finished.workdir))
    assert per_step(finished.workdir) == before


def other_seed(config, root):
    config.seed = 1


def other_rows(config, root):
    config.data.rows = 4


def other_size(config, root):
    config.model = str(tiny.make(root / "demo", "demo"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_seed, r"checkpoints: the saved run has seed = 0, the configuration 1; use another --workdir"),
        (other_rows, r"checkpoints: the saved run has rows = 2, the configuration 4; use another --workdir"),
        (other_size, r"checkpoints: the saved run has parameters = 251048, the configuration \d+; use another --wor"),
    ],
)
def test_another_run_in_the_workdir_is_refused(finished, change, message, tmp_path):
    files = {p: p.read_bytes() for p in finished.workdir.rglob("*") if p.is_file() and "tensorboard" not in p.parts}
    # Says who had the workdir last.
    del files[finished.workdir / LOCK]
    config = small_run(finished.model, finished.data, finished.workdir)
    change(config, tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        loop.train(config)
    assert "\n" not in str(caught.value)
    for path, data in files.items():
        assert path.read_bytes() == data, path


def broken_batches(monkeypatch, broken):
    """Makes the loss of the steps that `broken` names infinite, through the weights of their targets."""
    following = Feed.next

    def feed(self):
        batch = following(self)
        self.count = getattr(self, "count", 0) + 1
        if self.count in broken:
            weight = np.where(batch.arrays["target_weight"] > 0, np.float32(np.inf), 0)
            batch = dataclasses.replace(batch, arrays=batch.arrays | {"target_weight": weight})
        return batch

    monkeypatch.setattr(Feed, "next", feed)


def test_a_step_that_is_not_finite_changes_nothing(finished, tmp_path, monkeypatch):
    """One broken batch: parameters and moments stay, the next steps go on, and the row says what happened."""
    broken_batches(monkeypatch, {6})
    seen, make_step = [], steps.make_step

    def watching(*args, **kwargs):
        step = make_step(*args, **kwargs)

        def run(state, batch, samples):
            before = jax.tree.map(np.array, (state.params, state.opt_state))
            state, metrics = step(state, batch, samples)
            after = jax.tree.map(np.array, (state.params, state.opt_state))
            seen.append(all(map(np.array_equal, jax.tree.leaves(before), jax.tree.leaves(after))))
            return state, metrics

        return run

    monkeypatch.setattr(steps, "make_step", watching)
    config = small_run(finished.model, finished.data, tmp_path)
    config.train.max_steps = 10
    assert loop.train(config)
    assert seen == [False] * 5 + [True] + [False] * 4
    rows = [row for row in rows_of_metrics(tmp_path) if "ids" in row]
    assert [row.get("skipped_steps") for row in rows] == [None] * 5 + [1] + [None] * 4
    assert ["loss" in row for row in rows] == [True] * 5 + [False] + [True] * 4
    whole = [row for row in rows_of_metrics(finished.workdir) if "ids" in row]
    assert [row["ids"] for row in rows] == [row["ids"] for row in whole[:10]]


def test_broken_steps_in_a_row_stop_the_run(finished, tmp_path, monkeypatch):
    broken_batches(monkeypatch, {4, 6, 7, 8})
    config = small_run(finished.model, finished.data, tmp_path)
    config.train.save_every, config.train.max_skipped = 3, 3
    with pytest.raises(UserError, match=r"at step 8, the last of 3 skipped in a row: lower optimizer\.learning_rate"):
        loop.train(config)
    assert Checkpoints(tmp_path).latest_step() == 6
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("train.dtype", "float64", r"train\.dtype is 'float64', but must be one of 'float32', 'bfloat16'"),
        ("train.samples", 0, r"train\.samples is 0"),
        ("train.attention", "pallas", r"train\.attention: there is no kernel for cpu devices; use auto or xla"),
        ("data.row_patches", 250, r"data\.row_patches is 250, but must be a multiple of 4"),
        ("mesh.tensor", 3, r"mesh: replica 1 x fsdp 1 x tensor 3 is not the number of devices, 1"),
    ],
)
def test_settings_are_judged_before_any_work(finished, field, value, message, tmp_path):
    config = small_run(finished.model, finished.data, tmp_path / "workdir")
    group, name = field.split(".")
    config[group][name] = value
    with pytest.raises(UserError, match=message):
        loop.train(config)


def test_a_second_ctrl_c_stops_at_once():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with loop._stop_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop == [signal.SIGTERM] * 2
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_metrics_go_on_behind_the_restored_step(tmp_path):
    rows = [
        {"step": 0, "eval_loss/a": 1.0},
        *({"step": k, "ids": f"{k:08x}", "loss": 1.0 / k} for k in (1, 2)),
        {"step": 2, "eval_loss/a": 0.5},
    ]
    torn = '{"step": 3, "lo'
    for restored, kept in ((0, 0), (1, 2), (2, 3), (9, 4)):
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + torn)
        metrics = Metrics(tmp_path, restored)
        metrics.write({"step": restored + 1, "loss": 0.25}, board=True)
        metrics.close()
        assert rows_of_metrics(tmp_path) == [*rows[:kept], {"step": restored + 1, "loss": 0.25}]
