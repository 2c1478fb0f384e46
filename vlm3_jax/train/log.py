"""What a run tells of itself: a row of numbers a step, held-out losses, a bar and lines on the terminal."""

import contextlib
import dataclasses
import time
from collections.abc import Sequence

import jax

from vlm3_jax.data.component import Component
from vlm3_jax.errors import UserError
from vlm3_jax.model import flops
from vlm3_jax.model import params as parameters
from vlm3_jax.parallel import mesh as meshes
from vlm3_jax.setup import Setup
from vlm3_jax.train.feed import Batch
from vlm3_jax.train.goodput import Goodput
from vlm3_jax.train.metrics import Bar, Metrics
from vlm3_jax.train.trainable import Trainable
from vlm3_jax.train.weights_and_biases import WeightsAndBiases
from vlm3_jax.train.window import Window


@dataclasses.dataclass(frozen=True, eq=False)
class Logged:
    """A step that has been started: its number, the samples seen with it, its batch and its numbers on the device."""

    step: int
    samples: int
    batch: Batch
    metrics: dict


class Log:
    """The log of a run that has `step` steps and `samples` samples behind it; all but process 0 only judge numbers."""

    def __init__(
        self,
        setup: Setup,
        trainable: Trainable,
        components: Sequence[Component],
        goodput: Goodput,
        step: int,
        samples: int,
    ):
        config, self._goodput = setup.config, goodput
        self._setup, self._trainable, self._config = setup, trainable, config.train
        self._peak, self._peak_source = flops.peak(jax.local_devices()[0])
        share = len(meshes.process_rows(setup.mesh, config.data.rows)) / config.data.rows
        names = {c.number: (c.name, c.task.name) for c in components}
        self._window = Window(names, self._peak, share)
        first = jax.process_index() == 0
        self._metrics = Metrics(setup.work.folder, step, first)
        self._bar = Bar(self._config.samples, samples, first)
        self._tracker = (
            WeightsAndBiases(self._config.wandb, setup.work.folder, config, setup.workdir.name) if first else None
        )
        self._skipped = self._skipped_in_a_row = 0
        self._pending: Logged | None = None
        self._compilations_said = False

    def introduce(self, step: int | None, notes: Sequence[str]) -> None:
        """The run in a line (`step`: what it goes on from, None: a new one), and notes."""
        shape = ", ".join(f"{k} {v}" for k, v in self._setup.mesh.shape.items())
        trained = sum(row.size for row in self._trainable.trained_rows)
        size = f"{parameters.count(self._setup.model_cfg):,} parameters, {trained:,} trained, mesh {shape}"
        start = "a new run" if step is None else f"going on from step {step}"
        peak = f"MFU against {self._peak / 1e12:.2f} TFLOP/s a device ({self._peak_source})"
        self.say("\n".join([f"{size}, {start}, {self._config.samples:,} samples; {peak}", *notes]))

    def say(self, text: str) -> None:
        """A line on the terminal."""
        self._bar.say(text)

    def start(self) -> None:
        """The first step comes next: speeds are measured from here on."""
        self._window.restart()

    @contextlib.contextmanager
    def paused(self):
        """What happens inside is no part of a step, and does not count into speeds."""
        start = time.perf_counter()
        yield
        self._window.leave_out(time.perf_counter() - start)

    def add(self, logged: Logged) -> None:
        """Writes the step before this one: its numbers are fetched while this one runs.

        UserError if too many in a row were not finite.
        """
        self.flush()
        self._pending = logged

    def flush(self) -> None:
        """Writes the newest step now. UserError as in `add`."""
        logged, self._pending = self._pending, None
        if logged is None:
            return
        numbers = jax.device_get(logged.metrics)
        batch, step = logged.batch, logged.step
        row = {"step": step, "samples": logged.samples, "lr": float(numbers["lr"]), "ids": f"{batch.checksum:08x}"}
        row |= self._judged(step, float(numbers["loss"]), float(numbers["grad_norm"]), bool(numbers["skipped"]))
        trainable = self._trainable
        useful = flops.training(self._setup.model_cfg, batch.lengths, trainable.trained_groups, trainable.adapters)
        groups = None if numbers["skipped"] else numbers["groups"]
        self._window.add(batch.samples, batch.lengths, useful, batch.stats, groups)
        shown = step % self._config.log_every == 0
        if shown:
            row |= self._window.summary() | self._goodput.row()
            self._say_compilations()
            self._bar.update(row, seconds_left(row, self._config.samples, self._config.max_steps))
        self._write(row, shown)

    def _judged(self, step: int, loss: float, norm: float, skipped: bool) -> dict[str, float]:
        """What a row says of a step's loss; UserError after too many skipped steps in a row."""
        if not skipped:
            self._skipped_in_a_row = 0
            return {"loss": loss, "grad_norm": norm}
        self._skipped += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= self._config.max_skipped:
            raise UserError(
                f"the loss is {loss} and its gradient's norm {norm} at step {step}, the last of "
                f"{self._skipped_in_a_row} skipped in a row: lower optimizer.learning_rate or look at the data"
            )
        self.say(f"step {step}: loss {loss}, gradient's norm {norm}: skipped ({self._skipped} in this run)")
        return {"skipped_steps": self._skipped}

    def _say_compilations(self) -> None:
        """Once a run: behind the first steps everything is compiled."""
        if not self._compilations_said:
            done = self._goodput.compilations
            self.say(f"compiled {done.count} programs in {done.seconds:.0f} s")
        self._compilations_said = True

    def held_out(self, step: int, samples: int, found: dict[str, tuple[float, float]]) -> None:
        """Held-out losses, {component: (loss, entropy of its answers)}, nats a token."""
        if not found:
            return
        row = {"step": step, "samples": samples}
        for name, (loss, entropy) in found.items():
            row |= {f"eval_loss/{name}": loss, f"answer_entropy/{name}": entropy}
        self._write(row, True)
        parts = [f"{name} {loss:.3f} (answers alone {entropy:.3f})" for name, (loss, entropy) in found.items()]
        self.say(f"step {step}: held-out loss, nats a token: {', '.join(parts)}")

    def _write(self, row: dict, shown: bool) -> None:
        self._metrics.write(row, board=shown)
        if shown and self._tracker:
            self._tracker.write(row)

    def close(self) -> None:
        """Closes all of it; what fails to close does not keep the others open."""
        with contextlib.ExitStack() as last:
            last.callback(self._metrics.close)
            last.callback(self._bar.close)
            if self._tracker:
                last.callback(self._tracker.close)


def seconds_left(row: dict, samples: int, max_steps: int) -> float:
    """Seconds to the end of a run of so many samples, or steps (0: any number), at the speed of a row's window.

    What a run had done before it was resumed counts as done, and not into the speed. Evaluations and saves come on top.
    """
    left = max(0, samples - row["samples"]) / row["samples_per_s"]
    return min(left, max(0, max_steps - row["step"]) * row["step_s"]) if max_steps else left
