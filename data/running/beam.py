"""Shards by Apache Beam: the same function for each, by whatever runner the flags name (extra `beam`)."""

import threading
from collections.abc import Sequence

from vlm3_jax.builders import common
from vlm3_jax.builders.running.plan import Job
from vlm3_jax.builders.running.pool import progress
from vlm3_jax.builders.running.shards import completion, write_shard
from vlm3_jax.errors import UserError

# How often the records of completion are counted, for the progress.
LOOK_S = 2.0


def run(jobs: Sequence[Job], workers: int, flags: Sequence[str]) -> list[dict]:
    """The records of completion. Without flags: Beam's own runner on this machine, with so many processes.

    Other runners need the package, and both folders, wherever their workers are. UserError if the pipeline fails.
    """
    beam = common.module("apache_beam", "beam")
    options = common.module("apache_beam.options.pipeline_options", "beam")
    if not jobs:
        return []
    flags = list(flags) or [
        "--runner=DirectRunner",
        "--direct_running_mode=multi_processing",
        f"--direct_num_workers={workers}",
    ]
    pipeline = beam.Pipeline(options=options.PipelineOptions(flags))
    # One job a bundle, or a runner may give all of them to one worker.
    _ = pipeline | beam.Create(list(jobs), reshuffle=True) | beam.Reshuffle() | beam.Map(write_shard)
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(jobs, over), daemon=True)
    watch.start()
    try:
        pipeline.run().wait_until_finish()
    except Exception as error:
        raise UserError(f"Beam: {_cause(error)}; the same command goes on where it was") from None
    finally:
        over.set()
        watch.join()
    found = [completion(job) for job in jobs]
    if None in found:
        raise UserError(f"Beam ended, but shard {found.index(None)} is not there; can its workers write to --out?")
    return found


def _watch(jobs: Sequence[Job], over: threading.Event) -> None:
    """Says how far it is; counted are whole shards."""
    left = {job.number: job for job in jobs}
    with progress(sum(len(job.items) for job in jobs)) as advance:
        while not over.wait(LOOK_S):
            done = [job for job in left.values() if completion(job) is not None]
            for job in done:
                advance(len(left.pop(job.number).items))


def _cause(error: BaseException) -> str:
    """What went wrong in a worker, in one line, without the tracebacks that Beam puts around it."""
    while error.__cause__ is not None and not isinstance(error, UserError):
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
