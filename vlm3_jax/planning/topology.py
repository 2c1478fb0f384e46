"""Accelerators and how they are wired: the one table of memory, bandwidth and links (peak FLOP/s stand in flops.py)."""

import dataclasses
import math

import numpy as np

from vlm3_jax.errors import UserError
from vlm3_jax.model import flops
from vlm3_jax.parallel.mesh import AXES

# Of a GPU's memory what programs can have, by XLA_CLIENT_MEM_FRACTION; driver, kernels and NCCL need the rest.
GPU_SHARE = 0.93


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator, in bytes and bytes/s, from the makers' data sheets.

    `kind`: its name in `flops.PEAK_BF16`. `link`: one direction of one link of a TPU, or of all NVLinks of a GPU.
    `dims`: axes of a TPU's torus, 0 for GPUs. `wraps`: an axis of a torus is closed to a ring if a multiple of this
    long. `network`: one direction of a GPU's adapter between nodes.
    """

    kind: str
    hbm: float
    bandwidth: float
    link: float
    dims: int = 0
    wraps: int = 0
    network: float = 0.0

    @property
    def peak(self) -> float:
        """Dense bf16 FLOP/s."""
        return flops.PEAK_BF16[self.kind]


# TPU: docs.cloud.google.com/tpu/docs/v4, v5e, v5p and v6e (interconnect of a chip, both ways: 600 GB/s over 6 links,
# 400 over 4, 1,200 over 6, 800 over 4). GPU: NVIDIA's data sheets of A100 80GB SXM, H100 SXM, H200 SXM and DGX B200
# (NVLink both ways: 600, 900, 900 and 1,800 GB/s); between nodes one adapter a GPU, 200 Gbit/s in DGX A100 and 400
# Gbit/s in DGX H100, H200 and B200.
CHIPS = {
    "v4": Chip("TPU v4", 32 * 2**30, 1200e9, 50e9, dims=3, wraps=4),
    "v5e": Chip("TPU v5 lite", 16e9, 819e9, 50e9, dims=2, wraps=16),
    "v5p": Chip("TPU v5", 95 * 2**30, 2765e9, 100e9, dims=3, wraps=4),
    "v6e": Chip("TPU v6 lite", 32e9, 1638e9, 100e9, dims=2, wraps=16),
    "a100": Chip("NVIDIA A100", 80e9, 2039e9, 300e9, network=25e9),
    "h100": Chip("NVIDIA H100", 80e9, 3350e9, 450e9, network=50e9),
    "h200": Chip("NVIDIA H200", 141e9, 4800e9, 450e9, network=50e9),
    "b200": Chip("NVIDIA B200", 180e9, 8000e9, 900e9, network=50e9),
}

# Machines of eight GPUs that clouds rent, and what their adapters carry between GPUs, Gbit/s: Google
# (docs.cloud.google.com/compute/docs/gpus/gpu-network-bandwidth), AWS (aws.amazon.com/ec2/instance-types) and Azure
# (learn.microsoft.com/azure/virtual-machines/sizes/gpu-accelerated; by size, and by series as in "ND H100 v5").
MACHINES = {
    "a2-ultragpu-8g": ("a100", 100),
    "a3-highgpu-8g": ("h100", 800),
    "a3-megagpu-8g": ("h100", 1600),
    "a3-ultragpu-8g": ("h200", 3200),
    "a4-highgpu-8g": ("b200", 3200),
    "p4de.24xlarge": ("a100", 400),
    "p5.48xlarge": ("h100", 3200),
    "p5e.48xlarge": ("h200", 3200),
    "p5en.48xlarge": ("h200", 3200),
    "p6-b200.48xlarge": ("b200", 3200),
    "nd96amsr-a100-v4": ("a100", 1600),
    "nd96isr-h100-v5": ("h100", 3200),
    "nd96isr-h200-v5": ("h200", 3200),
    "nd-h100-v5": ("h100", 3200),
    "nd-h200-v5": ("h200", 3200),
}
GPUS = 8
# TPU slices as Google names them: chip, what N counts of it (v4-N and v5p-N: TensorCores, of which a chip has two), and
# the chips of the largest slice.
SLICES = {
    "v4": ("v4", 2, 4096),
    "v5p": ("v5p", 2, 6144),
    "v5e": ("v5e", 1, 256),
    "v5litepod": ("v5e", 1, 256),
    "v6e": ("v6e", 1, 256),
}
# The shape of a slice of so many chips if no other is asked for; larger ones of three axes are made of cubes of 64.
PLANES = {1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16), 256: (16, 16)}
BELOW_A_CUBE = {4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4)}


@dataclasses.dataclass(frozen=True)
class Topology:
    """`name` as given; `shape`: the torus of a TPU slice, or (GPUs of a node, nodes)."""

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def is_tpu(self) -> bool:
        """Whether the TPU compiler knows it."""
        return self.chip.dims > 0

    @property
    def capacity(self) -> float:
        """Bytes of a device that programs can have."""
        return self.chip.hbm * (1 if self.is_tpu else GPU_SHARE)

    @property
    def devices(self) -> int:
        """Number of accelerators."""
        return math.prod(self.shape)

    def meshes(self) -> list[tuple[int, int, int]]:
        """All (replica, fsdp, tensor): powers of two of replicas, tensor up to 8 and within a node."""
        n, found = self.devices, []
        for tensor in (1, 2, 4, 8):
            for replica in (2**k for k in range(n.bit_length())):
                if n % (tensor * replica) == 0 and (self.is_tpu or self.shape[0] % tensor == 0):
                    found.append((replica, n // tensor // replica, tensor))
        return found

    def seconds(self, mesh: tuple[int, int, int], received: dict[tuple[str, ...], float]) -> float:
        """Time to receive so many bytes per device over each group of mesh axes, one group after the other."""
        return sum(size / self._rate(mesh, axes) for axes, size in received.items() if axes)

    def _rate(self, mesh, axes) -> float:
        """Bytes/s at which a device receives within its group.

        TPU: all links along the slice's axes that are longer than 1, twice as many where the axis is a ring; a group
        gets a share of them, by the logarithm of its size, and at least the one to a neighbour. GPU: NVLink, unless
        what comes from other nodes, over the adapters of all the group's GPUs in a node, takes longer.
        """
        size = math.prod(n for n, axis in zip(mesh, AXES) if axis in axes)
        chip = self.chip
        if self.is_tpu:
            links = sum((2 if n % chip.wraps == 0 else 1) for n in self.shape if n > 1)
            return max(chip.link, chip.link * links * math.log(size) / math.log(self.devices))
        places = np.arange(self.devices).reshape(mesh)
        group = places[tuple(slice(None) if axis in axes else 0 for axis in AXES)].reshape(-1)
        nodes = len(set((group // self.shape[0]).tolist()))
        here = size / nodes
        beyond = (nodes - 1) / nodes * size / (size - 1)
        return min(chip.link, chip.network * here / beyond) if nodes > 1 else chip.link


def parse(name: str) -> Topology:
    """ "v5p:2x2x2", "h100:8x4" (GPUs a node x nodes), or a cloud's name: "v5p-64", "a3-ultragpu-8g:4" (nodes).

    UserError says what is wrong.
    """
    chip, _, sizes = name.partition(":")
    machine = chip.strip().lower().replace(" ", "-").replace("_", "-").removeprefix("standard-")
    version, dash, count = machine.rpartition("-")
    if machine in MACHINES:
        return _machine(name, *MACHINES[machine], sizes or "1")
    if dash and version in SLICES and not sizes:
        return _slice(name, *SLICES[version], count)
    if chip not in CHIPS:
        raise UserError(
            f"--topology={name}: unknown accelerator {chip!r}; choose one of {', '.join(CHIPS)}, or a cloud's name: a "
            f"TPU slice such as v5p-64 or v6e-256, or {', '.join(MACHINES)} (:NODES)"
        )
    dims, parts = CHIPS[chip].dims, sizes.split("x")
    form = "x".join("N" * dims) if dims else "GPUS or GPUSxNODES"
    good = len(parts) == dims if dims else len(parts) in (1, 2)
    if not good or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"--topology={name}: write {chip}:{form}, for example {_EXAMPLES[dims].format(chip)}")
    shape = tuple(map(int, parts))
    return Topology(name, CHIPS[chip], shape if dims else (*shape, 1)[:2])


_EXAMPLES = {2: "{0}:4x4", 3: "{0}:2x2x2", 0: "{0}:8 or {0}:8x4"}


def _machine(name: str, chip: str, gbits: int, nodes: str) -> Topology:
    if not nodes.isdecimal() or int(nodes) < 1:
        raise UserError(f"--topology={name}: write MACHINE:NODES, for example {name.partition(':')[0]}:4")
    return Topology(name, dataclasses.replace(CHIPS[chip], network=gbits * 1e9 / 8 / GPUS), (GPUS, int(nodes)))


def _slice(name: str, chip: str, cores: int, most: int, count: str) -> Topology:
    """The slice by the name that the TPU compiler knows."""
    chips = int(count) // cores if count.isdecimal() and int(count) % cores == 0 else 0
    flat = CHIPS[chip].dims == 2
    small = PLANES if flat else BELOW_A_CUBE
    if chips not in small and (flat or not 0 < chips <= most or chips % 64):
        unit = "chips" if cores == 1 else "TensorCores, two a chip"
        known = ", ".join(str(n * cores) for n in small)
        known += "" if flat else f" or a multiple of {64 * cores} up to {most * cores}"
        raise UserError(f"--topology={name}: no such slice; N of {name.rpartition('-')[0]}-N counts {unit}: {known}")
    shape = small.get(chips) or tuple(4 * side for side in _compact(chips // 64))
    return Topology(f"{chip}:{'x'.join(map(str, shape))}", CHIPS[chip], shape)


def _compact(cubes: int) -> tuple[int, int, int]:
    """The box of so many cubes that has the shortest edges."""
    sides = [n for n in range(1, cubes + 1) if cubes % n == 0]
    boxes = [(a, b, cubes // a // b) for a in sides for b in sides if cubes % (a * b) == 0]
    return min((tuple(sorted(box)) for box in boxes), key=lambda box: (sum(box), box))


def parse_mesh(text: str, topology: Topology) -> tuple[int, int, int]:
    """ "1x8x1" -> (replica, fsdp, tensor); UserError unless it takes all devices of the topology."""
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"--mesh={text}: write REPLICAxFSDPxTENSOR, for example 1x{topology.devices}x1")
    mesh = tuple(map(int, parts))
    if math.prod(mesh) != topology.devices:
        raise UserError(
            f"--mesh={text}: replica x fsdp x tensor is {math.prod(mesh)}, and {topology.name} has {topology.devices} "
            "devices"
        )
    return mesh
