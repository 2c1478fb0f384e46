"""Where a model's weights and its other files lie: HF directory, converted checkpoint or training workdir.

HF directory           config.json, tokenizer ...  model*.safetensors
converted checkpoint   config.json, tokenizer ...  params/               (an Orbax item)
training workdir       model/config.json ...       checkpoints/STEP/params/

Of a folder in a bucket the small files are fetched when it is located, safetensors when they are read; parameters of
ours are read where they lie.
"""

import dataclasses
import pathlib

from vlm3_jax import storage
from vlm3_jax.errors import UserError
from vlm3_jax.storage import AnyPath
from vlm3_jax.storage.folders import fetched

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PARAMS = "params"
# Of a training workdir: its checkpoints, and the files of the model that it trains.
CHECKPOINTS, MODEL = "checkpoints", "model"
# By which Orbax knows a complete step in a bucket.
COMMITTED = "commit_success.txt"
# What is fetched of a model: never a pickle.
SMALL, WEIGHTS = (".json", ".jinja", ".txt", ".model"), (".safetensors",)


@dataclasses.dataclass(frozen=True)
class Located:
    """`files`: the local folder with config.json and tokenizer; `weights`: the HF directory or the Orbax item `params`.

    `home`: the folder that was located; `workdir`: the training workdir that it is, or None.
    """

    files: pathlib.Path
    weights: AnyPath
    is_hf: bool
    home: AnyPath
    workdir: AnyPath | None = None


def locate(path, step: int | None = None) -> Located:
    """The model that lies in a folder; of a training workdir its newest step, or `step`. UserError if none does."""
    path = storage.path(path)
    workdir = _workdir(path)
    if workdir:
        found = steps(workdir)
        chosen = found[-1] if step is None and found else step
        if chosen not in found:
            what = f"no complete step {step}" if found else "no complete step yet"
            there = f" (complete: {', '.join(map(str, found))})" if found else ""
            raise UserError(f"{workdir / CHECKPOINTS}: {what}{there}")
        weights = workdir / CHECKPOINTS / str(chosen) / PARAMS
        if not (weights / "_METADATA").is_file():
            raise UserError(f"{weights}: no such item; the step was saved by another version and cannot be read")
        return Located(_small(workdir / MODEL), weights, False, path, workdir)
    if step is not None:
        raise UserError(f"{path}: not a training workdir, so it has no step {step}")
    if (path / PARAMS / "_METADATA").is_file():
        return Located(_small(path), path / PARAMS, False, path)
    return Located(_small(path), path, True, path)


def _small(folder: AnyPath) -> pathlib.Path:
    return fetched(folder, lambda name: name.endswith(SMALL))


def whole(folder: AnyPath) -> pathlib.Path:
    """A local folder with all files of a model: `folder` itself, or what is fetched of it."""
    return fetched(folder, lambda name: name.endswith(SMALL + WEIGHTS))


def steps(workdir) -> list[int]:
    """Complete checkpoints of a training workdir, in order; unfinished ones have other names, or no mark."""
    found = [path for path in (storage.path(workdir) / CHECKPOINTS).glob("*") if path.name.isdecimal()]
    # In a bucket a step has its name from the start, and a mark when it is complete.
    return sorted(int(path.name) for path in found if not storage.is_remote(path) or (path / COMMITTED).is_file())


def is_workdir(path) -> bool:
    """Whether a training has begun in a folder."""
    path = storage.path(path)
    return (path / CHECKPOINTS).is_dir() and not has_weights(path)


def has_weights(folder: AnyPath) -> bool:
    """Whether safetensors of a whole model lie in a folder."""
    return any((folder / name).exists() for name in (INDEX, SINGLE))


def _workdir(path: AnyPath) -> AnyPath | None:
    """The workdir that `path` or, for the model's files inside one, its parent is."""
    if is_workdir(path):
        return path
    inside = path.name == MODEL and is_workdir(path.parent) and not has_weights(path)
    return path.parent if inside else None


def fetch(name: str) -> pathlib.Path:
    """The local snapshot of a hub name; UserError if `name` is none or the hub does not give it."""
    if storage.path(name).exists() or name.startswith((".", "/")) or name.count("/") != 1:
        raise UserError(f"{name}: no model directory (config.json, safetensors, tokenizer) and not a hub name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return pathlib.Path(snapshot_download(name, allow_patterns=["*.json", "*.jinja", "*.txt", "*.safetensors"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise UserError(f"{name}: not a local directory, and the hub does not give it ({error})") from None
