"""A build from its options to its summary: what is there already is kept, the rest is written by one of two runners."""

import concurrent.futures
import contextlib
import json
import logging
from collections.abc import Callable, Sequence

from vlm3_jax.builders import common
from vlm3_jax.builders.running import finish, pool
from vlm3_jax.builders.running.plan import MAX_BAD, Build, Job, folder, jobs
from vlm3_jax.builders.running.shards import completion, unchanged
from vlm3_jax.errors import UserError
from vlm3_jax.files import write_text, writing
from vlm3_jax.storage import is_remote, lock

PLAN = "plan.json"
LOCK = "lock"

_log = logging.getLogger(__name__)


def build(what: Build, workers: int = 2, max_bad: float = MAX_BAD, beam: Sequence[str] | None = None) -> finish.Summary:
    """Writes the shards that are not there yet. The files depend on `what` alone, not on who writes them.

    `workers` processes; with `beam`, a list of Beam's flags, Apache Beam runs them. UserError if the folder holds
    another build, or if more than `max_bad` of the items fail.
    """
    if workers < 1 or not 0 <= max_bad <= 1:
        raise UserError(f"--workers={workers} --max-bad={max_bad:g}: give at least 1, and a share from 0 to 1")
    if beam is not None:
        common.module("apache_beam", "beam")
    about, todo = jobs(what)
    # Looked at first, so that a folder of others is left as it is; and again when nobody else may write there.
    if not _is_claimed(what, about):
        with writing(what.out):
            folder(what.out).mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with writing(what.out):
            check = stack.enter_context(lock.held(folder(what.out) / LOCK, what.out, "build", "--out"))
        if not _is_claimed(what, about):
            with writing(what.out):
                write_text(folder(what.out) / PLAN, json.dumps(about, indent=2) + "\n")
        return _build(what, about, todo, workers, max_bad, beam, check)


def _build(
    what: Build, about: dict, todo: list[Job], workers: int, max_bad: float, beam, check: Callable[[], None]
) -> finish.Summary:
    if not is_remote(what.out):
        for left_by_a_kill in folder(what.out).glob("*.part"):
            left_by_a_kill.unlink()
    there = _sound(todo, workers)
    done = [one for one in there if one is not None and not one["failed"]]
    left = [job for job, one in zip(todo, there, strict=True) if one is None or one["failed"]]

    def finished(one: dict) -> None:
        check()
        done.append(one)
        if error := finish.too_many(what, done, about["items"], max_bad):
            finish.write_rejected(what, done)
            raise error

    if beam is None:
        pool.run(left, workers, finished)
    else:
        from vlm3_jax.builders.running.beam import run

        for one in run(left, workers, beam):
            finished(one)
    check()
    with writing(what.out):
        return finish.finish(about, what.builder(), todo, done)


def _sound(todo: Sequence[Job], workers: int) -> list[dict | None]:
    """The records of completion of the shards that are there and hold the bytes that were written.

    A damaged one is said, and forgotten. Those in a bucket are not read: their sizes are compared alone.
    """
    with concurrent.futures.ThreadPoolExecutor(workers) as threads:
        found = list(threads.map(completion, todo))
        good = list(threads.map(lambda job, one: one is None or unchanged(job, one), todo, found))
    for number, job in enumerate(todo):
        if not good[number]:
            _log.warning("%s: its bytes are not those that were written (sha256); it is built again", job.shard)
            job.completion.unlink()
            found[number] = None
    return found


def _is_claimed(what: Build, about: dict) -> bool:
    """Whether the folder holds (a part of) this build, or may become it; UserError if it holds anything else."""
    plan = folder(what.out) / PLAN
    try:
        held = json.loads(plan.read_text(encoding="utf-8"))
    except FileNotFoundError:
        # A lock alone is nothing.
        if what.out.exists() and (not what.out.is_dir() or {path.name for path in what.out.iterdir()} - {"built"}):
            raise UserError(f"--out={what.out}: it holds other files; choose another folder or empty it") from None
        return False
    except NotADirectoryError:
        raise UserError(f"--out={what.out}: a part of this path is a file; choose another folder") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{plan}: cannot be read ({error}); choose another folder or empty it") from None
    held = held if isinstance(held, dict) else {}
    names = sorted(name for name in about.keys() | held.keys() if held.get(name) != about.get(name))
    if names:
        found = "; ".join(f"{name} = {held.get(name)!r} (wanted {about.get(name)!r})" for name in names)
        raise UserError(f"--out={what.out}: holds another build, {found}; choose another folder or empty it")
    return True
