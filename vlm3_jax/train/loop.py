"""The training loop: one line of events from the config to the exported model. The same call again resumes.

Ctrl-C or SIGTERM finishes the step at hand, saves and returns; a second Ctrl-C stops at once.
"""

import contextlib
import errno
import json
import pathlib
import signal
import tempfile
from collections.abc import Callable, Iterator

import jax
import numpy as np

from vlm3_jax import files, pretrained, storage
from vlm3_jax.checkpoint import convert, hf, locate
from vlm3_jax.data.component import Component
from vlm3_jax.errors import UserError
from vlm3_jax.model import params as parameters
from vlm3_jax.parallel import mesh as meshes
from vlm3_jax.parallel import processes
from vlm3_jax.setup import Setup
from vlm3_jax.tasks import protocol
from vlm3_jax.train import optimizer as optimizers
from vlm3_jax.train import step as steps
from vlm3_jax.train import weights_and_biases
from vlm3_jax.train.checkpoints import Checkpoints
from vlm3_jax.train.checksums import checksums
from vlm3_jax.train.feed import Batch, Feed, quarantine_file
from vlm3_jax.train.goodput import Compilations, Goodput
from vlm3_jax.train.log import Log, Logged
from vlm3_jax.train.losses import HeldOutLosses
from vlm3_jax.train.metrics import METRICS
from vlm3_jax.train.profile import Profile
from vlm3_jax.train.trainable import Trainable
from vlm3_jax.train.workdir import claimed

# Of errors without the name of a file: no room (for this user, in a file), no permission.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def train(config) -> bool:
    """Trains until all samples are seen (or `train.max_steps`); True if the run is complete, False if interrupted.

    Leaves checkpoints/, model/ (config and tokenizer), metrics.jsonl, tensorboard/, quarantine.jsonl, config.json and,
    when complete, export/ (an HF directory) in the workdir.
    """
    with Compilations() as compilations, _writing(config.workdir), contextlib.ExitStack() as held:
        goodput = Goodput(compilations)
        with goodput.spent_on("start"):
            setup, components, trainable = _judged(config)
            check_claim = held.enter_context(claimed(setup.workdir))
        # Closing waits for the other processes too: one that fails must not get there.
        with contextlib.ExitStack() as opened, processes.ends_together(), _writing(config.workdir), _put_up(setup):
            opened.enter_context(setup.work.published(*_grown()))
            with goodput.spent_on("start"):
                run = _Run(setup, components, trainable, goodput, check_claim, opened)
                _describe(setup)
            complete = _steps(run, opened.enter_context(_stop_signals()))
        if complete and config.train.export:
            export(setup, setup.workdir / "export")
        return complete


def _judged(config) -> tuple[Setup, list[Component], Trainable]:
    """The parts of a run that are there before its workdir; UserError for what cannot be trained."""
    if config.train.samples < 1:
        raise UserError("train.samples is 0: set the length of the run in samples")
    if config.train.wandb:
        weights_and_biases.require()
    setup = Setup.from_config(config)
    components = setup.components(config.data.components)
    if not components:
        raise UserError("data.components is empty: nothing to train on")
    # A table that does not suit the mixture is told of before anything is read.
    setup.weights(components)
    trainable = Trainable.from_config(setup.model_cfg, config)
    rows, spread = config.data.rows, setup.mesh.shape["replica"] * setup.mesh.shape["fsdp"]
    if rows % spread:
        more = -(-rows // spread) * spread
        accumulation = max(1, round(rows * config.train.accumulation / more))
        raise UserError(
            f"data.rows = {rows} must be a multiple of replica x fsdp = {spread}; set data.rows to {more} and "
            f"train.accumulation to {accumulation} for about as many rows an update"
        )
    unit = setup.spec.merge_size**2
    if setup.budget.patches % unit:
        raise UserError(f"data.row_patches is {setup.budget.patches}, but must be a multiple of {unit}")
    meshes.back_end(setup.mesh, config.train.attention).kernels(setup.budget.pair_block)
    return setup, components, trainable


def _grown() -> list[str]:
    """The files that an earlier call has begun and this one goes on with."""
    first = [METRICS, weights_and_biases.ID_FILE] if jax.process_index() == 0 else []
    return [*first, quarantine_file(pathlib.Path()).name]


def _describe(setup: Setup) -> None:
    """Leaves in the workdir what the run is: its config, the model's own files and how it is asked."""
    if jax.process_index() == 0:
        files.write_text(setup.workdir / "config.json", setup.config.to_json_best_effort(indent=2) + "\n")
        hf.copy_files(setup.model.folder, setup.workdir / locate.MODEL)
        protocol.write(setup.workdir / locate.MODEL, setup.protocols())


class _Run:
    """The parts of a run, and what its steps change: `state`, `step`, `samples`.

    `losses`: the step at which held-out losses were measured last, and these.
    """

    def __init__(
        self,
        setup: Setup,
        components: list[Component],
        trainable: Trainable,
        goodput: Goodput,
        check_claim: Callable[[], None],
        opened: contextlib.ExitStack,
    ):
        config, model_cfg, mesh = setup.config, setup.model_cfg, setup.mesh
        self.config, self.goodput, self._work, self._check_claim = config.train, goodput, setup.work, check_claim
        self._mesh = mesh
        self._settings = json.loads(config.to_json_best_effort())
        self._facts = {"seed": config.seed, "rows": config.data.rows, "parameters": parameters.count(model_cfg)}
        self._facts |= trainable.facts()
        # The state: the newest that was saved, or the model's weights with fresh moments.
        tx = optimizers.make(model_cfg, config.optimizer, trainable.trained_rows)
        abstract = steps.abstract_state(model_cfg, tx, mesh, trainable)
        self.checkpoints = Checkpoints(setup.workdir, self.config.keep, self.config.keep_every, self.config.keep_best)
        opened.callback(self.checkpoints.close)
        resumed = self.checkpoints.latest_step() is not None
        if resumed:
            self.state, schedule = self.checkpoints.restore(abstract, self._facts, self._settings)
        else:
            params = trainable.start(hf.place(setup.model.source, abstract.params), config.seed)
            self.state, schedule = steps.create_state(model_cfg, params, tx, mesh, trainable), None
            # Compiled before the first save.
            checksums(self.state)
        self.step, self.samples = int(self.state.step), int(self.state.samples)
        # What works on it: the compiled step, held-out data, training data, and where its numbers go.
        groups = 2 * (1 + max(c.number for c in components))
        self._run_step = steps.from_config(model_cfg, config, tx, mesh, trainable, groups)
        self.held_out = HeldOutLosses(setup, trainable)
        self.losses: tuple[int, dict[str, float]] = (-1, {})
        self.log = Log(setup, trainable, components, goodput, self.step, self.samples)
        opened.callback(self.log.close)
        self.feed = Feed(setup, components, schedule, goodput)
        opened.callback(self.feed.close)
        self.profile = Profile(self.config.profile, setup.work.folder / "profile")
        self.profile_folder = setup.workdir / "profile"
        opened.callback(self.profile.close)
        self.log.introduce(self.step if resumed else None, self.checkpoints.notes)

    def batches(self) -> Iterator[Batch]:
        """The next batches, until the run is complete or some process is to stop."""
        while not self.complete():
            batch = self.feed.next()
            if batch is None:
                return
            yield batch

    def train_on(self, batch: Batch) -> dict:
        """One step; its numbers, on the device."""
        arrays = meshes.put_batch(batch.arrays, meshes.batch_sharding(self._mesh, self.config.accumulation))
        whole = meshes.put_batch({"samples": np.int32(batch.samples)}, meshes.replicated(self._mesh))
        # What is not put on the devices on purpose would be copied there at every step.
        with jax.transfer_guard("disallow"):
            self.state, metrics = self._run_step(self.state, arrays, whole["samples"])
        self.step, self.samples = self.step + 1, self.samples + batch.samples
        return metrics

    def complete(self) -> bool:
        """Whether all samples are seen, or all steps done."""
        return self.samples >= self.config.samples or 0 < self.config.max_steps <= self.step

    def due(self, every: int) -> bool:
        """Whether something that happens at the start and every so many steps (0: never) happens now."""
        return self.step == 0 or (every > 0 and self.step % every == 0)

    def save(self) -> None:
        """Starts an asynchronous checkpoint, behind what has grown: it is never ahead of its rows."""
        self._check_claim()
        with self.goodput.spent_on("save"):
            if problem := self._work.publish():
                self.log.say(problem)
            step, losses = self.losses
            losses = losses if step == self.step else {}
            self.checkpoints.save(self.step, self.state, self.feed.schedule, self._facts, self._settings, losses)

    def evaluate(self) -> None:
        """Measures and tells the held-out losses."""
        with self.goodput.spent_on("evaluate"):
            found = self.held_out.measure(self.state.params)
        self.losses = self.step, {f"eval_loss/{name}": loss for name, (loss, _) in found.items()}
        for line in self.held_out.news():
            self.log.say(line)
        self.log.held_out(self.step, self.samples, found)


def _steps(run: _Run, stop: list) -> bool:
    """Steps until the end or a stop signal, and saves in both cases; True if the run is complete."""
    config, log = run.config, run.log
    run.feed.stop = stop
    if run.due(config.eval_every):
        run.evaluate()
    log.start()
    for batch in run.batches():
        run.profile.before(run.step + 1)
        metrics = run.train_on(batch)
        if run.profile.after(run.step, metrics):
            log.say(f"recorded steps for xprof: {run.profile_folder}")
        log.add(Logged(run.step, run.samples, batch, metrics))
        run.checkpoints.check()
        evaluate = run.due(config.eval_every) or run.complete()
        # The best held-out loss is of no use without the state that has it.
        save = run.due(config.save_every) or run.due(config.keep_every) or bool(evaluate and config.keep_best)
        if evaluate or save:
            # Before the save: a state with a broken loss must not become the one that the run goes on from.
            log.flush()
            with log.paused():
                if evaluate:
                    run.evaluate()
                if save:
                    run.save()
    log.flush()
    complete = run.complete()
    if complete and run.losses[0] != run.step:
        run.evaluate()
    run.save()
    run.checkpoints.wait()
    if not complete:
        log.say(f"stopped and saved at step {run.step}; the same command goes on from there")
    return complete


def export(setup: Setup, out_dir: storage.AnyPath) -> None:
    """Turns the newest checkpoint into an HF directory, adapters merged, a tensor at a time (on the first host)."""
    if jax.process_index() == 0:
        trained = pretrained.open(setup.workdir, export=False)
        conversion = convert.plan_conversion(trained.source, setup.config.train.export)
        convert.convert(conversion, out_dir, overwrite=True, progress=False)


@contextlib.contextmanager
def _put_up(setup: Setup):
    """What was told before an error is put up too, also where that ends the process at once."""
    try:
        yield
    except BaseException as error:
        setup.work.put_up_last(error)
        raise


@contextlib.contextmanager
def _writing(workdir):
    """A workdir that cannot be written (it is a file, read-only, the disk is full) as one line."""
    try:
        yield
    except storage.StorageError:
        raise
    except OSError as error:
        where, folder = pathlib.Path(error.filename or tempfile.gettempdir()), storage.path(workdir)
        if not storage.is_remote(folder):
            where = pathlib.Path(error.filename or folder)
        inside = not storage.is_remote(folder) and where.absolute().is_relative_to(folder.absolute())
        if error.errno not in UNWRITABLE and not inside:
            raise
        reason = "it is a file" if isinstance(error, FileExistsError) else error.strerror
        raise UserError(
            f"{where}: cannot be written ({reason}); mend that and run the same command again, or use another --workdir"
        ) from None


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
