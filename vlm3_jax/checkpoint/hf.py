"""HF directories (config.json, safetensors, tokenizer files) to our parameters and back, byte for byte."""

import json
import pathlib
import shutil

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from vlm3_jax import params as parameters
from vlm3_jax.errors import UserError
from vlm3_jax.files import read_json, replace_dir
from vlm3_jax.model.config import VLMConfig

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_SHARD_BYTES = 4 * 2**30
CARRIED = (".json", ".jinja", ".txt", ".model")


def load(model_dir, dtype: str | None = "float32") -> tuple[VLMConfig, dict]:
    """The config and the parameters (numpy, nested dict as in the parameter table) of an HF directory.

    `dtype` converts every tensor, None keeps what is stored. UserError names the file and tensor if something is
    missing, unexpected, truncated or of another shape.
    """
    model_dir = pathlib.Path(model_dir)
    cfg = VLMConfig.from_dir(model_dir)
    rows = parameters.table(cfg)
    where = _key_index(model_dir)
    _check_keys({key for row in rows for key in row.hf_keys}, where, cfg, model_dir)
    files = {name: _open(model_dir / name) for name in sorted(set(where.values()))}

    def read(row, key):
        name = where[key]
        tensor = _tensor(files[name], key, model_dir / name)
        if not row.accepts(tensor.shape):
            raise UserError(f"{model_dir / name}: {key} has shape {tensor.shape}, the config says {row.hf_shape}")
        return row.from_hf(tensor)

    def assemble(row):
        first = read(row, row.hf_keys[0])
        value = np.empty(row.shape, DTYPES[dtype] if dtype else first.dtype)
        for i, key in enumerate(row.hf_keys):
            value[i if row.stacked else ...] = first if i == 0 else read(row, key)
        return value

    return cfg, parameters.nest({row.path: assemble(row) for row in rows})


def save(out_dir, cfg: VLMConfig, params: dict, source_dir, dtype: str | None = None) -> pathlib.Path:
    """Writes an HF directory that transformers loads: safetensors in shards, and `source_dir`'s config and tokenizer.

    `dtype` None keeps the parameters' own. An existing `out_dir` is replaced, after all has been written beside it.
    """
    out_dir, source_dir = pathlib.Path(out_dir), pathlib.Path(source_dir)
    aside = out_dir.with_name(out_dir.name + ".writing")
    if aside.exists():
        shutil.rmtree(aside)
    aside.mkdir(parents=True)
    flat = parameters.flatten(params)
    shards, sizes = [{}], [0]
    for row in parameters.table(cfg):
        value = np.asarray(flat[row.path])
        for i, key in enumerate(row.hf_keys):
            tensor = np.ascontiguousarray(row.to_hf(value[i] if row.stacked else value))
            if dtype:
                tensor = tensor.astype(DTYPES[dtype])
            if sizes[-1] and sizes[-1] + tensor.nbytes > MAX_SHARD_BYTES:
                shards.append({})
                sizes.append(0)
            shards[-1][key] = tensor
            sizes[-1] += tensor.nbytes
    _write_shards(aside, shards, sum(sizes))
    _carry(source_dir, aside, next(iter(shards[0].values())).dtype)
    replace_dir(aside, out_dir)
    return out_dir


def _write_shards(folder, shards, total_bytes):
    if len(shards) == 1:
        safetensors.numpy.save_file(shards[0], folder / SINGLE, metadata={"format": "pt"})
        return
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        safetensors.numpy.save_file(shard, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, name)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True))


def _carry(source, folder, dtype):
    for path in sorted(source.iterdir()):
        if path.suffix in CARRIED and path.name != INDEX and path.is_file():
            shutil.copyfile(path, folder / path.name)
    config = read_json(folder / "config.json")
    key = "torch_dtype" if "torch_dtype" in config else "dtype"
    config[key] = str(dtype)
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def _key_index(model_dir) -> dict[str, str]:
    """{HF key: file name} from the index, or from the single file."""
    if (model_dir / INDEX).exists():
        index = read_json(model_dir / INDEX)
        where = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(where, dict):
            raise UserError(f"{model_dir / INDEX}: weight_map is missing")
        for key, name in where.items():
            if not isinstance(name, str):
                raise UserError(f"{model_dir / INDEX}: weight_map of {key} is {name!r}, expected a file name")
            if pathlib.PurePath(name).name != name:
                raise UserError(f"{model_dir / INDEX}: file name {name!r} leaves the model directory")
        return where
    if (model_dir / SINGLE).exists():
        return dict.fromkeys(_open(model_dir / SINGLE).keys(), SINGLE)
    raise UserError(f"{model_dir}: holds neither {SINGLE} nor {INDEX}")


def _check_keys(expected, where, cfg, model_dir):
    missing, unexpected = sorted(expected - set(where)), sorted(set(where) - expected)
    if cfg.text.tie_word_embeddings and "lm_head.weight" in unexpected:
        # Some writers store the tied head once more; the embedding decides.
        unexpected.remove("lm_head.weight")
    for keys, what in ((missing, "missing"), (unexpected, "not part of the model its config.json describes")):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise UserError(f"{model_dir}: tensor {keys[0]}{more} {what}")


def _open(path):
    try:
        return safetensors.safe_open(path, framework="numpy")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, though the index names it") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path}: truncated or not a safetensors file ({error})") from None


def _tensor(file, key, path):
    try:
        return file.get_tensor(key)
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: {key} cannot be read ({error})") from None
