"""`vlm3 plan`: what a recipe takes on a topology, per mesh shape, before anything is rented."""

import dataclasses
import re
from collections.abc import Callable

from vlm3_jax import pretrained, storage
from vlm3_jax.data.packing import RowBudget
from vlm3_jax.errors import UserError
from vlm3_jax.model import params as parameters
from vlm3_jax.model import sizes
from vlm3_jax.model.attention import BackEnd
from vlm3_jax.model.config import VLMConfig
from vlm3_jax.parallel import mesh as meshes
from vlm3_jax.planning import compile as compiler
from vlm3_jax.planning.collectives import Traffic
from vlm3_jax.planning.roofline import Load
from vlm3_jax.planning.samples import Rows, accumulation_for, total_rows, typical_rows
from vlm3_jax.planning.topology import Topology
from vlm3_jax.train.trainable import Trainable

# Rows that one device may hold at once, and the share of the bound that is taken for reached: with everything made
# again it stands for an MFU of about 40 %; MaxText publishes 45 % for an 8B text model on v6e.
ROWS, REACHED = (1, 2, 4, 8), 0.6
DAY = 86_400.0


@dataclasses.dataclass(frozen=True)
class Option:
    """A mesh shape with its row budget. Bytes are of one device, times of one update in seconds.

    `source`: "compiler" where the TPU compiler gave memory and exchange, else "estimate". `fits`: against the capacity.
    """

    load: Load
    topology: Topology
    reached: float
    arguments: float
    temporaries: float
    traffic: Traffic
    source: str = "estimate"
    compile_s: float = 0.0

    @property
    def total(self) -> float:
        """Bytes of memory."""
        return self.arguments + self.temporaries

    @property
    def fits(self) -> bool:
        """Whether the memory of a device is enough."""
        return self.total <= self.topology.capacity

    def bounds(self) -> dict[str, float]:
        """Seconds that arithmetic, memory traffic and exchange take at full speed."""
        chip = self.topology.chip
        return {
            "arithmetic": self.load.arithmetic() / chip.peak,
            "memory": self.load.memory_traffic() / chip.bandwidth,
            "exchange": self.topology.seconds(self.load.mesh, self.traffic.over()),
        }

    @property
    def seconds(self) -> float:
        """The expected time of an update."""
        return max(self.bounds().values()) / self.reached

    @property
    def samples_per_s(self) -> float:
        """Of all devices together."""
        return self.load.samples / self.seconds

    @property
    def mfu(self) -> float:
        """Useful FLOPs over what the devices could do."""
        return self.load.useful() * self.samples_per_s / (self.topology.devices * self.topology.chip.peak)

    def days(self, samples: int) -> float:
        """Of a run of so many samples."""
        return samples / self.samples_per_s / DAY

    def to_json(self, samples: int) -> dict:
        """All figures, JSON-able; `samples`: length of the run."""
        load = self.load
        return {
            "mesh": dict(load.sizes),
            "rows_per_device": load.rows,
            "data.rows": load.rows * load.mesh[0] * load.mesh[1],
            "train.accumulation": load.accumulation,
            "samples_per_step": load.samples,
            "source": self.source,
            "compile_s": self.compile_s,
            "fits": self.fits,
            "bytes": {
                "arguments": self.arguments,
                "temporaries": self.temporaries,
                "total": self.total,
                "capacity": self.topology.capacity,
            },
            "exchanged_bytes": {f"{kind} over {'+'.join(axes)}": v for (kind, axes), v in self.traffic.bytes.items()},
            "bound_s": self.bounds(),
            "step_s": self.seconds,
            "samples_per_s": self.samples_per_s,
            "samples_per_s_per_device": self.samples_per_s / self.topology.devices,
            "mfu": self.mfu,
            "days": self.days(samples),
            "fallbacks": [{**dataclasses.asdict(fallback), "bytes": size} for fallback, size in load.fallbacks()],
        }


@dataclasses.dataclass(frozen=True)
class Plan:
    """All options of a recipe on a topology, the fastest that fits first, then those that do not fit.

    `price`: of a device for an hour, in any currency; None if nobody said it.
    """

    config: object
    cfg: VLMConfig
    topology: Topology
    budget: RowBudget
    typical: Rows
    options: list[Option]
    price: float | None = None

    def cost(self, option: Option) -> float | None:
        """What the whole run costs with an option; None without a price."""
        days = option.days(self.config.train.samples)
        return None if self.price is None else days * 24 * self.topology.devices * self.price

    @property
    def best(self) -> Option | None:
        """The fastest that fits: one that the compiler has seen if there is one, else an estimate."""
        fitting = [option for option in self.options if option.fits]
        return next((o for o in fitting if o.source == "compiler"), fitting[0] if fitting else None)

    def to_json(self) -> dict:
        """All figures, JSON-able."""
        samples, best = self.config.train.samples, self.best
        return {
            "model": self.config.model,
            "parameters": parameters.count(self.cfg),
            "topology": self.topology.name,
            "devices": self.topology.devices,
            "remat": self.config.train.remat,
            "row": dataclasses.asdict(self.budget),
            "typical_row": dataclasses.asdict(self.typical),
            "useful_flops_per_sample": self.options[0].load.useful(),
            "samples": samples,
            "price_per_device_hour": self.price,
            "best": best and self.options.index(best),
            "options": [{**option.to_json(samples), "cost": self.cost(option)} for option in self.options],
        }


def model_config(name: str) -> VLMConfig:
    """The sizes of `config.model` without its weights: an HF directory, or a hub name of a released size."""
    if storage.path(name).is_dir():
        return pretrained.open(name).cfg
    match = re.search(r"Qwen3-VL-(\d+B(?:-A\d+B)?)", name)
    if match and match[1].lower() in sizes.NAMES:
        return sizes.released(match[1].lower())
    raise UserError(f"config.model: {name!r} is no folder with a config.json and no hub name of a released Qwen3-VL")


def make_plan(
    config, topology: Topology, shapes=None, count: int = 1, reached: float = REACHED, say: Callable = lambda text: None
) -> Plan:
    """Estimates all mesh `shapes` (None: all that the topology allows) for a checked config; on a TPU the `count` best
    that seem to fit are then compiled. `say` is told about every compilation before it starts.

    UserError for what cannot be planned: no model, no image sizes, no TPU compiler.
    """
    if config.train.samples < 1:
        raise UserError("train.samples is 0: set the length of the run in samples")
    cfg, budget = model_config(config.model), RowBudget.from_config(config.data)
    typical = typical_rows(config, cfg, budget)
    trainable = Trainable.from_config(cfg, config)
    row_bytes = sum(array.nbytes for array in compiler.empty_row(cfg, budget).values())
    back_end = BackEnd(config.train.attention, "tpu" if topology.is_tpu else "gpu")
    kernels = back_end.kernels(budget.pair_block) is not None
    base = Load(cfg, trainable, budget, typical, row_bytes, (1, 1, 1), 1, 1, config.train.remat, kernels)
    options = [_estimate(config, base, topology, shape, reached) for shape in shapes or topology.meshes()]
    options = _ranked([option for option in options if option])
    if not options:
        raise UserError(f"{topology.name} has more devices than an update has rows: data.rows x train.accumulation")
    if topology.is_tpu and count:
        devices = compiler.tpu_devices(topology.name)
        wanted = [option for option in options if option.fits or shapes][:count]
        seen = []
        for number, option in enumerate(wanted, 1):
            say(f"compiling {number} of {len(wanted)}: {_title(option)} on {topology.name} (minutes)")
            seen.append(_compiled(config, option, devices))
        options = _ranked([*seen, *(option for option in options if option not in wanted)])
    return Plan(config, cfg, topology, budget, typical, options)


def _title(option: Option) -> str:
    replica, fsdp, tensor = option.load.mesh
    return f"replica {replica} x fsdp {fsdp} x tensor {tensor}, {option.load.rows} rows a device"


def _ranked(options: list[Option]) -> list[Option]:
    """Those that fit by speed, the others by memory; of equally fast ones (1 %) the least cut and smallest first."""
    fastest = max((option.samples_per_s for option in options if option.fits), default=0.0)

    def key(option: Option) -> tuple:
        if not option.fits:
            return True, 0.0, 0, option.total
        slower = 0.0 if option.samples_per_s >= 0.99 * fastest else -option.samples_per_s / fastest
        return False, slower + (slower < 0), option.load.mesh[2], option.total

    return sorted(options, key=key)


def _estimate(config, base: Load, topology: Topology, shape, reached: float) -> Option | None:
    """The best row budget of a mesh by the model: the fewest rows within 1 % of the fastest that fits."""
    found, wanted, spread = [], total_rows(config), shape[0] * shape[1]
    for rows in ROWS:
        if rows * spread > wanted:
            break
        accumulation = accumulation_for(wanted, rows * spread)
        load = dataclasses.replace(base, mesh=shape, rows=rows, accumulation=accumulation)
        found.append(Option(load, topology, reached, load.arguments(), load.temporaries(), load.exchange()))
    fitting = [option for option in found if option.fits]
    if not fitting:
        return found[0] if found else None
    fastest = max(option.samples_per_s for option in fitting)
    return next(option for option in fitting if option.samples_per_s >= 0.99 * fastest)


def _compiled(config, option: Option, devices) -> Option:
    """The option with the compiler's memory and exchange."""
    load = option.load
    mesh = meshes.make_mesh(*load.mesh, devices=devices)
    rows = load.rows * load.mesh[0] * load.mesh[1]
    found = compiler.compile_step(load.cfg, config, load.budget, rows, load.accumulation, mesh)
    traffic = option.traffic if found.traffic is None else found.traffic
    return dataclasses.replace(
        option, arguments=found.arguments, temporaries=found.temporaries, traffic=traffic, source="compiler",
        compile_s=found.seconds,
    )  # fmt: skip
