"""Orbax checkpoints of a run: parameters under their names, the optimizer's state, data cursors, what the run was.

checkpoints/STEP/params and optimizer   arrays (Orbax items)
checkpoints/STEP/meta                   JSON: cursors, config, held-out losses, and the checksum of every array
checkpoints/STEP.damaged                a checkpoint that cannot be read, kept aside
"""

import asyncio
import contextlib
import dataclasses
import errno
import gc
import json
import logging
import math
import os
import re
import time
import zlib

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from vlm3_jax import storage
from vlm3_jax.checkpoint import locate
from vlm3_jax.checkpoint.layouts import CHUNK_BYTES
from vlm3_jax.checkpoint.locate import CHECKPOINTS
from vlm3_jax.data.schedule import Schedule
from vlm3_jax.errors import Again, UserError
from vlm3_jax.parallel import processes
from vlm3_jax.storage.buckets import Missing, StorageError
from vlm3_jax.storage.orbax import orbax_path
from vlm3_jax.train import settings
from vlm3_jax.train.checksums import checksums, described
from vlm3_jax.train.step import TrainState

# Not signs of a damaged file: the next checkpoint would fare no better.
_NOT_DAMAGE = (UserError, MemoryError, jax.errors.JaxRuntimeError)
# Of the system's errors these say that the files are bad or gone; others that the machine or the storage is in trouble,
# and of those again some pass by themselves.
_BAD_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO, errno.EBADMSG)
_PASSING = (
    *(errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT),
    *(errno.ECONNRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENOTCONN, errno.ESHUTDOWN),
)
# The same of what tensorstore says of a bucket.
_BAD_STATUS = ("NOT_FOUND", "DATA_LOSS", "INVALID_ARGUMENT", "OUT_OF_RANGE", "FAILED_PRECONDITION")
_PASSING_STATUS = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "INTERNAL", "UNKNOWN")
# Seconds in which what another host has saved must become visible.
SHOWN_S = 10


class Damaged(Exception):
    """A checkpoint that cannot be read, or is not what was saved; says why."""


class Checkpoints:
    """The checkpoints of one workdir; saving is asynchronous, restoring takes any mesh.

    The newest `keep` stay, those of every `keep_every`-th step (0: none), and the one whose held-out loss `keep_best`
    is lowest ("": none). `notes`: lines for the user about what `restore` found. OSError if the folder cannot be made,
    Again if not all processes see the same newest step. Close it.
    """

    def __init__(self, workdir, keep: int = 2, keep_every: int = 0, keep_best: str = ""):
        self.folder = storage.path(workdir).absolute() / CHECKPOINTS
        self.notes: list[str] = []
        self._pending: int | None = None
        # Orbax logs, with a stack, what it raises as well; here that is said in a line.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self._best = _Best(keep_best, {step: self._losses(step) for step in locate.steps(workdir)})
        kept = [policies.LatestN(keep), self._best]
        if keep_every:
            kept.append(policies.EveryNSteps(keep_every))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(kept),
            # A save that was killed leaves its folder.
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )
        self._manager = ocp.CheckpointManager(orbax_path(self.folder), options=options)
        self._agree()

    def _agree(self) -> None:
        """Waits until all processes see the same newest step: a host may keep an old list of a shared folder."""
        for _ in range(SHOWN_S):
            found = processes.gather({"step": np.array(max(self._manager.all_steps(), default=-1))})["step"]
            if (found == found[0]).all():
                return
            time.sleep(1)
            self._manager.reload()
        other = int(np.flatnonzero(found != found[0])[0])
        first, second = (f"step {found[k]}" if found[k] >= 0 else "none" for k in (0, other))
        raise Again(
            f"{self.folder}: the newest checkpoint is {first} in process 0 and {second} in process {other}; the hosts "
            "must see the same files: start again, and if it stays so, look at the file system they share"
        )

    def latest_step(self) -> int | None:
        """The newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(
        self,
        step: int,
        state: TrainState,
        schedule: Schedule,
        facts: dict,
        config: dict | None = None,
        losses: dict[str, float] | None = None,
    ) -> None:
        """Saves in the background; UserError if this save or the one before fails.

        `facts` (the seed, the model's shapes) must be the same on restore; of `config` differences are told. Both are
        JSON. `losses`: the held-out losses of this step, if they were measured.
        """
        if step in self._manager.all_steps():
            return
        self.wait()
        tree = schedule.to_tree()
        losses = {name: loss for name, loss in (losses or {}).items() if math.isfinite(loss)}
        meta = {
            "cursors": tree["cursors"].tolist(),
            "phases": tree["phases"],
            "facts": facts,
            "config": config or {},
            "losses": losses,
            "arrays": described(state),
            "checksums": checksums(state),
        }
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params, jax.tree.map(_chunks, state.params)),
            optimizer=ocp.args.StandardSave(_numbered(state)),
            meta=ocp.args.JsonSave(meta | {"crc32": _crc32(meta)}),
        )
        self._best.losses[step], self._pending = losses, step
        with self._one_line():
            self._manager.save(step, args=items)

    def wait(self) -> None:
        """Waits until all that was saved is on disk. UserError if it could not be written."""
        with self._one_line():
            self._manager.wait_until_finished()

    def check(self) -> None:
        """UserError if a save has failed in the background; does not wait for one that is under way."""
        if not self._manager.is_saving_in_progress():
            self.wait()

    def restore(self, abstract: TrainState, facts: dict, config: dict | None = None) -> tuple[TrainState, Schedule]:
        """The newest state that can be read, in the shardings of `abstract`.

        Damaged checkpoints behind it are set aside. UserError if none can be read, or if the run was another one; Again
        if the same call may succeed in a new process.
        """
        damaged: dict[int, str] = {}
        for step in reversed(self._manager.all_steps()):
            meta, state = self._read(step, abstract, facts, damaged)
            if state is None:
                # What has been read must go before the next is: the error has held on to it.
                gc.collect()
                continue
            for bad, reason in damaged.items():
                aside = self._set_aside(bad)
                self.notes.append(
                    f"{self.folder}: step {bad} is damaged ({reason}), kept aside as {aside}; going on from step {step}"
                )
            if config and (changed := settings.changes(meta["config"], config)):
                self.notes.append(f"settings changed since step {step}, and are used as they are now: {changed}")
            cursors = np.asarray(meta["cursors"], np.int64)
            return state, Schedule.from_tree({"cursors": cursors, "phases": meta["phases"]})
        raise self._none_left(damaged)

    def _none_left(self, damaged: dict[int, str]) -> UserError:
        reasons = ", ".join(f"step {step}: {reason}" for step, reason in damaged.items())
        return UserError(
            f"{self.folder}: no checkpoint can be read ({reasons}); put back a copy, or use another --workdir"
        )

    def _read(self, step, abstract, facts, damaged) -> tuple[dict | None, TrainState | None]:
        """Meta and state of a step; None for both, and the reason in `damaged`, if they cannot be read."""
        try:
            meta = self._meta(step)
            self._refuse_another_run(step, meta, facts, described(abstract))
            return meta, self._state(step, meta, abstract)
        except Damaged as error:
            damaged[step] = str(error)
            return None, None

    def close(self) -> None:
        """Waits for what is under way. A save that fails only now is not reported: `wait` does that."""
        with contextlib.suppress(UserError):
            self.wait()
        self._manager.close()

    def _losses(self, step: int) -> dict[str, float]:
        with contextlib.suppress(Damaged):
            return self._meta(step).get("losses", {})
        return {}

    def _meta(self, step: int) -> dict:
        try:
            with self._reading(step):
                meta = json.loads((self.folder / str(step) / "meta" / "metadata").read_bytes())
            stored = meta.pop("crc32", None)
        except (ValueError, TypeError, AttributeError, OSError):
            raise Damaged("meta is missing or no JSON object") from None
        if stored == _crc32(meta):
            return meta
        raise Damaged("meta is not what was saved")

    def _refuse_another_run(self, step: int, meta: dict, facts: dict, wanted: dict[str, list]) -> None:
        for key, value in json.loads(json.dumps(facts)).items():
            if meta["facts"].get(key) != value:
                raise UserError(
                    f"{self.folder}: the saved run has {key} = {meta['facts'].get(key)}, the configuration {value}; "
                    "use another --workdir or the old setting"
                )
        found = meta["arrays"]
        # Parameters first: their names say more than those of moments.
        for name in sorted(found.keys() | wanted.keys(), key=lambda name: (not name.startswith("params."), name)):
            if found.get(name) != wanted.get(name) or name not in wanted:
                raise UserError(
                    f"{self.folder}: {name} is {_text(found, name)} in step {step} and {_text(wanted, name)} here: "
                    "another version of this program has saved it, or it is of another model or optimizer; "
                    "use another --workdir"
                )

    def _state(self, step: int, meta: dict, abstract: TrainState) -> TrainState:
        restore = ocp.args.Composite(
            params=ocp.args.StandardRestore(abstract.params),
            optimizer=ocp.args.StandardRestore(_numbered(abstract)),
        )
        try:
            with self._reading(step):
                found = self._manager.restore(step, args=restore)
        except _NOT_DAMAGE as error:
            if not isinstance(error, Missing):
                raise
            raise Damaged(str(error)) from None
        # Damaged files make Orbax raise whatever its parsers stumble over: KeyError, AttributeError, Exception.
        except Exception as error:
            if jax.process_count() > 1:
                raise self._damaged_for_all(step, _first_line(error)) from None
            raise Damaged(_first_line(error)) from None
        others = jax.tree.unflatten(jax.tree.structure(_others(abstract)), jax.tree.leaves(found.optimizer))
        state = dataclasses.replace(others, params=found.params)
        wrong = [name for name, checksum in checksums(state).items() if meta["checksums"][name] != checksum]
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise Damaged(f"{wrong[0]}{more} not what was saved")
        return state

    def _damaged_for_all(self, step: int, reason: str) -> UserError:
        """What ends this process: the others may have read their parts, and wait for it."""
        if not any(other < step for other in self._manager.all_steps()):
            # Without it the same command would start anew.
            return self._none_left({step: reason})
        return Again(
            f"{self.folder}: step {step} is damaged ({reason}), kept aside as {self._set_aside(step)}; "
            "the same command goes on from the one before"
        )

    def _set_aside(self, step: int) -> str:
        """Renames a damaged checkpoint, unless another host has done so; returns its name."""
        name = f"{step}.damaged"
        while (self.folder / name).exists() and (self.folder / str(step)).exists():
            name += "-again"
        with contextlib.suppress(FileNotFoundError):
            (self.folder / str(step)).rename(self.folder / name)
        self._manager.reload()
        return name

    @contextlib.contextmanager
    def _one_line(self):
        """What Orbax raises when a save fails as a UserError."""
        try:
            yield
        except (OSError, ValueError) as error:
            kind, why = self._trouble(error)
            if not kind:
                raise
            raise kind(
                f"{self.folder}: step {self._pending} cannot be saved ({why}); once that is mended, the same command "
                f"{self._rest()}"
            ) from None

    def _rest(self) -> str:
        try:
            complete = locate.steps(self.folder.parent)
        except StorageError:
            return "goes on from the newest complete step"
        return f"goes on from step {complete[-1]}" if complete else "starts anew"

    def _trouble(self, error: Exception) -> tuple[type[UserError] | None, str]:
        """What to raise for a failure of the system, or of the bucket, and its reason; None if it is neither."""
        for cause in _causes(error):
            if isinstance(cause, StorageError) and not isinstance(cause, Missing):
                return (Again if isinstance(cause, Again) else UserError), str(cause)
            # tensorstore: the name of a status, then what the server said.
            if storage.is_remote(self.folder) and (status := re.match(r"([A-Z_]{6,}): ", str(cause))):
                kind = Again if status[1] in _PASSING_STATUS else UserError
                return (None if status[1] in _BAD_STATUS else kind), _first_line(cause)
        number = _errno(error)
        return (_kind(number), os.strerror(number)) if number else (None, "")

    @contextlib.contextmanager
    def _reading(self, step: int):
        """What says nothing of the files: Ctrl-C and lack of memory as they are, system errors as a UserError."""
        try:
            yield
        except Exception as error:
            for cause in _causes(error):
                if isinstance(cause, asyncio.CancelledError | KeyboardInterrupt):
                    raise KeyboardInterrupt from None
                if isinstance(cause, _NOT_DAMAGE) and not isinstance(cause, StorageError):
                    raise cause from None
            kind, why = self._trouble(error)
            if not kind or (_errno(error) in _BAD_FILE and not storage.is_remote(self.folder)):
                raise
            raise kind(
                f"{self.folder}: step {step} cannot be read ({why}); "
                "once that is mended, the same command goes on from there"
            ) from None


@dataclasses.dataclass
class _Best(policies.PreservationPolicy):
    """Keeps the checkpoint with the lowest loss `name`; `losses`: {step: {name: loss}}.

    Orbax's own BestN reads a file of every step when the folder is opened, and fails where one is damaged.
    """

    name: str
    losses: dict[int, dict[str, float]]

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        """Whether each is the best one."""
        found = {c.step: self.losses.get(c.step, {}).get(self.name, math.inf) for c in checkpoints}
        best = min(found, key=found.get, default=None)
        return [c.step == best and found[best] < math.inf for c in checkpoints]


def _others(state: TrainState) -> TrainState:
    """All but the parameters."""
    return dataclasses.replace(state, params={})


def _numbered(state: TrainState) -> dict:
    """Leaves in a fixed order: optax's named tuples do not survive a round trip through a file as types."""
    return {f"{number:04d}": leaf for number, leaf in enumerate(jax.tree.leaves(_others(state)))}


def _chunks(leaf) -> ocp.SaveArgs:
    """A layer a chunk, so that `vlm3 convert` can read one without its stack; small arrays whole."""
    if leaf.nbytes <= CHUNK_BYTES:
        return ocp.SaveArgs()
    return ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES, shard_axes=(0,) if leaf.ndim > 2 else ())


def _crc32(meta: dict) -> str:
    return f"{zlib.crc32(json.dumps(meta, sort_keys=True).encode()):08x}"


def _text(arrays: dict[str, list], name: str) -> str:
    return "{} {}".format(*arrays[name]) if name in arrays else "missing"


def _causes(error: BaseException | None):
    """The error and those behind it: Orbax wraps all that is raised while an array is read, Ctrl-C too."""
    while error:
        yield error
        error = error.__cause__


def _errno(error: Exception) -> int | None:
    """The number of the system's error; tensorstore names it in the text of a ValueError."""
    for each in _causes(error):
        named = re.search(r"os_error_code='(\d+)'", str(each))
        if number := int(named[1]) if named else getattr(each, "errno", None):
            return number
    return None


def _kind(number: int) -> type[UserError]:
    return Again if number in _PASSING else UserError


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:120] or type(error).__name__
