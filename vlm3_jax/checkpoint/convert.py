"""`vlm3 convert`: an HF directory or hub name to a checkpoint of ours, and a checkpoint or training workdir back.

Tensors go one by one from the memory-mapped source into files beside the target, which takes its name when all are
there. The same call after a kill goes on with the tensors that are missing.
"""

import dataclasses
import pathlib

import rich.console
import rich.progress

from vlm3_jax.checkpoint import hf
from vlm3_jax.checkpoint.layouts import checkpoint_plan, hf_plan
from vlm3_jax.checkpoint.locate import fetch, is_workdir
from vlm3_jax.checkpoint.sources import HFSource, Source, open_source
from vlm3_jax.checkpoint.writing import WritePlan, finish, free_bytes, write
from vlm3_jax.errors import UserError
from vlm3_jax.model import params as parameters
from vlm3_jax.storage import local_path


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What a call will do: the source, the files it becomes, and in words from what to what."""

    source: Source
    plan: WritePlan
    direction: str

    def report(self) -> str:
        """Direction, tensors, bytes, dtypes, and parameters by group and in total."""
        cfg, groups = self.source.cfg, dict.fromkeys(parameters.GROUPS, 0)
        for row in self.source.rows:
            groups[row.group] += row.size
        dtypes = ", ".join(sorted({str(job.dtype) for job in self.plan.jobs}))
        lines = [
            self.direction,
            f"{len(self.plan.jobs):,} tensors, {self.plan.nbytes:,} bytes as {dtypes}",
            *(f"{group:>12} {count:>16,} parameters" for group, count in groups.items()),
            f"{'total':>12} {parameters.count(cfg):>16,} parameters",
        ]
        return "\n".join(lines)


def plan_conversion(
    source, dtype: str | None = None, step: int | None = None, max_shard_bytes: int | None = None
) -> Conversion:
    """Looks at a source (its headers only). UserError names what is wrong with it."""
    local = local_path(source, "source")
    there = is_workdir(local) or (local / "config.json").exists()
    opened = open_source(local if there else fetch(str(source)), step)
    if isinstance(opened, HFSource):
        return Conversion(opened, checkpoint_plan(opened, dtype), f"{source}: HF directory -> Orbax checkpoint")
    plan = hf_plan(opened, dtype, max_shard_bytes or hf.MAX_SHARD_BYTES)
    return Conversion(opened, plan, f"{opened.weights}: Orbax checkpoint -> HF directory")


def convert(conversion: Conversion, target, overwrite: bool = False, progress: bool = True) -> pathlib.Path:
    """Writes the other form of the source to `target`, which must be missing or empty.

    `overwrite` replaces an older model there. UserError if the target is taken, the disk is full or the source damaged;
    the target is then as it was.
    """
    target, source, plan = local_path(target, "target"), conversion.source, conversion.plan
    _check_target(target, source, overwrite)
    aside = target.with_name(target.name + ".converting")
    kept = aside if aside.is_dir() else None
    free, have = free_bytes(target), sum(p.stat().st_blocks * 512 for p in kept.rglob("*")) if kept else 0
    if plan.nbytes > free + have:
        raise UserError(f"{target}: {plan.nbytes:,} bytes are needed, the disk has {free + have:,}")
    identity = [
        str(source.files.absolute()),
        [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in source.paths()],
        [(job.name, str(job.dtype), [dataclasses.astuple(piece) for piece in job.pieces]) for job in plan.jobs],
    ]
    console = rich.console.Console(stderr=True)
    columns = (
        *rich.progress.Progress.get_default_columns(),
        rich.progress.DownloadColumn(),
        rich.progress.TransferSpeedColumn(),
    )
    with rich.progress.Progress(*columns, console=console, disable=not (progress and console.is_terminal)) as bar:
        task = bar.add_task("converting", total=plan.nbytes)
        write(aside, plan, identity, lambda size: bar.advance(task, size))
    hf.carry_files(source.files, aside, plan.jobs[0].dtype)
    finish(aside, target)
    return target


def _check_target(target: pathlib.Path, source: Source, overwrite: bool) -> None:
    inside = target.resolve(), source.files.resolve()
    if inside[0] == inside[1] or inside[0] in inside[1].parents:
        raise UserError(f"{target}: is the source; choose another target")
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists() and not overwrite:
        raise UserError(f"{target}: exists and is not empty; give --overwrite to replace it, or choose another target")
    if target.exists() and not (target / "config.json").is_file():
        raise UserError(f"{target}: holds no model, so it is not overwritten; choose another target")
