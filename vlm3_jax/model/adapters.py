"""LoRA through qwix: low-rank adapters beside frozen weights, and the sum of both for export.

The weight W of an adapted linear acts as W + alpha / rank * A B. A [inputs, rank] lies on the mesh as the inputs of W,
B [rank, outputs] as its outputs. Both are stacked over layers as W is, and stand beside it in the tree as NAME_lora_a
and NAME_lora_b.
"""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vlm3_jax.errors import UserError
from vlm3_jax.model import params as parameters
from vlm3_jax.model.config import VLMConfig


class Linear(nnx.Module):
    """One weight with its adapters: qwix finds what it adapts by module, and our layers hold many weights each."""

    def __init__(self, weight, lora_a, lora_b):
        self.weight = nnx.Param(weight)
        self.weight_lora_a, self.weight_lora_b = nnx.LoRAParam(lora_a), nnx.LoRAParam(lora_b)

    def __call__(self, x, contract: str):
        """`einsum(contract, x, weight)`, to which qwix adds the adapters' part."""
        return jnp.einsum(contract, x, self.weight[...].astype(x.dtype))


@dataclasses.dataclass(frozen=True)
class Lora:
    """The adapters of a run: `targets` are the rows of the adapted weights."""

    rank: int
    alpha: float
    targets: tuple[parameters.Param, ...]

    @classmethod
    def from_config(cls, cfg: VLMConfig, settings) -> "Lora | None":
        """From `train.lora` (None if its rank is 0); UserError if a target names nothing or what cannot be adapted."""
        if not settings.rank:
            return None
        _qwix()
        if settings.rank < 0 or settings.alpha <= 0:
            raise UserError(f"train.lora: rank {settings.rank} and alpha {settings.alpha} must be positive")
        targets = {}
        for pattern in settings.targets:
            rows = _matches(cfg, pattern)
            for row in rows:
                _check(row, pattern, settings.rank)
            targets |= {row.path: row for row in rows}
        if not targets:
            raise UserError("train.lora.targets is empty: name the weights to adapt, or set train.lora.rank=0")
        return cls(int(settings.rank), float(settings.alpha), tuple(targets.values()))

    def pairs(self) -> dict[parameters.Param, tuple[parameters.Param, parameters.Param]]:
        """{row of an adapted weight: (row of A, row of B)}; these are as the table's, but without HF tensors."""
        return {target: _pair(target, self.rank) for target in self.targets}

    def initialize(self, seed: int) -> dict[tuple[str, ...], np.ndarray]:
        """{path: float32 array}: qwix's initialisation, A He-uniform and B zero, so that nothing changes at first."""
        rule, flat = self._rule(), {}
        for number, pair in enumerate(self.pairs().values()):
            for kind, (row, initializer) in enumerate(zip(pair, (rule.lora_a_initializer, rule.lora_b_initializer))):
                key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), number), kind)
                keys = jax.random.split(key, row.shape[0] if row.stacked else 1)
                values = [np.asarray(initializer(key, row.layer_shape, jnp.float32)) for key in keys]
                flat[row.path] = np.stack(values) if row.stacked else values[0]
        return flat

    def view(self, params: dict, dtype) -> dict:
        """The parameters with a module in place of each adapted weight, for building the model inside a jitted
        function; the adapters, which are small, are cast to the compute `dtype` here.
        """
        qwix = _qwix()
        flat, provider = parameters.flatten(params), qwix.LoraProvider([self._rule()])
        for target, pair in self.pairs().items():
            a, b = (flat.pop(row.path).astype(dtype) for row in pair)
            linear = Linear(flat[target.path], a, b)
            # Not run once for initialisation: the adapters are there. The generator is asked for and not used.
            flat[target.path] = qwix.apply_lora_to_model(linear, provider, rngs=nnx.Rngs(0), skip_nnx_init=True)
        return parameters.nest(flat)

    def merge(self, weight: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """W + alpha / rank * A B of one layer, float32: the weight of a plain model that acts alike."""
        added = np.float32(self.alpha / self.rank) * (a.reshape(-1, self.rank) @ b.reshape(self.rank, -1))
        return weight.astype(np.float32) + added.reshape(weight.shape)

    def facts(self) -> dict:
        """What a checkpoint says about the adapters."""
        return {"rank": self.rank, "alpha": self.alpha, "targets": sorted(row.name for row in self.targets)}

    def _rule(self):
        return _qwix().LoraRule(module_path=".*", rank=self.rank, alpha=self.alpha)


def _qwix():
    try:
        import qwix
    except ImportError:
        raise UserError("train.lora needs qwix: pip install 'vlm3-jax[lora]'") from None
    return qwix


def _matches(cfg: VLMConfig, pattern: str) -> list[parameters.Param]:
    """Weights whose name, with or without its path, is what the regular expression describes."""
    try:
        rows = [
            row
            for row in parameters.table(cfg)
            if re.fullmatch(pattern, row.path[-1]) or re.fullmatch(pattern, row.name)
        ]
    except re.error as error:
        raise UserError(f"train.lora.targets: {pattern!r} is not a regular expression ({error})") from None
    if not rows:
        names = sorted({row.path[-1] for row in parameters.table(cfg) if row.layout == "linear"})
        raise UserError(f"train.lora.targets: {pattern!r} names no parameter; linears are {', '.join(names)}")
    return rows


def _check(row: parameters.Param, pattern: str, rank: int) -> None:
    if row.layout != "linear":
        what = "weights of experts" if row.layout == "experts" else "only the weights of linears"
        can = "cannot be adapted" if row.layout == "experts" else "can be adapted"
        raise UserError(f"train.lora.targets: {pattern!r} names {row.name}, but {what} {can}")
    if rank >= min(row.hf_shape):
        raise UserError(f"train.lora.rank is {rank}, but must be below {min(row.hf_shape)}, a side of {row.name}")


def _pair(row: parameters.Param, rank: int) -> tuple[parameters.Param, parameters.Param]:
    """The rows of A and B for the row of a weight."""
    shape, axes = row.layer_shape, row.axes[1:] if row.stacked else row.axes
    # The first axes that hold all inputs; the HF matrix is [outputs, inputs].
    cut = next(n for n in range(1, len(shape)) if math.prod(shape[:n]) == row.hf_shape[1])

    def adapter(kind, shape, axes, matrix):
        if row.stacked:
            shape, axes = (row.shape[0], *shape), ("layers", *axes)
        path = (*row.path[:-1], f"{row.path[-1]}_lora_{kind}")
        return dataclasses.replace(row, path=path, shape=shape, axes=axes, hf_keys=(), hf_shape=matrix, layout="copy")

    return (
        adapter("a", (*shape[:cut], rank), (*axes[:cut], None), (rank, row.hf_shape[1])),
        adapter("b", (rank, *shape[cut:]), (None, *axes[cut:]), (row.hf_shape[0], rank)),
    )
