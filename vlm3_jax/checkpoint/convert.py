"""`vlm3 convert`: an HF directory to a checkpoint of ours; a checkpoint, training workdir or PEFT adapter to HF; a
workdir's adapters to PEFT.

Tensors go one by one from the memory-mapped source into files beside the target, which takes its name when all are
there. The same call after a kill goes on with the tensors that are missing.
"""

import dataclasses
import shutil
from collections.abc import Callable

import rich.console
import rich.progress

from vlm3_jax import storage
from vlm3_jax.checkpoint import hf, peft
from vlm3_jax.checkpoint.layouts import checkpoint_plan, hf_plan
from vlm3_jax.checkpoint.sources import CheckpointSource, HFSource, Source
from vlm3_jax.checkpoint.writing import WritePlan, finish, free_bytes, place_beside, write
from vlm3_jax.errors import UserError
from vlm3_jax.model import params as parameters
from vlm3_jax.storage import lock
from vlm3_jax.tasks import protocol


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What a call will do: the source, the files it becomes, and in words from what to what."""

    source: Source
    plan: WritePlan
    direction: str
    is_adapter: bool = False

    def report(self) -> str:
        """Direction, tensors, bytes, dtypes, and parameters by group and in total."""
        cfg, groups = self.source.cfg, dict.fromkeys(parameters.GROUPS, 0)
        for row in self.source.rows:
            groups[row.group] += row.size
        dtypes = ", ".join(sorted({str(job.dtype) for job in self.plan.jobs}))
        lines = [
            self.direction,
            f"{len(self.plan.jobs):,} tensors, {self.plan.nbytes:,} bytes as {dtypes}",
        ]
        if not self.is_adapter:
            lines += [f"{group:>12} {count:>16,} parameters" for group, count in groups.items()]
            lines.append(f"{'total':>12} {parameters.count(cfg):>16,} parameters")
        return "\n".join(lines)


def plan_conversion(source: Source, dtype: str | None = None, max_shard_bytes: int | None = None) -> Conversion:
    """What an open source becomes: an HF directory a checkpoint of ours, anything else an HF directory."""
    if isinstance(source, HFSource):
        return Conversion(source, checkpoint_plan(source, dtype), f"{source.home}: HF directory -> Orbax checkpoint")
    plan = hf_plan(source, dtype, max_shard_bytes or hf.MAX_SHARD_BYTES)
    if isinstance(source, peft.PeftSource):
        return Conversion(source, plan, f"{source.folder}: PEFT adapter on {source.files} -> HF directory")
    return Conversion(source, plan, f"{source.weights}: Orbax checkpoint -> HF directory")


def plan_adapter(source: Source, base: str) -> Conversion:
    """The adapters of a training step as a PEFT folder, whose base is the model `base`. UserError if it has none."""
    if not isinstance(source, CheckpointSource):
        raise UserError(f"{source.files}: --peft writes the adapters of a training workdir, and this is none")
    plan = peft.adapter_plan(source, base)
    return Conversion(source, plan, f"{source.weights}: adapters -> PEFT adapter on {base}", is_adapter=True)


def convert(conversion: Conversion, target, overwrite: bool = False, progress: bool = True) -> storage.AnyPath:
    """Writes the other form of the source to `target`, which must be missing or empty.

    One in a bucket is written in `folders.scratch` first, which needs as much room; a lock beside it keeps other
    machines out. `overwrite` replaces an older model there. UserError if the target is taken, the disk is full or the
    source damaged; the target is then as it was.
    """
    target = storage.path(target, "target")
    # Here the journal of what is written beside the target is the lock.
    if not storage.is_remote(target):
        return _convert(conversion, target, overwrite, progress)
    with lock.held(target.with_name(f".{target.name}.lock"), target, "conversion", "target") as check:
        return _convert(conversion, target, overwrite, progress, check)


def _convert(conversion, target, overwrite, progress, check: Callable[[], None] = lambda: None) -> storage.AnyPath:
    source, plan = conversion.source, conversion.plan
    _check_target(target, source, overwrite)
    tmp = place_beside(target, ".converting")
    kept = tmp if tmp.is_dir() else None
    free, have = free_bytes(tmp), sum(p.stat().st_blocks * 512 for p in kept.rglob("*")) if kept else 0
    if plan.nbytes > free + have:
        raise UserError(
            f"{tmp.parent if storage.is_remote(target) else target}: {plan.nbytes:,} bytes are needed, the disk has "
            f"{free + have:,}"
        )
    identity = [
        str(source.files.absolute()),
        source.state(),
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
        write(tmp, plan, identity, lambda size: bar.advance(task, size))
    if not conversion.is_adapter:
        hf.carry_files(source.files, tmp, plan.jobs[0].dtype)
    elif (asked := source.files / protocol.FILE).is_file():
        shutil.copyfile(asked, tmp / protocol.FILE)
    check()
    finish(tmp, target, peft.CONFIG if conversion.is_adapter else "config.json")
    return target


def _check_target(target: storage.AnyPath, source: Source, overwrite: bool) -> None:
    place = target.resolve()
    for read in (source.files.resolve(), source.home.resolve()):
        if place == read or place in read.parents:
            raise UserError(f"{target}: is the source; choose another target")
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists() and not overwrite:
        raise UserError(f"{target}: exists and is not empty; give --overwrite to replace it, or choose another target")
    if target.exists() and not any((target / name).is_file() for name in ("config.json", peft.CONFIG)):
        raise UserError(f"{target}: holds no model, so it is not overwritten; choose another target")
