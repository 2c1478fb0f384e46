"""Models in and out: any model folder to parameters in memory or on a mesh, and parameters to an HF directory."""

import json
import pathlib
import shutil

import numpy as np

from vlm3_jax import storage
from vlm3_jax.checkpoint.copying import DTYPES, copy_into
from vlm3_jax.checkpoint.layouts import hf_plan
from vlm3_jax.checkpoint.locate import INDEX, SINGLE
from vlm3_jax.checkpoint.sources import CheckpointSource, HFSource, ParamsSource, Source, open_source
from vlm3_jax.checkpoint.writing import finish, place_beside, write
from vlm3_jax.files import read_json
from vlm3_jax.model import params as parameters
from vlm3_jax.model.config import VLMConfig
from vlm3_jax.storage import AnyPath
from vlm3_jax.tasks import protocol

__all__ = ["DTYPES", "INDEX", "SINGLE", "carry_files", "copy_files", "load", "load_sharded", "place", "read", "save"]

MAX_SHARD_BYTES = 4 * 10**9
# What belongs to a model beside its weights; what training tools leave in the same folder does not.
CARRIED = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    protocol.FILE,
)
CARRIED_KINDS = (".jinja", ".model")


def load(model_dir, dtype: str | None = "float32") -> tuple[VLMConfig, dict]:
    """The config and the parameters (numpy, nested dict as in the parameter table) of a model folder.

    `model_dir` is an HF directory, a converted checkpoint or a training workdir (its newest step). `dtype` converts
    every tensor, None keeps what is stored. UserError names the file and tensor if something is missing, unexpected,
    truncated or of another shape.
    """
    source = open_source(model_dir)
    return source.cfg, read(source, dtype)


def read(source: Source, dtype: str | None = "float32") -> dict:
    """The parameters of an open source as `load` gives them."""

    def assemble(row):
        value = np.empty(row.shape, DTYPES[dtype] if dtype else source.dtype(row))
        for layer in range(len(row.hf_keys)):
            copy_into(value[layer] if row.stacked else value, source.value(row, layer))
        return value

    return parameters.nest({row.path: assemble(row) for row in source.rows})


def load_sharded(model_dir, abstract: dict) -> dict:
    """As `load`, but jax arrays on a mesh: every process reads the bytes of its own shards and no others.

    `abstract`: nested as the parameters, a jax.ShapeDtypeStruct with a sharding each (`place` takes an open source).
    """
    return place(open_source(model_dir), abstract)


def place(source: Source, abstract: dict) -> dict:
    """The parameters of an open source as jax arrays; one shard of one parameter at a time in host memory."""
    flat = parameters.flatten(abstract)
    wanted = {row: flat[row.path] for row in source.rows}
    # Orbax makes all processes wait for each other, which is right only where they share the arrays.
    shared = all(like.sharding.is_fully_addressable for like in wanted.values()) == _alone()
    if isinstance(source, CheckpointSource) and not source.merges and shared:
        return source.restore(wanted)
    return parameters.nest({row.path: _place(source, row, like) for row, like in wanted.items()})


def _alone() -> bool:
    import jax

    return jax.process_count() == 1


def _place(source: HFSource | CheckpointSource, row, like):
    # A conversion needs no jax, and its import takes longer than a small model.
    import jax

    sharding, devices = like.sharding, {}
    for device, index in sharding.addressable_devices_indices_map(row.shape).items():
        bounds = tuple(part.indices(size)[:2] for part, size in zip(index, row.shape, strict=True))
        devices.setdefault(bounds, []).append(device)
    shards = []
    for bounds, same in devices.items():
        shard = np.empty([stop - start for start, stop in bounds], like.dtype)
        if row.stacked:
            for number, layer in enumerate(range(*bounds[0])):
                copy_into(shard[number], source.region(row, layer, tuple(slice(*b) for b in bounds[1:])))
        else:
            copy_into(shard, source.region(row, 0, tuple(slice(*b) for b in bounds)))
        shards += [jax.device_put(shard, device) for device in same]
    return jax.make_array_from_single_device_arrays(row.shape, sharding, shards)


def save(out_dir, cfg: VLMConfig, params: dict, source_dir, dtype: str | None = None) -> AnyPath:
    """Writes an HF directory that transformers loads: safetensors in shards, and `source_dir`'s config and tokenizer.

    `dtype` None keeps the parameters' own. An existing `out_dir` is replaced, after all has been written beside it.
    """
    out_dir = storage.path(out_dir)
    tmp = place_beside(out_dir, ".writing")
    plan = hf_plan(ParamsSource(cfg, params, source_dir), dtype, MAX_SHARD_BYTES)
    write(tmp, plan)
    carry_files(pathlib.Path(source_dir), tmp, plan.jobs[0].dtype)
    finish(tmp, out_dir)
    return out_dir


def copy_files(source: pathlib.Path, folder: AnyPath) -> None:
    """Makes `folder` hold the files of a model but its weights."""
    if source.resolve() == folder.resolve():
        return
    tmp = place_beside(folder, ".writing")
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir(parents=True)
    carry_files(source, tmp)
    finish(tmp, folder)


def carry_files(source: pathlib.Path, folder: pathlib.Path, dtype: np.dtype | None = None) -> None:
    """Copies config, tokenizer, processor and chat template; config.json then names the dtype of the weights."""
    for path in sorted(source.iterdir()):
        if (path.name in CARRIED or path.suffix in CARRIED_KINDS) and path.is_file():
            shutil.copyfile(path, folder / path.name)
    config = read_json(folder / "config.json")
    key = "torch_dtype" if "torch_dtype" in config else "dtype"
    if dtype is not None and config.get(key) != str(dtype):
        config[key] = str(dtype)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
