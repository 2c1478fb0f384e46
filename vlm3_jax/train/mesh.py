"""The device mesh and the one place where logical axes of parameters and batches meet mesh axes."""

import dataclasses

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vlm3_jax import params as parameters
from vlm3_jax.errors import UserError
from vlm3_jax.model.config import VLMConfig

AXES = ("replica", "fsdp", "tensor")
ROWS = ("replica", "fsdp")

# For each logical axis the mesh axes to try, in order; the first that divides the size and is still free is taken.
# kv heads that the tensor axis does not divide are replicated; heads are never cut, since C has no axis here.
RULES = {
    "vocab": ("tensor", "fsdp"),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "experts": (),
    "expert_mlp": ("tensor",),
    "vision_embed": ("fsdp",),
    "vision_heads": ("tensor",),
    "vision_mlp": ("tensor", "fsdp"),
    "merge_in": ("fsdp",),
    "merge": ("tensor",),
    "layers": (),
}


@dataclasses.dataclass(frozen=True)
class Fallback:
    """A parameter axis that no mesh axis divides: it stays whole on every device."""

    name: str
    axis: str
    size: int
    tried: tuple[str, ...]


def make_mesh(replica: int = 1, fsdp: int = -1, tensor: int = 1, devices=None) -> Mesh:
    """A mesh of all devices with the axes replica, fsdp and tensor; fsdp -1 takes what the others leave."""
    devices = jax.devices() if devices is None else devices
    if fsdp == -1:
        fsdp = max(1, len(devices) // (replica * tensor))
    if replica * fsdp * tensor != len(devices):
        raise UserError(
            f"mesh: replica {replica} x fsdp {fsdp} x tensor {tensor} is not the number of devices, {len(devices)}"
        )
    return jax.make_mesh((replica, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def resolve(row: parameters.Param, sizes: dict[str, int]) -> tuple[PartitionSpec, list[Fallback]]:
    """How one parameter lies on a mesh with the given axis sizes, and where it had to stay whole."""
    spec, used, fallbacks = [], set(), []
    for size, axis in zip(row.shape, row.axes, strict=True):
        options = [a for a in RULES.get(axis, ()) if sizes[a] > 1 and a not in used]
        chosen = next((a for a in options if size % sizes[a] == 0), None)
        if options and chosen is None:
            fallbacks.append(Fallback(row.name, axis, size, tuple(options)))
        used.add(chosen)
        spec.append(chosen)
    return PartitionSpec(*spec), fallbacks


def param_shardings(cfg: VLMConfig, mesh: Mesh, rows=None) -> dict:
    """NamedShardings of all parameters (or of `rows`), nested as the parameters are."""
    sizes = dict(mesh.shape)
    rows = parameters.table(cfg) if rows is None else rows
    return parameters.nest({row.path: NamedSharding(mesh, resolve(row, sizes)[0]) for row in rows})


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of small things that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, accumulation: int = 1) -> NamedSharding:
    """Rows are spread over replica and fsdp; with accumulation they are the second axis."""
    return NamedSharding(mesh, PartitionSpec(ROWS) if accumulation == 1 else PartitionSpec(None, ROWS))


def put_batch(batch: dict[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """This process's rows of a batch -> global arrays."""
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def locally(mesh: Mesh):
    """Makes every device run a function on its own rows (`model/layers.py` Locally).

    The tensor axis stays with the compiler.
    """

    def wrap(f, whole: int = 0):
        def call(*args):
            specs = [PartitionSpec(ROWS)] * (len(args) - whole) + [PartitionSpec()] * whole
            return jax.shard_map(
                f, mesh=mesh, in_specs=tuple(specs), out_specs=specs[0], axis_names=set(ROWS), check_vma=False
            )(*args)

        return call

    return wrap
