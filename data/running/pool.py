"""Many shards by several processes, each with a processor to itself, and how far they are."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool

from vlm3_jax.builders.running.plan import Job
from vlm3_jax.builders.running.shards import write_shard
from vlm3_jax.errors import UserError

# Of lines that say how far it is, where the output is no terminal.
EVERY_S = 30.0
# A process does one thing at a time; libraries that would start a thread a core only get in each other's way.
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}

_done = None


def run(jobs: Sequence[Job], workers: int, finished: Callable[[dict], None]) -> None:
    """Writes the shards; `finished` gets each record of completion, in any order, and may end it by raising.

    Processes are spawned, and end with this one whatever happens to it.
    """
    total = sum(len(job.items) for job in jobs)
    if min(workers, len(jobs)) <= 1:
        with progress(total) as advance:
            for job in jobs:
                finished(write_shard(job, advance))
        return
    # Not fork: the caller may have started jax and its threads.
    context = multiprocessing.get_context("spawn")
    done = context.Value("q", 0)
    with _environment(ONE_THREAD):
        pool = concurrent.futures.ProcessPoolExecutor(min(workers, len(jobs)), context, _begin, (done, os.getpid()))
        waiting = {pool.submit(_shard, job) for job in jobs}
    try:
        with progress(total) as advance:
            shown = 0
            while waiting:
                ended, waiting = concurrent.futures.wait(waiting, 0.2, concurrent.futures.FIRST_COMPLETED)
                advance(done.value - shown)
                shown = done.value
                for one in ended:
                    finished(one.result())
    except BrokenProcessPool:
        raise UserError(
            "a process that wrote shards was killed, perhaps for want of memory; the same command with fewer --workers "
            "goes on where it was"
        ) from None
    except BaseException:
        # Shards that are under way are begun anew: nothing waits for them.
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(done, parent: int) -> None:
    """In each process: what it counts on, and an end with its parent, which alone answers Ctrl-C."""
    global _done
    _done = done
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _shard(job: Job) -> dict:
    def tick():
        with _done.get_lock():
            _done.value += 1

    return write_shard(job, tick)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """What processes that are started meanwhile inherit, unless it is set."""
    new = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            del os.environ[name]


@contextlib.contextmanager
def progress(total: int) -> Iterator[Callable[..., None]]:
    """Gives `advance(n=1)`: a bar on a terminal, else a line on stderr now and then, with the time that is left."""
    if sys.stderr.isatty():
        # Not at the top: every process would import it.
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = TextColumn("building"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=total)
            yield lambda n=1: bar.advance(task, n)
        return
    start = last = time.monotonic()
    count = 0

    def advance(n=1):
        nonlocal last, count
        count += n
        now = time.monotonic()
        if now - last >= EVERY_S and count:
            last = now
            rate = count / (now - start)
            left = (total - count) / rate
            text = f"{count:,} of {total:,} items, {rate:.1f}/s, about {_duration(left)} left"
            print(text, file=sys.stderr, flush=True)

    yield advance


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min" if minutes else "1 min"
