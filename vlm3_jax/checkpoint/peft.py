"""PEFT's LoRA folders: read as the base model with the adapters merged in, and written from a run's own adapters.

A linear's weight W [outputs, inputs] acts as W + scale * B A with A [r, inputs], B [outputs, r] and scale = alpha / r
(alpha / sqrt(r) where `use_rslora` says so). https://huggingface.co/docs/peft/developer_guides/checkpoint
"""

import functools
import json
import pathlib
import re

import numpy as np

from vlm3_jax.checkpoint.copying import DTYPES
from vlm3_jax.checkpoint.safetensors_file import SafetensorsFile, header_bytes
from vlm3_jax.checkpoint.sources import CheckpointSource, Source, file_state
from vlm3_jax.checkpoint.writing import Job, Piece, WritePlan
from vlm3_jax.errors import UserError
from vlm3_jax.files import Fields
from vlm3_jax.model.params import Param
from vlm3_jax.storage import AnyPath

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_KEY = re.compile(re.escape(_PREFIX) + r"(.+)\.lora_(A|B)\.weight")
# What changes the base beyond adapters of linears, or scales them one by one.
_MORE = (
    "modules_to_save", "alpha_pattern", "layer_replication", "target_parameters", "trainable_token_indices",
    "alora_invocation_tokens", "arrow_config",
)  # fmt: skip
# Initialisations that leave the base as it was; the others (pissa, olora, corda, loftq ...) take a part out of it.
_INITIAL = (True, False, "gaussian", "orthogonal", "eva")


def base_name(folder: AnyPath) -> str:
    """The name of the base model in a folder's adapter_config.json; UserError if it names none."""
    return Fields.read(folder / CONFIG).text("base_model_name_or_path")


class PeftSource:
    """A base's parameters with the adapters of a PEFT folder merged in, float32 where there are any."""

    def __init__(self, base: Source, folder):
        self.base, self.folder = base, pathlib.Path(folder)
        self.cfg, self.rows, self.files, self.home = base.cfg, base.rows, base.files, base.home
        fields = Fields.read(self.folder / CONFIG, null=True)
        _check(fields)
        self._alpha, self._root = fields.number("lora_alpha", above=0), fields.flag("use_rslora", False)
        if not (self.folder / WEIGHTS).is_file():
            pickled = (
                " (adapter_model.bin is a pickle, which is not read)" * (self.folder / "adapter_model.bin").exists()
            )
            raise UserError(f"{self.folder / WEIGHTS}: no such file{pickled}")
        self._file = SafetensorsFile(self.folder / WEIGHTS)
        self._adapted = self._pairs()

    def dtype(self, row):
        """The base's; float32 where adapters are merged in."""
        return DTYPES["float32"] if self._adapted.intersection(row.hf_keys) else self.base.dtype(row)

    def hf_shape(self, row):
        """The base's."""
        return self.base.hf_shape(row)

    def value(self, row, layer):
        """One layer of the base with what its adapters add."""
        value, key = self.base.value(row, layer), row.hf_keys[layer]
        if key not in self._adapted:
            return value.astype(self.dtype(row), copy=False)
        a, b = (self._file.tensor(name).astype(np.float32) for name in _names(key))
        scale = self._alpha / (len(a) ** 0.5 if self._root else len(a))
        return value.astype(np.float32) + row.from_hf(np.float32(scale) * (b @ a))

    def region(self, row, layer, index: tuple[slice, ...]) -> np.ndarray:
        """A part of `value`."""
        return self.value(row, layer)[index]

    def state(self) -> list:
        """What changes when the weights do."""
        return [*self.base.state(), *file_state([self._file.path, self.folder / CONFIG])]

    def _pairs(self) -> set[str]:
        """HF keys of the adapted weights; UserError if a tensor is no adapter of a linear of the model."""
        known = {key: row for row in self.rows for key in row.hf_keys if row.layout == "linear"}
        found = set()
        for name in self._file.entries:
            match = _KEY.fullmatch(name)
            if not match or f"{match[1]}.weight" not in known:
                raise UserError(f"{self._file.path}: {name} is no adapter of a linear of the model in {self.files}")
            found.add(f"{match[1]}.weight")
        for key in found:
            a, b = (self._file.entries[name].shape if name in self._file.entries else None for name in _names(key))
            outputs, inputs = known[key].hf_shape
            if not a or not b or len(a) != 2 or not a[0] or (a[1], b) != (inputs, (outputs, a[0])):
                shapes = f"lora_A {a} and lora_B {b}"
                raise UserError(f"{self._file.path}: {shapes} of {key} do not fit its {outputs} x {inputs} values")
        return found


def adapter_plan(source: CheckpointSource, base: str) -> WritePlan:
    """The adapters of a training step as a PEFT folder on the model `base`; UserError if PEFT cannot hold them."""
    if source.lora is None:
        raise UserError(f"{source.weights}: was trained without LoRA, so there is no adapter to write")
    pairs, items = source.lora.pairs(), []
    for row, pair in pairs.items():
        if row.path[-1] == "router":
            raise UserError(f"{source.weights}: {row.name} has adapters, but in transformers a router is no linear")
        for layer, key in enumerate(row.hf_keys):
            for name, adapter in zip(_names(key), pair, strict=True):
                items.append((name, adapter, layer))
    kind = DTYPES["float32"]
    header, offsets = header_bytes([(name, kind, adapter.hf_shape) for name, adapter, _ in items])
    jobs = [
        Job(
            name, functools.partial(_matrix, source, adapter, layer), adapter.hf_shape, kind,
            (Piece(WEIGHTS, offset, 0, adapter.hf_shape[0]),), 4 * adapter.hf_shape[0] * adapter.hf_shape[1],
        )
        for (name, adapter, layer), offset in zip(items, offsets, strict=True)
    ]  # fmt: skip
    config = {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": source.lora.alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": source.lora.rank,
        "target_modules": _modules(source.rows, pairs),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    return WritePlan({WEIGHTS: header, CONFIG: json.dumps(config, indent=2).encode() + b"\n"}, jobs)


def _matrix(source: CheckpointSource, adapter: Param, layer: int) -> np.ndarray:
    """A as [r, inputs], B as [outputs, r]: ours are [inputs ..., r] and [r, outputs ...]."""
    return source.value(adapter, layer).reshape(adapter.hf_shape[::-1]).T


def _names(key: str) -> tuple[str, str]:
    module = key.removesuffix(".weight")
    return f"{_PREFIX}{module}.lora_A.weight", f"{_PREFIX}{module}.lora_B.weight"


def _modules(rows, targets) -> list[str]:
    """The last names of the adapted modules where these name nothing else (as serving programs like it), else all."""
    modules = {key.removesuffix(".weight") for row in targets for key in row.hf_keys}
    last = {module.rpartition(".")[2] for module in modules}
    every = {key.removesuffix(".weight") for row in rows for key in row.hf_keys if key.endswith(".weight")}
    meant = {module for module in every if module.rpartition(".")[2] in last}
    return sorted(last if meant == modules else modules)


def _check(fields: Fields) -> None:
    """UserError if the config asks for more than adapters of linears."""
    fields.require("peft_type", "LORA", None)
    fields.require("bias", "none", "none")
    for name in ("fan_in_fan_out", "use_dora", "lora_bias", "use_qalora"):
        fields.require(name, False, False)
    for name in _MORE:
        if fields.tree.get(name):
            raise UserError(f"{fields.name}: {name} is not supported; merge the adapter with peft and take the result")
    if (kind := fields.tree.get("init_lora_weights", True)) not in _INITIAL:
        raise UserError(
            f"{fields.name}: init_lora_weights = {str(kind)[:40]!r} changes the base, which is not supported"
        )
