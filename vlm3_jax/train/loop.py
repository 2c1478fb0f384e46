"""The training loop: one line of events from the config to the exported model. The same call again resumes.

Ctrl-C or SIGTERM finishes the step at hand, saves and returns; a second Ctrl-C stops at once.
"""

import contextlib
import errno
import json
import pathlib
import signal
import time

import jax
import numpy as np

from vlm3_jax import pretrained
from vlm3_jax.checkpoint import convert, hf, locate
from vlm3_jax.config import protocol_of
from vlm3_jax.data.quarantine import Quarantine
from vlm3_jax.errors import UserError
from vlm3_jax.model import flops
from vlm3_jax.model import params as parameters
from vlm3_jax.parallel import mesh as meshes
from vlm3_jax.parallel import processes
from vlm3_jax.setup import Setup
from vlm3_jax.tasks import protocol
from vlm3_jax.train import optimizer as optimizers
from vlm3_jax.train import step as steps
from vlm3_jax.train.checkpoints import Checkpoints
from vlm3_jax.train.checksums import checksums
from vlm3_jax.train.feed import Feed, quarantine_file
from vlm3_jax.train.goodput import Compilations, Goodput
from vlm3_jax.train.held_out import HeldOut, count_in_all
from vlm3_jax.train.metrics import Bar, Metrics
from vlm3_jax.train.profile import Profile
from vlm3_jax.train.trainable import DTYPES, Trainable
from vlm3_jax.train.window import Window
from vlm3_jax.train.workdir import claimed

# Of errors without the name of a file: no room (for this user, in a file), no permission.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def train(config) -> bool:
    """Trains until all samples are seen (or `train.max_steps`); True if the run is complete, False if interrupted.

    Leaves checkpoints/, model/ (config and tokenizer), metrics.jsonl, tensorboard/, quarantine.jsonl, config.json and,
    when complete, export/ (an HF directory) in the workdir.
    """
    with Compilations() as compilations, _writing(config.workdir), contextlib.ExitStack() as held:
        return _train(config, compilations, held)


def _train(config, compilations: Compilations, held: contextlib.ExitStack) -> bool:
    goodput = Goodput(compilations)
    with goodput.spent_on("start"):
        if config.train.samples < 1:
            raise UserError("train.samples is 0: set the length of the run in samples")
        setup = Setup.from_config(config)
        components = setup.components(config.data.components)
        if not components:
            raise UserError("data.components is empty: nothing to train on")
        _check(setup)
        trainable = Trainable.from_config(setup.cfg, config)
        held.enter_context(claimed(setup.workdir))
        run = _Run(setup, components, trainable, goodput)
    if jax.process_index() == 0:
        aside = setup.workdir / "config.json.part"
        aside.write_text(config.to_json_best_effort(indent=2) + "\n")
        aside.rename(setup.workdir / "config.json")
        hf.copy_files(setup.model.folder, setup.workdir / locate.MODEL)
        protocol.write(setup.workdir / locate.MODEL, setup.protocols())
    try:
        # Closing waits for the other processes too: one that fails must not get there.
        with processes.ends_together(), _writing(config.workdir), _stop_signals() as stop:
            complete = run.steps(stop)
    finally:
        run.close()
    if complete and config.train.export:
        export(setup, setup.workdir / "export")
    return complete


def export(setup: Setup, out_dir: pathlib.Path) -> None:
    """Turns the newest checkpoint into an HF directory, adapters merged, a tensor at a time (on the first host)."""
    if jax.process_index() == 0:
        trained = pretrained.open(setup.workdir, export=False)
        conversion = convert.plan_conversion(trained.source, setup.config.train.export)
        convert.convert(conversion, out_dir, overwrite=True, progress=False)


@contextlib.contextmanager
def _writing(workdir):
    """A workdir that cannot be written (it is a file, read-only, the disk is full) as one line."""
    try:
        yield
    except OSError as error:
        where = pathlib.Path(error.filename or workdir)
        if error.errno not in UNWRITABLE and not where.absolute().is_relative_to(pathlib.Path(workdir).absolute()):
            raise
        reason = "it is a file" if isinstance(error, FileExistsError) else error.strerror
        raise UserError(
            f"{where}: cannot be written ({reason}); mend that and run the same command again, or use another --workdir"
        ) from None


def _check(setup: Setup) -> None:
    """What `config.check` cannot judge: it takes the model or the mesh."""
    config = setup.config
    rows, spread = config.data.rows, setup.mesh.shape["replica"] * setup.mesh.shape["fsdp"]
    if rows % spread:
        more = -(-rows // spread) * spread
        steps = max(1, round(rows * config.train.accumulation / more))
        raise UserError(
            f"data.rows = {rows} must be a multiple of replica x fsdp = {spread}; set data.rows to {more} and "
            f"train.accumulation to {steps} for about as many rows an update"
        )
    unit = setup.spec.merge_size**2
    if setup.budget.patches % unit:
        raise UserError(f"data.row_patches is {setup.budget.patches}, but must be a multiple of {unit}")
    meshes.back_end(setup.mesh, config.train.attention).kernels(setup.budget.pair_block)


@contextlib.contextmanager
def _stop_signals():
    """A list that becomes non-empty on the first SIGINT or SIGTERM."""
    stop: list[int] = []

    def handle(number, _):
        if stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.append(number)

    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


class _Run:
    """The state of a run: everything that steps change, and where its numbers go."""

    def __init__(self, setup: Setup, components, trainable: Trainable, goodput: Goodput):
        config, mesh, cfg = setup.config, setup.mesh, setup.cfg
        self.goodput, self.profile = goodput, Profile(config.train.profile, setup.workdir / "profile")
        self.setup, self.config, self.trainable = setup, config, trainable
        self.groups = 2 * (1 + max(c.number for c in components))
        self.names = {c.number: (c.name, c.task.name) for c in components}
        tx = optimizers.make(cfg, config.optimizer, trainable.trained_rows)
        self.facts = {"seed": config.seed, "rows": config.data.rows, "parameters": parameters.count(cfg)}
        self.facts |= trainable.facts()
        abstract = steps.abstract_state(cfg, tx, mesh, trainable)
        self.settings = json.loads(config.to_json_best_effort())
        train = config.train
        self.checkpoints = Checkpoints(setup.workdir, train.keep, train.keep_every, train.keep_best)
        if self.checkpoints.latest_step() is None:
            params = trainable.start(hf.place(setup.model.source, abstract.params), config.seed)
            self.state, schedule = steps.create_state(cfg, params, tx, mesh, trainable), None
            # Compiled before the first save.
            checksums(self.state)
        else:
            self.state, schedule = self.checkpoints.restore(abstract, self.facts, self.settings)
        self.step, self.samples = int(self.state.step), int(self.state.samples)
        self.skipped_steps = self.skipped_in_a_row = 0
        self.logged = False
        self.run_step = steps.from_config(cfg, config, tx, mesh, trainable, self.groups)
        held_out = self._held_out_components()
        self.aside = aside = Quarantine(quarantine_file(setup.workdir), config.data.max_bad_fraction)
        self.held_out = {c.name: HeldOut(setup, c, aside) for c in held_out}
        count_in_all(aside, setup)
        # So many held-out samples the user knows to be set aside.
        self.said = 0
        groups = 2 * (1 + max((c.number for c in held_out), default=0))
        self.run_evaluate = steps.make_evaluate(
            cfg, mesh, groups=groups, dtype=DTYPES[train.dtype], trainable=trainable,
            back_end=meshes.back_end(mesh, train.attention),
        )  # fmt: skip
        self.batch_sharding = meshes.batch_sharding(mesh, config.train.accumulation)
        self.peak, self.peak_source = flops.peak(jax.local_devices()[0])
        first = jax.process_index() == 0
        self.metrics = Metrics(setup.workdir, self.step, first)
        self.bar = Bar(config.train.samples, self.samples, first)
        self.feed = Feed(setup, components, schedule, goodput)
        # The step at which held-out losses were measured last.
        self.losses: tuple[int, dict[str, float]] = (-1, {})
        self.bar.say("\n".join([self._introduction(schedule is not None), *self.checkpoints.notes]))

    def _held_out_components(self):
        """The held-out components with at most as many questions a record as training has: they share its rows."""
        config = self.config
        most = max(protocol_of(entry).questions for entry in config.data.components.values())
        table = {
            name: dict(e) | {"questions": min(protocol_of(e).questions, most)}
            for name, e in config.eval.components.items()
        }
        return self.setup.components(table) if config.eval.loss_batches else []

    def steps(self, stop: list) -> bool:
        """Steps until the end or a stop signal; saves in both cases."""
        config = self.config.train
        self.feed.stop = stop
        if self._due(config.eval_every):
            self.evaluate()
        rows = self.config.data.rows
        share = len(meshes.process_rows(self.setup.mesh, rows)) / rows
        pending, window = None, Window(self.names, self.peak, share)
        while not self._complete():
            batch = self.feed.next()
            if batch is None:
                break
            useful = flops.training(
                self.setup.cfg, batch.lengths, self.trainable.trained_groups, self.trainable.adapters
            )
            arrays = meshes.put_batch(batch.arrays, self.batch_sharding)
            self.profile.before(self.step + 1)
            self.state, metrics = self.run_step(self.state, arrays, np.int32(batch.samples))
            self.step, self.samples = self.step + 1, self.samples + batch.samples
            if self.profile.after(self.step, metrics):
                self.bar.say(f"recorded steps for xprof: {self.profile.folder}")
            # The numbers of a step are fetched while the next one runs.
            if pending:
                self._record(*pending, window)
            pending = self.step, self.samples, metrics, batch, useful
            self.checkpoints.check()
            evaluate = self._due(config.eval_every) or self._complete()
            # The best held-out loss is of no use without the state that has it.
            save = self._due(config.save_every) or self._due(config.keep_every) or bool(evaluate and config.keep_best)
            if save or evaluate:
                # Before the save: a state with a broken loss must not become the one that the run goes on from.
                self._record(*pending, window)
                pending = None
            start = time.perf_counter()
            if evaluate:
                self.evaluate()
            if save:
                self.save()
            window.leave_out(time.perf_counter() - start)
        if pending:
            self._record(*pending, window)
        complete = self._complete()
        if complete and self.losses[0] != self.step:
            self.evaluate()
        self.save()
        self.checkpoints.wait()
        if not complete:
            self.bar.say(f"stopped and saved at step {self.step}; the same command goes on from there")
        return complete

    def _complete(self) -> bool:
        config = self.config.train
        return self.samples >= config.samples or 0 < config.max_steps <= self.step

    def _due(self, every: int) -> bool:
        """Whether something that happens at the start and every so many steps (0: never) happens now."""
        return self.step == 0 or (every > 0 and self.step % every == 0)

    def save(self) -> None:
        """Starts an asynchronous checkpoint."""
        with self.goodput.spent_on("save"):
            step, losses = self.losses
            losses = losses if step == self.step else {}
            self.checkpoints.save(self.step, self.state, self.feed.schedule, self.facts, self.settings, losses)

    def evaluate(self) -> None:
        """Held-out loss by component, beside the entropy of its answers: what a model that sees nothing reaches."""
        row = {"step": self.step, "samples": self.samples}
        with self.goodput.spent_on("evaluate"):
            for name, held_out in self.held_out.items():
                row[f"eval_loss/{name}"] = held_out.loss(self._evaluated)
                row[f"answer_entropy/{name}"] = held_out.entropy
        self.losses = self.step, {name: value for name, value in row.items() if name.startswith("eval_loss/")}
        if self.held_out:
            self._say_what_is_aside(count_in_all(self.aside, self.setup))
            self.metrics.write(row, board=True)
            parts = [
                f"{name} {row[f'eval_loss/{name}']:.3f} (answers alone {row[f'answer_entropy/{name}']:.3f})"
                for name in self.held_out
            ]
            self.bar.say(f"step {self.step}: held-out loss, nats a token: {', '.join(parts)}")

    def _evaluated(self, arrays: dict) -> dict:
        return self.run_evaluate(self.state.params, meshes.put_batch(arrays, meshes.batch_sharding(self.setup.mesh)))

    def _say_what_is_aside(self, bad: int) -> None:
        if bad > self.said:
            where = self.aside.path
            where = where if jax.process_count() == 1 else where.with_name("quarantine*.jsonl")
            self.bar.say(f"{bad} of {self.aside.samples} held-out samples are set aside; {where} says why")
        self.said = bad

    def _record(self, step, seen, metrics, batch, useful, window) -> None:
        metrics = jax.device_get(metrics)
        loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
        broken = bool(metrics["skipped"])
        self.skipped_steps += broken
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if broken else 0
        if self.skipped_in_a_row >= self.config.train.max_skipped:
            raise UserError(
                f"the loss is {loss} and its gradient's norm {norm} at step {step}, the last of "
                f"{self.skipped_in_a_row} skipped in a row: lower optimizer.learning_rate or look at the data"
            )
        row = {"step": step, "samples": seen, "lr": float(metrics["lr"]), "ids": f"{batch.checksum:08x}"}
        row |= {"skipped_steps": self.skipped_steps} if broken else {"loss": loss, "grad_norm": norm}
        if broken:
            self.bar.say(
                f"step {step}: loss {loss}, gradient's norm {norm}: skipped ({self.skipped_steps} in this run)"
            )
        window.add(batch.samples, batch.lengths, useful, batch.stats, None if broken else metrics["groups"])
        logged = step % self.config.train.log_every == 0
        if logged:
            row |= window.summary() | self.goodput.row()
            if not self.logged:
                compiled = self.goodput.compilations
                self.bar.say(f"compiled {compiled.count} programs in {compiled.seconds:.0f} s")
            self.logged = True
            self.bar.update(seen, row)
        self.metrics.write(row, board=logged)

    def _introduction(self, resumed: bool) -> str:
        shape = ", ".join(f"{k} {v}" for k, v in self.setup.mesh.shape.items())
        start = f"going on from step {self.step}" if resumed else "a new run"
        trained = sum(row.size for row in self.trainable.trained_rows)
        size = f"{parameters.count(self.setup.cfg):,} parameters, {trained:,} trained, mesh {shape}"
        return (
            f"{size}, {start}, {self.config.train.samples:,} samples; "
            f"MFU against {self.peak / 1e12:.2f} TFLOP/s a device ({self.peak_source})"
        )

    def close(self) -> None:
        """Stops the data threads and waits for the checkpoints; what fails to close does not keep the others open."""
        with contextlib.ExitStack() as last:
            for part in (self.checkpoints, self.metrics, self.bar, self.feed, self.profile):
                last.callback(part.close)
