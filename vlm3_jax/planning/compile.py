"""The real training step, compiled for a TPU that is not there: its memory, and what its devices send each other."""

import dataclasses
import logging
import os
import re
import time

import jax
import numpy as np

from vlm3_jax.data.packing import RowBudget, pack
from vlm3_jax.errors import UserError
from vlm3_jax.model.config import VLMConfig
from vlm3_jax.parallel import mesh as meshes
from vlm3_jax.planning.collectives import Traffic, traffic
from vlm3_jax.processor.image import VisionSpec
from vlm3_jax.train import optimizer as optimizers
from vlm3_jax.train import step as steps
from vlm3_jax.train.trainable import Trainable

# The compiler looks for the machine that it would run on; these answers keep it quiet and off the network.
_ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_LOG_DIR": "disabled",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_log = logging.getLogger(__name__)
MISSING = "the TPU compiler is not installed: pip install 'vlm3-jax[tpu]' (it runs on any Linux machine)"


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of one program, in bytes of one device.

    `arguments`: state and batch; `temporaries`: everything else alive at the fullest moment; `traffic`: collectives of
    one step, None if there is no program because it does not fit, or if its text is not understood.
    """

    arguments: int
    temporaries: int
    traffic: Traffic | None
    seconds: float


def tpu_devices(name: str) -> list:
    """The devices of a TPU topology such as "v5p:2x2x2"; UserError if there is none such or no compiler."""
    for key, value in _ALONE.items():
        os.environ.setdefault(key, value)
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", name.partition(":")[0] + "-8")
    try:
        import libtpu  # noqa: F401
    except ImportError:
        raise UserError(MISSING) from None
    from jax.experimental import topologies

    # Both cores of a v4 chip are one device, as on its machines; a single chip does not fill the host that is supposed.
    more = {"chip_config_name": "megacore"} if name.startswith("v4:") else {}
    if name.endswith(":1x1"):
        more["chips_per_host_bounds"] = (1, 1, 1)
    try:
        return topologies.get_topology_desc(name, "tpu", **more).devices
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"--topology={name}: the TPU compiler refuses it ({str(error).splitlines()[0]})") from None


def empty_row(cfg: VLMConfig, budget: RowBudget) -> dict[str, np.ndarray]:
    """A batch of one empty row, as `data/packing.py` makes it."""
    return pack([[]], [[]], budget, VisionSpec.of(cfg))


def abstract_batch(cfg: VLMConfig, budget: RowBudget, rows: int, accumulation: int, mesh) -> dict:
    """Shapes, dtypes and shardings of a global batch."""
    lead = (rows,) if accumulation == 1 else (accumulation, rows)
    sharding = meshes.batch_sharding(mesh, accumulation)
    return {
        name: jax.ShapeDtypeStruct((*lead, *array.shape[1:]), array.dtype, sharding=sharding)
        for name, array in empty_row(cfg, budget).items()
    }


def lower(cfg: VLMConfig, config, budget: RowBudget, rows: int, accumulation: int, mesh):
    """The step of `config` for a mesh, traced but not compiled."""
    trainable = Trainable.from_config(cfg, config)
    tx = optimizers.make(cfg, config.optimizer, trainable.trained_rows)
    groups = 2 * max(1, len(config.data.components))
    step = steps.from_config(cfg, config, tx, mesh, trainable, groups, accumulation)
    state = steps.abstract_state(cfg, tx, mesh, trainable)
    batch = abstract_batch(cfg, budget, rows, accumulation, mesh)
    return step.lower(state, batch, jax.ShapeDtypeStruct((), np.int32, sharding=meshes.replicated(mesh)))


def compile_step(cfg: VLMConfig, config, budget: RowBudget, rows: int, accumulation: int, mesh) -> Compiled:
    """Compiles for the mesh's devices. Where the compiler finds that the program needs more memory than there is, it
    says how much, and nothing of the program.
    """
    start = time.perf_counter()
    lowered = lower(cfg, config, budget, rows, accumulation, mesh)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        used = re.search(r"Used ([\d.]+)([KMG]) of", str(error))
        if not used:
            raise
        needed = int(float(used[1]) * 2 ** {"K": 10, "M": 20, "G": 30}[used[2]])
        return Compiled(0, needed, None, time.perf_counter() - start)
    memory = compiled.memory_analysis()
    shape = tuple(mesh.shape[axis] for axis in meshes.AXES)
    try:
        exchanged = traffic(compiled.as_text(), shape)
    except ValueError as error:
        # Text that is not understood must not cost the minutes of compiling.
        _log.warning("plan: exchange stays an estimate: %s", error)
        exchanged = None
    return Compiled(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes,
        traffic=exchanged,
        seconds=time.perf_counter() - start,
    )
