"""Where the numbers of a run go: what TensorBoard reads back, and disks that are full."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support import files_of_at_most, rows_of_metrics
from vlm3_jax.errors import UserError
from vlm3_jax.train import loop
from vlm3_jax.train.metrics import Bar, Metrics, duration

# Bytes; reached in the middle of what a thread with a buffer would write.
LIMIT = 8000


def events(workdir) -> dict[str, list[tuple[int, float]]]:
    read = EventAccumulator(str(workdir / "tensorboard"))
    read.Reload()
    return {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_tensorboard_reads_what_was_logged(tmp_path):
    """As soon as it is written; infinities and texts stay in metrics.jsonl alone, and a resume hides what it redoes."""
    metrics = Metrics(tmp_path, 0)
    for step in range(1, 5):
        row = {"step": step, "loss/a b": step / 4, "mfu": float("inf"), "ids": "0", "skipped_steps": 1}
        metrics.write(row, board=step != 3)
    assert events(tmp_path) == {
        "loss/a b": [(1, 0.25), (2, 0.5), (4, 1.0)],
        "skipped_steps": [(1, 1.0), (2, 1.0), (4, 1.0)],
    }
    metrics.close()
    metrics = Metrics(tmp_path, 2)
    metrics.write({"step": 3, "loss/a b": 0.125}, board=True)
    metrics.close()
    assert events(tmp_path)["loss/a b"] == [(1, 0.25), (2, 0.5), (3, 0.125)]
    assert [row["step"] for row in rows_of_metrics(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize(("which", "row"), [("tensorboard/events", {"n": 1}), ("metrics.jsonl", {"text": 90 * "x"})])
def test_a_full_disk_is_told_at_once(which, row, tmp_path):
    """In the thread that writes, in a line, and closing does not stumble over it again."""
    metrics = Metrics(tmp_path, 0)

    @loop._writing(tmp_path)
    def fill():
        for step in range(1000):
            metrics.write({"step": step} | row, board=True)

    line = rf"{tmp_path}/{which}\S*: cannot be written \(File too large\)"
    with files_of_at_most(LIMIT), pytest.raises(UserError, match=line):
        fill()
    metrics.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert file.stat().st_size <= LIMIT


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (89, "89 s"), (90, "2 min"), (3540, "59 min"), (11100, "3 h 05 min"), (187200, "2 d 04 h")],
)
def test_times_are_read_at_a_glance(seconds, text):
    assert duration(seconds) == text


def test_a_line_says_how_long_the_rest_takes(capsys):
    bar = Bar(1000, 400)
    bar.update({"step": 50, "samples": 500, "loss": 1.0, "samples_per_s": 2.0, "mfu": 0.5, "data_wait": 0.0}, 250.0)
    bar.close()
    line = " 50.0 %  step 50  loss 1.0000  2.0 samples/s  MFU 50.0 %  waiting for data 0 %  4 min left"
    assert capsys.readouterr().err == line + "\n"
