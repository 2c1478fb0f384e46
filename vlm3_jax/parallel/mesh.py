"""The device mesh and the one place where logical axes of parameters and batches meet mesh axes."""

import collections
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vlm3_jax.errors import UserError
from vlm3_jax.model import params as parameters
from vlm3_jax.model.attention import BackEnd
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
    return Mesh(arranged(devices, (replica, fsdp, tensor)), AXES, axis_types=(AxisType.Auto,) * 3)


def arranged(devices, shape: tuple[int, int, int]) -> np.ndarray:
    """All devices as [replica, fsdp, tensor], those that a fast network joins beside each other in the last axes.

    Such a group is a TPU slice or the GPUs of a host (`slice_index`). Replicas are spread over groups first, since they
    exchange least, then fsdp. UserError where the tensor axis would have to cross from one group to the next.
    """
    sizes = collections.Counter(getattr(device, "slice_index", 0) for device in devices).values()
    groups = len(sizes)
    replica, fsdp, tensor = shape
    # A torus whose axes are no products of the mesh's (8 x 8 chips, tensor 2) is split; whole axes are tried first.
    options = {"allow_split_physical_axes": True}
    if groups == 1:
        return mesh_utils.create_device_mesh(shape, devices, **options)
    if len(set(sizes)) > 1:
        raise UserError(
            f"mesh: the slices or hosts have different numbers of devices ({min(sizes)} and {max(sizes)}); "
            "use as many of each"
        )
    outer_replica = math.gcd(replica, groups)
    outer_fsdp = groups // outer_replica
    if fsdp % outer_fsdp:
        raise UserError(
            f"mesh: replica {replica} x fsdp {fsdp} x tensor {tensor} cannot be laid over {groups} slices or hosts "
            f"of {len(devices) // groups} devices; make replica x fsdp a multiple of {groups}"
        )
    inner = replica // outer_replica, fsdp // outer_fsdp, tensor
    return mesh_utils.create_hybrid_device_mesh(inner, (outer_replica, outer_fsdp, 1), devices, **options)


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


def rows_sharding(mesh: Mesh, shape: tuple[int, ...], rows: int | None, heads: int | None = None) -> NamedSharding:
    """Axis number `rows` (None: no axis) is spread as batches are, axis `heads` over tensor if that divides it."""
    spec: list = [None] * len(shape)
    if rows is not None:
        spec[rows] = ROWS
    if heads is not None and shape[heads] % mesh.shape["tensor"] == 0:
        spec[heads] = "tensor"
    return NamedSharding(mesh, PartitionSpec(*spec))


def process_rows(mesh: Mesh, rows: int) -> np.ndarray:
    """Ascending numbers of the rows of a batch of `rows` that lie on devices of this process.

    These it has to bring; where the tensor axis crosses processes, several bring the same.
    """
    held = batch_sharding(mesh).addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[index] for index in held]))


def put_batch(batch: dict[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """This process's rows of a batch (`process_rows`) -> global arrays."""
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def back_end(mesh: Mesh, name: str = "auto") -> BackEnd:
    """The back end of attention (`train.attention`) for the devices of a mesh."""
    return BackEnd(name, mesh.devices.flat[0].platform)


def locally(mesh: Mesh):
    """Makes every device run a function on its own rows (`model/layers.py` Locally).

    The tensor axis stays with the compiler, unless arrays with heads are named: of those, and of the result, each of
    its devices then gets its own heads (kv heads repeated until there are enough), or all where it cannot cut them.
    """
    tensor = mesh.shape["tensor"]

    def wrap(f, whole: int = 0, heads: int = 0):
        def call(*args):
            counts = [x.shape[2] for x in args[:heads]]
            rows, cut = PartitionSpec(ROWS), PartitionSpec(ROWS, None, "tensor")
            if not heads or counts[0] % tensor or any(n % tensor and tensor % n for n in counts):
                cut = rows
            else:
                args = *(jnp.repeat(x, max(1, tensor // x.shape[2]), 2) for x in args[:heads]), *args[heads:]
            specs = [cut] * heads + [rows] * (len(args) - whole - heads) + [PartitionSpec()] * whole
            return jax.shard_map(
                f, mesh=mesh, in_specs=tuple(specs), out_specs=specs[0], axis_names=set(AXES if heads else ROWS),
                check_vma=False,
            )(*args)  # fmt: skip

        return call

    return wrap
