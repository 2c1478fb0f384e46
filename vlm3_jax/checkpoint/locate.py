"""Where a model's weights and its other files lie: HF directory, converted checkpoint or training workdir.

HF directory           config.json, tokenizer ...  model*.safetensors
converted checkpoint   config.json, tokenizer ...  params/               (an Orbax item)
training workdir       model/config.json ...       checkpoints/STEP/params/
"""

import dataclasses
import pathlib

from vlm3_jax.errors import UserError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PARAMS = "params"
# Of a training workdir: its checkpoints, and the files of the model that it trains.
CHECKPOINTS, MODEL = "checkpoints", "model"


@dataclasses.dataclass(frozen=True)
class Located:
    """`files`: the folder with config.json and tokenizer; `weights`: the HF directory or the Orbax item `params`."""

    files: pathlib.Path
    weights: pathlib.Path
    is_hf: bool


def locate(path, step: int | None = None) -> Located:
    """The model that lies at a local path; of a training workdir its newest step, or `step`. UserError if none does."""
    path = pathlib.Path(path)
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
        return Located(workdir / MODEL, weights, is_hf=False)
    if step is not None:
        raise UserError(f"{path}: not a training workdir, so it has no step {step}")
    if (path / PARAMS / "_METADATA").is_file():
        return Located(path, path / PARAMS, is_hf=False)
    return Located(path, path, is_hf=True)


def steps(workdir) -> list[int]:
    """Complete checkpoints of a training workdir, in order; unfinished ones have other names."""
    return sorted(int(p.name) for p in (pathlib.Path(workdir) / CHECKPOINTS).glob("*") if p.name.isdecimal())


def is_workdir(path) -> bool:
    """Whether a training has begun in a folder."""
    return (pathlib.Path(path) / CHECKPOINTS).is_dir() and not has_weights(pathlib.Path(path))


def has_weights(folder: pathlib.Path) -> bool:
    """Whether safetensors of a whole model lie in a folder."""
    return any((folder / name).exists() for name in (INDEX, SINGLE))


def _workdir(path: pathlib.Path) -> pathlib.Path | None:
    """The workdir that `path` or, for the model's files inside one, its parent is."""
    if is_workdir(path):
        return path
    inside = path.name == MODEL and is_workdir(path.parent) and not has_weights(path)
    return path.parent if inside else None


def fetch(name: str) -> pathlib.Path:
    """The local snapshot of a hub name; UserError if `name` is none or the hub does not give it."""
    if pathlib.Path(name).exists() or name.startswith((".", "/")) or name.count("/") != 1:
        raise UserError(f"{name}: no model directory (config.json, safetensors, tokenizer) and not a hub name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return pathlib.Path(snapshot_download(name, allow_patterns=["*.json", "*.jinja", "*.txt", "*.safetensors"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise UserError(f"{name}: not a local directory, and the hub does not give it ({error})") from None
