"""The training loop: one line of events from the config to the exported model. The same call again resumes.

Ctrl-C or SIGTERM finishes the step at hand, saves and returns; a second Ctrl-C stops at once.
"""

import contextlib
import pathlib
import signal
import time
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from vlm3_jax import flops
from vlm3_jax import params as parameters
from vlm3_jax.checkpoint import convert, hf, locate
from vlm3_jax.checkpoint.train_state import Checkpoints
from vlm3_jax.errors import UserError
from vlm3_jax.evaluate.statistics import answer_entropy
from vlm3_jax.model.vlm import REMAT
from vlm3_jax.train import mesh as meshes
from vlm3_jax.train import optimizer as optimizers
from vlm3_jax.train import step as steps
from vlm3_jax.train.metrics import Bar, Metrics
from vlm3_jax.train.run import Feed, Setup, held_out_batches
from vlm3_jax.train.trainable import DTYPES, Trainable


def train(config) -> bool:
    """Trains until all samples are seen (or `train.max_steps`); True if the run is complete, False if interrupted.

    Leaves checkpoints/, model/ (config and tokenizer), metrics.jsonl, tensorboard/, quarantine.jsonl, config.json and,
    when complete, export/ (an HF directory) in the workdir.
    """
    setup = Setup.from_config(config)
    components = setup.components(config.data.components)
    _check(setup, components)
    trainable = Trainable.from_config(setup.cfg, config)
    setup.workdir.mkdir(parents=True, exist_ok=True)
    run = _Run(setup, components, trainable)
    (setup.workdir / "config.json").write_text(config.to_json_best_effort(indent=2) + "\n")
    if jax.process_index() == 0:
        hf.copy_files(setup.model_dir, setup.workdir / locate.MODEL)
    try:
        with _stop_signals() as stop:
            complete = run.steps(stop)
    finally:
        run.close()
    if complete and config.train.export:
        export(setup, setup.workdir / "export")
    return complete


def export(setup: Setup, out_dir: pathlib.Path) -> None:
    """Turns the newest checkpoint into an HF directory, adapters merged, a tensor at a time (on the first host)."""
    if jax.process_index() == 0:
        conversion = convert.plan_conversion(setup.workdir, setup.config.train.export)
        convert.convert(conversion, out_dir, overwrite=True, progress=False)


def _check(setup: Setup, components) -> None:
    config = setup.config
    for field, allowed in (("dtype", DTYPES), ("remat", REMAT), ("export", ("", *hf.DTYPES))):
        if config.train[field] not in allowed:
            choices = ", ".join(map(repr, allowed))
            raise UserError(f"train.{field}: {config.train[field]!r} is unknown; choose one of {choices}")
    if config.train.samples < 1:
        raise UserError("train.samples is 0: set the length of the run in samples")
    for group, field in (("train", "accumulation"), ("train", "log_every"), ("train", "keep"), ("data", "rows")):
        if config[group][field] < 1:
            raise UserError(f"{group}.{field} is {config[group][field]}, but must be at least 1")
    unit = setup.spec.merge_size**2
    if setup.budget.patches % unit:
        raise UserError(f"data.row_patches is {setup.budget.patches}, but must be a multiple of {unit}")
    if not components:
        raise UserError("data.components is empty: nothing to train on")


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

    def __init__(self, setup: Setup, components, trainable: Trainable):
        config, mesh, cfg = setup.config, setup.mesh, setup.cfg
        self.setup, self.config, self.trainable = setup, config, trainable
        self.groups = 2 * (1 + max(c.group for c in components))
        self.names = {c.group: c.name for c in components}
        tx = optimizers.make(cfg, config.optimizer, trainable.trained_rows)
        self.facts = {"seed": config.seed, "rows": config.data.rows, "parameters": parameters.count(cfg)}
        self.facts |= trainable.facts()
        abstract = steps.abstract_state(cfg, tx, mesh, trainable)
        self.checkpoints = Checkpoints(setup.workdir, config.train.keep)
        if self.checkpoints.latest_step() is None:
            params = trainable.start(hf.load_sharded(setup.model_dir, abstract.params), config.seed)
            self.state, plan = steps.create_state(cfg, params, tx, mesh, trainable), None
        else:
            self.state, plan = self.checkpoints.restore(abstract, self.facts)
        self.step, self.samples = int(self.state.step), int(self.state.samples)
        self.skipped = self.skipped_in_a_row = 0
        dtype = DTYPES[config.train.dtype]
        self.run_step = steps.make_step(
            cfg,
            tx,
            config.optimizer,
            mesh,
            total_samples=config.train.samples,
            groups=self.groups,
            dtype=dtype,
            remat=config.train.remat,
            accumulation=config.train.accumulation,
            trainable=trainable,
            balance=config.train.balance,
            z_loss=config.train.z_loss,
        )
        held_out = self._held_out_components()
        self.held_out = {c.name: held_out_batches(setup, c, config.eval.loss_batches) for c in held_out}
        for name, (_, answers) in self.held_out.items():
            if not answers:
                raise UserError(f"eval.components.{name}: none of its records gives a sample; check its path and task")
        self.run_evaluate = steps.make_evaluate(
            cfg, mesh, groups=2 * (1 + len(held_out)), dtype=dtype, trainable=trainable
        )
        self.batch_sharding = meshes.batch_sharding(mesh, config.train.accumulation)
        self.peak, self.peak_source = flops.peak(jax.local_devices()[0])
        first = jax.process_index() == 0
        self.metrics = Metrics(setup.workdir, self.step, first)
        self.bar = Bar(config.train.samples, self.samples, first)
        self.feed = Feed(setup, components, plan)
        self.bar.say(self._introduction(plan is not None))

    def _held_out_components(self):
        """The held-out components with at most as many questions a record as training has: they share its rows."""
        config = self.config
        most = max(entry.questions for entry in config.data.components.values())
        table = {name: dict(e) | {"questions": min(e.questions, most)} for name, e in config.eval.components.items()}
        return self.setup.components(table) if config.eval.loss_batches else []

    def steps(self, stop: list) -> bool:
        """Steps until the end or a stop signal; saves in both cases."""
        config, last = self.config.train, self.config.train.max_steps
        pending, window = None, _Window()
        if self._due(config.eval_every):
            self.evaluate()
        while not stop and self.samples < config.samples and (not last or self.step < last):
            arrays, ids, samples, stats = self.feed.next()
            lengths = flops.lengths(_flat(arrays, config.accumulation))
            useful = flops.training(self.setup.cfg, lengths, self.trainable.trained_groups, self.trainable.adapters)
            batch = meshes.put_batch(arrays, self.batch_sharding)
            self.state, metrics = self.run_step(self.state, batch, np.int32(samples))
            self.step, self.samples = self.step + 1, self.samples + samples
            checksum = zlib.crc32("\n".join(ids).encode())
            # The numbers of a step are fetched while the next one runs.
            if pending:
                self._record(*pending, window)
            pending = self.step, self.samples, samples, metrics, checksum, stats, useful
            save, evaluate = self._due(config.save_every), self._due(config.eval_every)
            if save or evaluate:
                # Before the save: a state with a broken loss must not become the one that the run goes on from.
                self._record(*pending, window)
                pending = None
            if save:
                self.save()
            if evaluate:
                self.evaluate()
                window.restart()
        if pending:
            self._record(*pending, window)
        complete = self.samples >= config.samples or bool(last and self.step >= last)
        if complete and not self._due(config.eval_every):
            self.evaluate()
        self.save()
        if not complete:
            self.bar.say(f"stopped and saved at step {self.step}; the same command goes on from there")
        return complete

    def _due(self, every: int) -> bool:
        """Whether something that happens at the start and every so many steps (0: never) happens now."""
        return self.step == 0 or (every > 0 and self.step % every == 0)

    def save(self) -> None:
        """Starts an asynchronous checkpoint."""
        self.checkpoints.save(self.step, self.state, self.feed.plan, self.facts)

    def evaluate(self) -> None:
        """Held-out loss by component, beside the entropy of its answers: what a model that sees nothing reaches."""
        row = {"step": self.step, "samples": self.samples}
        for name, (batches, answers) in self.held_out.items():
            total = jnp.zeros(2)
            for arrays in batches:
                batch = meshes.put_batch(_local(arrays), meshes.batch_sharding(self.setup.mesh))
                sums = self.run_evaluate(self.state.params, batch)
                total += jnp.stack([sums["loss"].sum(), sums["tokens"].sum()])
            row[f"eval_loss/{name}"] = float(total[0] / total[1])
            row[f"answer_entropy/{name}"] = answer_entropy(answers)
        if self.held_out:
            self.metrics.write(row, board=True)
            parts = [
                f"{name} {row[f'eval_loss/{name}']:.3f} (answers alone {row[f'answer_entropy/{name}']:.3f})"
                for name in self.held_out
            ]
            self.bar.say(f"step {self.step}: held-out loss, nats a token: {', '.join(parts)}")

    def _record(self, step, seen, samples, metrics, checksum, stats, useful, window) -> None:
        metrics = jax.device_get(metrics)
        loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
        broken = bool(metrics["skipped"])
        self.skipped += broken
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if broken else 0
        if self.skipped_in_a_row >= self.config.train.max_skipped:
            raise UserError(
                f"the loss is {loss} and its gradient's norm {norm} at step {step}, the last of "
                f"{self.skipped_in_a_row} skipped in a row: lower optimizer.learning_rate or look at the data"
            )
        row = {"step": step, "samples": seen, "lr": float(metrics["lr"]), "ids": f"{checksum:08x}"}
        row |= {"skipped": self.skipped} if broken else {"loss": loss, "grad_norm": norm}
        if broken:
            self.bar.say(f"step {step}: loss {loss}, gradient's norm {norm}: skipped ({self.skipped} in this run)")
        window.add(samples, useful, stats, None if broken else metrics["groups"])
        logged = step % self.config.train.log_every == 0
        if logged:
            row |= window.summary(self.names, self.peak * jax.device_count())
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
        """Stops the data threads and waits for the checkpoints."""
        self.feed.close()
        self.bar.close()
        self.metrics.close()
        self.checkpoints.close()


class _Window:
    """Sums since the last logged step."""

    def __init__(self):
        self.restart()

    def restart(self) -> None:
        self.start, self.steps, self.samples, self.useful, self.wait = time.perf_counter(), 0, 0, 0.0, 0.0
        self.fill, self.groups = [], None

    def add(self, samples, useful, stats, groups) -> None:
        self.steps += 1
        self.samples += samples
        self.useful += useful
        self.wait += stats["wait_s"]
        self.fill.append((stats["token_fill"], stats["patch_fill"]))
        if groups is not None:
            self.groups = groups if self.groups is None else jax.tree.map(np.add, self.groups, groups)

    def summary(self, names, peak) -> dict:
        seconds = time.perf_counter() - self.start
        token_fill, patch_fill = np.mean(self.fill, 0)
        row = {
            "samples_per_s": self.samples / seconds,
            "step_s": seconds / self.steps,
            "mfu": self.useful / seconds / peak,
            "data_wait": self.wait / seconds,
            "token_fill": float(token_fill),
            "patch_fill": float(patch_fill),
        }
        if self.groups:
            row |= _group_losses(self.groups, names)
        self.restart()
        return row


def _group_losses(groups: dict, names: dict[int, str]) -> dict[str, float]:
    """Mean loss of each component, of first and of later turns, where there were any."""
    loss, tokens, row = groups["loss"], groups["tokens"], {}
    for group, name in names.items():
        for later, turn in enumerate(("first", "later")):
            if tokens[2 * group + later]:
                row[f"loss/{name}/{turn}"] = float(loss[2 * group + later] / tokens[2 * group + later])
    return row


def _flat(arrays: dict, accumulation: int) -> dict:
    """Rows of all accumulated batches in one axis."""
    return arrays if accumulation == 1 else {k: v.reshape(-1, *v.shape[2:]) for k, v in arrays.items()}


def _local(arrays: dict) -> dict:
    """This host's rows of a batch that every host has whole."""
    hosts, host = jax.process_count(), jax.process_index()
    return {k: np.split(v, hosts)[host] for k, v in arrays.items()}
