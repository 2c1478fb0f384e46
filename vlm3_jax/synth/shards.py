"""Build a synthetic data set as ArrayRecord shards, with several processes."""

import dataclasses
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import time

from array_record.python.array_record_module import ArrayRecordWriter
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vlm3_jax import storage
from vlm3_jax.errors import UserError
from vlm3_jax.files import writing
from vlm3_jax.records import to_bytes
from vlm3_jax.storage import lock
from vlm3_jax.storage.folders import put_folder, scratch
from vlm3_jax.synth.options import SynthOptions
from vlm3_jax.synth.pairs import record

# Raise it when the same (seed, index, options) starts to give other records.
FORMAT_VERSION = 1
SHARD_RECORDS = 256
SIDECAR = "dataset.json"


def build(
    out_dir, count: int, options: SynthOptions, seed: int, first: int = 0, workers: int = 2, progress: bool = True
) -> storage.AnyPath:
    """Write records `first` .. `first + count - 1` of data set `seed` to `out_dir`; return that folder.

    The files depend on everything but `workers` and `progress` (a bar, on a terminal only). Shards hold 256 records
    and appear all at once, together with `dataset.json`. A folder that already holds this very data set is left as it
    is; UserError if it holds anything else. Processes are spawned: a script that calls this with workers > 1 needs the
    usual `if __name__ == "__main__":`.
    """
    out_dir = storage.path(out_dir)
    if count < 1 or first < 0 or seed < 0 or workers < 1:
        raise UserError(
            f"{out_dir}: count and workers must be at least 1, first and seed at least 0; "
            f"got count={count}, workers={workers}, first={first}, seed={seed}"
        )
    # Through JSON and back, so that it compares equal to what a file holds (tuples become lists).
    description = json.loads(
        json.dumps(
            {
                "format_version": FORMAT_VERSION,
                "seed": seed,
                "first": first,
                "count": count,
                "options": dataclasses.asdict(options),
            }
        )
    )
    if _already_built(out_dir, description):
        return out_dir
    if not storage.is_remote(out_dir):
        with writing(out_dir):
            out_dir.parent.mkdir(parents=True, exist_ok=True)
        _build(out_dir, out_dir.parent, description, options, workers, progress)
        return out_dir
    # Beside the folder, which is replaced as a whole. On a disk that takes a moment, and needs no lock.
    with lock.held(out_dir.with_name(f".{out_dir.name}.lock"), out_dir, "build", "--out") as check:
        if not _already_built(out_dir, description):
            _build(out_dir, scratch(out_dir).parent, description, options, workers, progress, check)
    return out_dir


def _build(
    out_dir, beside: pathlib.Path, description: dict, options, workers: int, progress: bool, check=lambda: None
) -> None:
    """Into a folder `beside` first, which takes its place; `check()` is called before it goes into a bucket."""
    seed, first, count = (description[name] for name in ("seed", "first", "count"))
    with writing(out_dir):
        partial = pathlib.Path(tempfile.mkdtemp(prefix=f".{out_dir.name}.", dir=beside))
    try:
        partial.chmod(0o755)
        jobs = _shard_jobs(partial, count, options, seed, first)
        if min(workers, len(jobs)) == 1:
            with _bar(count, progress) as advance:
                for job in jobs:
                    _write_shard(*job, advance)
        else:
            _run_workers(jobs, min(workers, len(jobs)), count, progress)
        with writing(out_dir):
            (partial / SIDECAR).write_text(json.dumps(description, indent=2) + "\n")
            if not storage.is_remote(out_dir):
                os.replace(partial, out_dir)
                return
        check()
        put_folder(partial, out_dir, last=SIDECAR)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _already_built(out_dir: storage.AnyPath, description) -> bool:
    """Whether the folder holds exactly this data set; UserError if it holds something else."""
    if not out_dir.exists() or (out_dir.is_dir() and not any(out_dir.iterdir())):
        return False
    sidecar = out_dir / SIDECAR
    if not sidecar.is_file():
        raise UserError(f"{out_dir}: not empty and no {SIDECAR} in it; choose another folder or empty this one")
    try:
        held = json.loads(sidecar.read_text())
    except ValueError:
        held = None
    if not isinstance(held, dict):
        raise UserError(f"{sidecar}: not a data set description; choose another folder or empty this one")
    held, wanted = _fields(held), _fields(description)
    different = sorted(
        f"{k}={held.get(k)!r} (wanted {wanted.get(k)!r})"
        for k in held.keys() | wanted.keys()
        if held.get(k) != wanted.get(k)
    )
    if different:
        raise UserError(f"{out_dir}: holds another data set, {'; '.join(different)}; choose another folder or empty it")
    return True


def _fields(description: dict) -> dict:
    """One level deep; an option that the data set is too old to have is at its default, which changed nothing."""
    options = description.get("options")
    defaults = json.loads(json.dumps(dataclasses.asdict(SynthOptions())))
    found = {k: v for k, v in description.items() if k != "options"}
    return found | defaults | options if isinstance(options, dict) else found


def _shard_jobs(folder, count, options, seed, first):
    """(path, first index, one past the last index, options, seed) of every shard."""
    starts = range(first, first + count, SHARD_RECORDS)
    return [
        (
            folder / f"records-{k:05d}-of-{len(starts):05d}.array_record",
            start,
            min(start + SHARD_RECORDS, first + count),
            options,
            seed,
        )
        for k, start in enumerate(starts)
    ]


def _write_shard(path, start, stop, options, seed, advance):
    with writing(path):
        writer = ArrayRecordWriter(str(path), "group_size:1")
    for index in range(start, stop):
        data = to_bytes(record(seed, index, options))
        with writing(path):
            writer.write(data)
        advance()
    with writing(path):
        writer.close()


def _work(jobs, done):
    # The parent alone answers Ctrl-C: it terminates the workers. If it was killed itself, they end on their own.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def advance():
        if not parent.is_alive():
            raise SystemExit(1)
        with done.get_lock():
            done.value += 1

    try:
        for job in jobs:
            _write_shard(*job, advance)
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.code) from None


def _run_workers(jobs, workers, count, progress):
    """Every worker writes its own share of the shards; whatever happens, none outlives this call."""
    # Not fork: the caller may have started jax and its threads.
    context = multiprocessing.get_context("spawn")
    done = context.Value("q", 0)
    processes = [context.Process(target=_work, args=(jobs[w::workers], done), daemon=True) for w in range(workers)]
    try:
        for process in processes:
            process.start()
        with _bar(count, progress) as advance:
            shown = 0
            while any(process.is_alive() for process in processes):
                time.sleep(0.1)
                if any(process.exitcode for process in processes):
                    break
                advance(done.value - shown)
                shown = done.value
        for process in processes:
            if process.exitcode:
                error = UserError if process.exitcode == UserError.code else RuntimeError
                raise error(f"a rendering process ended with exit code {process.exitcode}; see its message above")
    finally:
        for process in processes:
            if process.pid is not None:
                process.terminate()
                process.join()


class _bar:
    """A progress bar as a context that gives `advance(n=1)`; silent where the output is no terminal."""

    def __init__(self, total, shown):
        columns = TextColumn("rendering"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self._progress = Progress(*columns, transient=True)
        self._progress.disable = not (shown and self._progress.console.is_terminal)
        self._task = self._progress.add_task("", total=total)

    def __enter__(self):
        self._progress.start()
        return lambda n=1: self._progress.advance(self._task, n)

    def __exit__(self, *_):
        self._progress.stop()
