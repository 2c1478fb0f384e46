"""Several processes of one run: how they find each other, tell each other things, and end when one of them is lost.

Every process runs the same program. Where only one may act (writing files), it is the first, number 0. A process that
fails ends at once, without the farewell that the others would have to answer. They notice: an exchange with it fails,
which they say in a line, or the runtime misses its heartbeats and aborts them with a report of its own
(docs/scaling.md says how to read it). The same command then goes on from the newest checkpoint.
"""

import contextlib
import os
import re
import sys
import traceback
import warnings
from collections.abc import Mapping

import numpy as np

from vlm3_jax.errors import UserError

# A process that says nothing for so long is lost. What its runtime tells of it must reach everybody within a minute.
HEARTBEAT_S = 40
# How long a process waits for all to be there.
JOIN_S = 300
# How long the others wait for what the first does alone: fetching the model, writing the export.
ALONE_S = 3 * 3600
# Another process is lost: nothing in the config is wrong, the same command may be run again.
LOST = 1
_LOST = re.compile(r"gloo|nccl|coordination service|connection (reset|closed|refused)|socket closed|heartbeat", re.I)
_joined: tuple[int, int] | None = None


@contextlib.contextmanager
def joined(command: str, coordinator: str | None = None, processes: int | None = None, process: int | None = None):
    """Inside, this process is one of those of the run; to be entered before anything touches a device.

    The launcher's environment (TPU pods, SLURM, Open MPI) says which one, or the three arguments do: `coordinator` is
    HOST:PORT of process 0, `process` this one's number. Where neither does, it is alone and nothing happens; 1 as
    `processes` means alone in any environment. UserError if they do not belong together.
    """
    global _joined
    where = _place(coordinator, processes, process)
    if where is None:
        yield
        return
    _, processes, process = where
    if processes:
        _joined = process, processes
    with ends_together(command):
        _initialize(*where)
        import jax

        # A process that is alone must not start its devices yet: the config may say how many.
        if _joined is None and jax.distributed.is_initialized() and jax.process_count() > 1:
            _joined = jax.process_index(), jax.process_count()
        yield


def _name(command: str) -> str:
    return f"vlm3 {command}: process {_joined[0]} of {_joined[1]}"


@contextlib.contextmanager
def ends_together(command: str = "train"):
    """An error in here ends this process at once if there are others: they cannot go on, and must not wait for it."""
    try:
        yield
    except BaseException as error:
        if _joined is None:
            raise
        code, text = _verdict(error)
        sys.stdout.flush()
        print(f"{_name(command)}: {text}", file=sys.stderr, flush=True)
        os._exit(code)


def gather(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every array of every process, [processes, ...], bit by bit; shapes and dtypes must be the same everywhere.

    Each process waits for all: call it in the same order everywhere.
    """
    import jax
    from jax.experimental import multihost_utils

    arrays = {key: np.asarray(value) for key, value in values.items()}
    if jax.process_count() == 1:
        return {key: value[None] for key, value in arrays.items()}
    # As bytes, since jax would cut 64 bits to 32.
    packed = b"".join(value.tobytes() for value in arrays.values())
    found = multihost_utils.process_allgather(np.frombuffer(packed, np.uint8))
    ends = np.cumsum([value.nbytes for value in arrays.values()])
    parts = np.split(found, ends[:-1], axis=1)
    return {
        key: np.ascontiguousarray(part).view(value.dtype).reshape(len(found), *value.shape)
        for (key, value), part in zip(arrays.items(), parts, strict=True)
    }


def over_rows(rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The sum [...] of gathered counts [processes, ...], each of the process's rows [processes, rows].

    Where the tensor axis crosses processes, several bring the same rows; those count once.
    """
    _, first = np.unique(rows, axis=0, return_index=True)
    return counts[first].sum(0)


@contextlib.contextmanager
def first_before_others(name: str):
    """Process 0 runs the block before the others do: what it writes there, they find. `name` is used once a run."""
    import jax
    from orbax.checkpoint import multihost

    # Through the coordinator, for as long as it takes.
    wait = multihost.get_barrier_sync_fn()
    if jax.process_index() > 0:
        wait(key=name, timeout_ms=1000 * ALONE_S)
    yield
    if jax.process_index() == 0:
        wait(key=name, timeout_ms=1000 * ALONE_S)


def all_here(name: str) -> None:
    """Waits until every process has come so far, for hours if need be; `name` is used once a run."""
    import jax

    if jax.process_count() > 1:
        from orbax.checkpoint import multihost

        multihost.get_barrier_sync_fn()(key=name, timeout_ms=1000 * ALONE_S)


def _place(coordinator, processes, process):
    """What `_initialize` needs, or None for a process that is alone."""
    given = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    if processes == 1:
        return None
    if coordinator is None and (processes, process) != (None, None):
        raise UserError("--coordinator: missing; give HOST:PORT of process 0, with a free port")
    size, number = _launched()
    if processes is None and process is None:
        processes, process = size, number
    if size == 1 and coordinator is None:
        return None
    missing = [name for name, value in given.items() if value is None]
    if coordinator is not None and (processes is None or process is None):
        raise UserError(f"{', '.join(missing)}: missing, and no launcher (SLURM, Open MPI) says it; give all three")
    if process is not None and not 0 <= process < processes:
        raise UserError(f"--process={process} is not one of 0 to {processes - 1} (--processes={processes})")
    if coordinator is not None and not re.fullmatch(r".+:\d+", coordinator):
        raise UserError(f"--coordinator={coordinator}: not of the form HOST:PORT")
    return coordinator, processes, process


def _launched() -> tuple[int | None, int | None]:
    """(processes, number of this one) that SLURM's or Open MPI's environment tells; Nones without them."""
    for size, number in (("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"), ("SLURM_NTASKS", "SLURM_PROCID")):
        # SLURM_NTASKS without a step's node list: the batch script itself, which is a process of its own.
        if size in os.environ and (size[0] == "O" or "SLURM_STEP_NODELIST" in os.environ):
            return int(os.environ[size]), int(os.environ[number])
    return None, None


def _initialize(coordinator, processes, process) -> None:
    """Joins the others; where jax finds no launcher's environment either, this process is alone."""
    import jax

    # Orbax and jax would each answer SIGTERM in their own way; the training loop does.
    jax.config.update("jax_enable_preemption_service", False)
    known = (
        {"coordinator_address": coordinator, "num_processes": processes, "process_id": process} if coordinator else {}
    )
    try:
        with warnings.catch_warnings():
            # A pod of Kubernetes that is no part of a larger job.
            warnings.filterwarnings("ignore", "\\s*Kubernetes environment detected")
            jax.distributed.initialize(
                **known,
                cluster_detection_method="deactivate" if coordinator else None,
                initialization_timeout=JOIN_S,
                heartbeat_timeout_seconds=HEARTBEAT_S,
                shutdown_timeout_seconds=ALONE_S,
            )
    except (ValueError, RuntimeError) as error:
        # Nothing found; or called from a program that has used devices before, which only one that is alone may.
        if not re.search("(should|must) be defined|must be called before", str(error)) or coordinator:
            raise
        if processes:
            raise UserError(
                "the launcher does not say where process 0 is; add --coordinator=HOST:PORT, the same for all"
            ) from None


def _verdict(error: BaseException) -> tuple[int, str]:
    """The exit code and what to print for an error that ends a process among others."""
    if isinstance(error, UserError):
        return error.code, " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted"
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1, f"exit code {error.code}"
    if isinstance(error, ValueError | RuntimeError) and _LOST.search(str(error)):
        reason = " ".join(str(error).split())
        return LOST, (
            "another process is lost; its own output says why; the same command goes on from what is saved "
            f"({reason[:200]})"
        )
    return LOST, "failed\n" + "".join(traceback.format_exception(error))
