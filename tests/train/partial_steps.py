"""Steps of a model of which only parts are trained, on one batch of the model "test"."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.support import draw_samples, pack_rows, write_records
from vlm3_jax import config as configs
from vlm3_jax.checkpoint import hf
from vlm3_jax.data.packing import RowBudget
from vlm3_jax.model import params as parameters
from vlm3_jax.parallel import mesh as meshes
from vlm3_jax.train import optimizer as optimizers
from vlm3_jax.train import step as steps
from vlm3_jax.train.trainable import Trainable

SAMPLES = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Start:
    """A model directory with its parameters, and a batch of two rows."""

    folder: pathlib.Path
    cfg: object
    params: dict
    batch: dict


def start(model_dir, folder) -> Start:
    samples, spec = draw_samples(model_dir, write_records(folder), "turns", SAMPLES)
    batch = pack_rows([samples[:2], samples[2:]], spec, RowBudget(208, 304, 48))
    return Start(model_dir, *hf.load(model_dir), batch)


def settings(freeze=(), rank=0, **changes):
    """A config with a constant rate, no clipping, and what is given: `frozen_dtype`, `rates`, fields of train.lora."""
    config = configs.base()
    config.train.freeze, config.train.frozen_dtype = freeze, changes.pop("frozen_dtype", "float32")
    config.optimizer.rates.update(changes.pop("rates", {}))
    config.optimizer.schedule, config.optimizer.warmup, config.optimizer.clip = "constant", 0.0, 0.0
    config.optimizer.learning_rate = 1e-3
    config.train.lora.rank = rank
    for field, value in changes.items():
        config.train.lora[field] = value
    return config


class Partial:
    """The compiled step of a config, and the state it starts from (`params`: all leaves)."""

    def __init__(self, start: Start, config, params=None, mesh=None, dtype=jnp.float32, remat="none"):
        self.config, self.mesh = config, mesh or meshes.make_mesh(devices=jax.devices()[:1])
        self.trainable = Trainable.from_config(start.cfg, config)
        self.tx = optimizers.make(start.cfg, config.optimizer, self.trainable.trained_rows)
        params = self.trainable.start(start.params, 0) if params is None else params
        self.state = steps.create_state(start.cfg, params, self.tx, self.mesh, self.trainable)
        self.params = flat(self.state.params)
        self.batch = meshes.put_batch(start.batch, meshes.batch_sharding(self.mesh))
        step = steps.make_step(
            start.cfg, self.tx, config.optimizer, self.mesh, total_samples=1000, groups=4, dtype=dtype, remat=remat,
            trainable=self.trainable,
        )  # fmt: skip
        self.compiled = step.lower(self.state, self.batch, np.int32(SAMPLES)).compile()

    def run(self, count: int) -> list[float]:
        """The losses of so many steps on the batch."""
        losses = []
        for _ in range(count):
            self.state, metrics = self.compiled(self.state, self.batch, np.int32(SAMPLES))
            losses.append(float(metrics["loss"]))
        return losses

    def adam(self) -> optax.ScaleByAdamState:
        """The moments."""
        (adam,) = (part for part in self.state.opt_state if isinstance(part, optax.ScaleByAdamState))
        return adam

    def changed(self) -> dict:
        """{path: largest change since the start}; the bytes are compared, so a change is above zero."""
        after = flat(self.state.params)
        assert after.keys() == self.params.keys()
        return {
            path: 0.0 if before.tobytes() == after[path].tobytes() else
            float(np.abs(after[path].astype(np.float64) - before.astype(np.float64)).max())
            for path, before in self.params.items()
        }  # fmt: skip


def flat(params: dict) -> dict:
    """{path: numpy array}."""
    return {path: np.asarray(value) for path, value in parameters.flatten(params).items()}
