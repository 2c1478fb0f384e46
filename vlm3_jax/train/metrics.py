"""Where the numbers of a run go: metrics.jsonl, TensorBoard and the terminal."""

import json
import math
import pathlib
import sys
import time

import rich.console
import rich.progress

from vlm3_jax.files import naming, write_text
from vlm3_jax.train.events import Events

METRICS = "metrics.jsonl"


class Metrics:
    """Writes rows of numbers; after a resume the rows behind the restored step are cut off first.

    Held-out losses of that step itself are measured (and written) again: the run may have ended before they were.

    metrics.jsonl has one row a step (loss, rate, gradient norm, checksum of the sample ids), with throughput and fill
    added every few steps, and rows of held-out losses. `active` is False on all hosts but the first. OSError with the
    name of the file if one cannot be written.
    """

    def __init__(self, workdir: pathlib.Path, step: int, active: bool = True):
        self.path = pathlib.Path(workdir) / METRICS
        self._active = active
        if not active:
            return
        kept = []
        if self.path.exists():
            lines = (line for line in self.path.read_text().splitlines() if line.endswith("}"))
            kept = [line for line in lines if _is_before(json.loads(line), step)]
        write_text(self.path, "".join(line + "\n" for line in kept))
        self._file = self.path.open("a", encoding="utf-8")
        self._board = Events(pathlib.Path(workdir) / "tensorboard", step + 1)

    def write(self, row: dict, board: bool = False) -> None:
        """Appends a row; with `board` its numbers go to TensorBoard too."""
        if not self._active:
            return
        with naming(self.path):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        if board:
            numbers = {key: value for key, value in row.items() if key != "step" and isinstance(value, int | float)}
            self._board.write(row["step"], {key: value for key, value in numbers.items() if math.isfinite(value)})

    def close(self) -> None:
        """Closes both."""
        if self._active:
            self._board.close()
            with naming(self.path):
                self._file.close()


def _is_before(row: dict, step: int) -> bool:
    return row["step"] < step or (row["step"] == step and "ids" in row)


def duration(seconds: float) -> str:
    """A time to read at a glance: 45 s, 12 min, 3 h 05 min, 2 d 04 h."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60:02d} h"


class Bar:
    """A progress bar over samples on a terminal; elsewhere a plain line every ten seconds."""

    def __init__(self, total: int, done: int, active: bool = True):
        self._console = rich.console.Console(file=sys.stderr)
        self._live = active and self._console.is_terminal
        self._active, self._total, self._last = active, total, 0.0
        self._progress = rich.progress.Progress(
            rich.progress.TextColumn("training"),
            rich.progress.BarColumn(),
            rich.progress.TaskProgressColumn(),
            rich.progress.TextColumn("{task.fields[text]}"),
            console=self._console,
            disable=not self._live,
        )
        self._task = self._progress.add_task("training", total=total, completed=done, text="")
        self._progress.start()

    def update(self, row: dict, seconds_left: float) -> None:
        """Shows the newest numbers, and how long the rest of the run takes."""
        text = (
            f"step {row['step']}  loss {row.get('loss', math.nan):.4f}  {row['samples_per_s']:.1f} samples/s  "
            f"MFU {100 * row['mfu']:.1f} %  waiting for data {100 * row['data_wait']:.0f} %  "
            f"{duration(seconds_left)} left"
        )
        self._progress.update(self._task, completed=row["samples"], text=text)
        if self._active and not self._live and time.monotonic() - self._last > 10:
            self._last = time.monotonic()
            self.say(f"{100 * row['samples'] / self._total:5.1f} %  {text}")

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self._active:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Ends the bar."""
        self._progress.stop()
