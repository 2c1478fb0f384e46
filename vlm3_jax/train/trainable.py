"""What a run trains: the whole model, some named groups of it, or adapters beside a frozen model."""

import dataclasses

import jax
import jax.numpy as jnp

from vlm3_jax.model import params as parameters
from vlm3_jax.model.adapters import Lora
from vlm3_jax.model.config import VLMConfig

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class Trainable:
    """The leaves of a run's parameters, and which of them steps change.

    `rows`: all leaves, the model's and the adapters'. `trained`: paths of those with a gradient and moments.
    `frozen_dtype`: what the frozen matrices are stored in. `rates`: factors on the learning rate, by group.
    """

    rows: tuple[parameters.Param, ...]
    trained: frozenset[tuple[str, ...]]
    frozen_dtype: str = "float32"
    rates: dict[str, float] = dataclasses.field(default_factory=dict)
    lora: Lora | None = None

    @classmethod
    def whole(cls, cfg: VLMConfig) -> "Trainable":
        """Everything is trained, at one rate."""
        rows = parameters.table(cfg)
        return cls(rows, frozenset(row.path for row in rows))

    @classmethod
    def from_config(cls, cfg: VLMConfig, config) -> "Trainable":
        """From `train.freeze`, `train.frozen_dtype`, `train.lora` and `optimizer.rates` of a checked config.

        UserError if `train.lora.targets` cannot be adapted.
        """
        train, rates = config.train, dict(config.optimizer.rates)
        rows, lora = parameters.table(cfg), Lora.from_config(cfg, train.lora)
        trained = [row for row in rows if row.group not in train.freeze]
        if lora:
            trained = _adapters(lora)
            rows += trained
        return cls(rows, frozenset(row.path for row in trained), train.frozen_dtype, rates, lora)

    @property
    def trained_rows(self) -> tuple[parameters.Param, ...]:
        """Rows of the trained leaves, in the order of `rows`."""
        return tuple(row for row in self.rows if row.path in self.trained)

    @property
    def adapters(self) -> tuple[parameters.Param, ...]:
        """Rows of the adapters."""
        return _adapters(self.lora) if self.lora else ()

    @property
    def trained_groups(self) -> set[str]:
        """Groups of the model whose own weights are trained."""
        return {row.group for row in self.trained_rows} if not self.lora else set()

    def shapes(self) -> dict:
        """Shapes and dtypes of the leaves, nested as the parameters are."""
        return parameters.nest({row.path: jax.ShapeDtypeStruct(row.shape, self.dtype(row)) for row in self.rows})

    def dtype(self, row: parameters.Param):
        """float32, but `frozen_dtype` for frozen matrices: norms, biases and all that changes stay float32."""
        return jnp.float32 if row.path in self.trained or len(row.hf_shape) < 2 else DTYPES[self.frozen_dtype]

    def split(self, params: dict) -> tuple[dict, dict]:
        """A tree over all leaves -> those that are trained, and those that are not."""
        parts: tuple[dict, dict] = {}, {}
        for path, value in parameters.flatten(params).items():
            parts[path not in self.trained][path] = value
        return parameters.nest(parts[0]), parameters.nest(parts[1])

    def join(self, trained: dict, frozen: dict) -> dict:
        """The inverse of `split`."""
        return parameters.nest(parameters.flatten(trained) | parameters.flatten(frozen))

    def factors(self) -> dict:
        """The factor on the learning rate for each trained leaf, nested."""
        return parameters.nest({row.path: self.rates.get(row.group, 1.0) for row in self.trained_rows})

    def start(self, params: dict, seed: int) -> dict:
        """The model's parameters -> all leaves: fresh adapters beside them."""
        return self.join(params, parameters.nest(self.lora.initialize(seed))) if self.lora else params

    def view(self, params: dict, dtype) -> dict:
        """All leaves -> what the model is built around, in a jitted function that computes in `dtype`."""
        return self.lora.view(params, dtype) if self.lora else params

    def facts(self) -> dict:
        """What a checkpoint must agree on; None stands for the default."""
        whole = len(self.trained) == len(self.rows)
        frozen = sorted({row.group for row in self.rows if row.path not in self.trained})
        return {
            "frozen": None if whole else frozen,
            "frozen_dtype": None if whole or self.frozen_dtype == "float32" else self.frozen_dtype,
            "lora": self.lora.facts() if self.lora else None,
        }


def _adapters(lora: Lora) -> tuple[parameters.Param, ...]:
    return tuple(row for pair in lora.pairs().values() for row in pair)
