"""A plan as a rich table, and plans as rows of the table in docs/scaling.md."""

import pathlib
from collections.abc import Sequence

import rich.box
import rich.console
import rich.table

from vlm3_jax.errors import UserError
from vlm3_jax.files import write_text
from vlm3_jax.planning.plan import Option, Plan
from vlm3_jax.planning.topology import GPU_SHARE

# Of a GPU's memory what jax takes when nothing is said.
JAX_SHARE = 0.75
BEGIN, END = "<!-- plan-all: begin -->", "<!-- plan-all: end -->"
HEADERS = (
    "recipe", "topology", "mesh r x f x t", "rows x acc.", "HBM GB: state + temp.", "of", "TFLOP a sample",
    "step s", "samples/s", "MFU", "days", "memory by",
)  # fmt: skip


def print_plan(plan: Plan, console: rich.console.Console) -> None:
    """The table with what it rests on, fallbacks and the suggestion."""
    row, config, chip = plan.typical, plan.config, plan.topology.chip
    table = rich.table.Table(
        title=f"{config.model} on {plan.topology.name}: {plan.topology.devices} x {chip.kind}, {chip.hbm / 1e9:.0f} GB",
        box=rich.box.SIMPLE_HEAD,
    )
    for name in ("mesh r x f x t", "rows x acc.", "samples", "state + batch GB", "temp. GB", "total GB"):
        table.add_column(name, justify="right")
    for name in ("arithmetic s", "memory s", "exchange s", "step s", "samples/s", "MFU", "days", "memory by"):
        table.add_column(name, justify="right")
    if plan.price is not None:
        table.add_column("cost", justify="right")
    for option in plan.options:
        bounds = option.bounds()
        table.add_row(
            _mesh(option), f"{option.load.rows} x {option.load.accumulation}", f"{option.load.samples:.0f}",
            f"{option.arguments / 1e9:.1f}", f"{option.temporaries / 1e9:.1f}",
            f"{option.total / 1e9:.1f}" + ("" if option.fits else " too much"),
            *(f"{bounds[name]:.2f}" for name in ("arithmetic", "memory", "exchange")),
            f"{option.seconds:.2f}", f"{option.samples_per_s:.2f}", f"{option.mfu:.0%}",
            f"{option.days(config.train.samples):.1f}", option.source,
            *(() if plan.price is None else (f"{plan.cost(option):,.0f}",)),
            style=None if option.fits else "dim",
        )  # fmt: skip
    console.print(table)
    useful = plan.options[0].load.useful() / 1e12
    console.print(
        f"A row of {plan.budget.tokens} tokens and {plan.budget.patches} patches holds {row.samples:.2f} samples "
        f"({row.token_fill:.0%} and {row.patch_fill:.0%} full); {useful:.1f} useful TFLOP a sample; attention looks at "
        f"{row.looked_at[0] / row.lengths.text_pairs:.2f} x the pairs needed in text, "
        f"{row.looked_at[1] / row.lengths.vision_pairs:.2f} x in images.\n"
        f"step s = the longest of the three bounds / {plan.options[0].reached}; {config.train.samples:,} samples."
        + ("" if plan.price is None else f" cost = days x 24 x {plan.topology.devices} devices x {plan.price:g}.")
    )
    best = plan.best
    if best is None:
        console.print("No mesh fits: take more devices, a smaller model or train.remat = full.")
        return
    for fallback, size in best.load.fallbacks():
        console.print(
            f"whole on every device: {fallback.name} ({fallback.axis} {fallback.size} over "
            f"{' or '.join(fallback.tried)}), {size / 1e6:.1f} MB"
        )
    if not plan.topology.is_tpu and best.total > JAX_SHARE * chip.hbm:
        console.print(
            f"Set XLA_CLIENT_MEM_FRACTION={GPU_SHARE} in the environment: jax takes {JAX_SHARE:.0%} of a GPU's memory "
            "unless told otherwise."
        )
    replica, fsdp, tensor = best.load.mesh
    console.print(
        f"Suggested: --config.mesh.replica={replica} --config.mesh.fsdp={fsdp} --config.mesh.tensor={tensor} "
        f"--config.data.rows={best.load.rows * replica * fsdp} --config.train.accumulation={best.load.accumulation}"
        + ("" if best.source == "compiler" or not plan.topology.is_tpu else " (estimated; not compiled)"),
        soft_wrap=True,
    )


def _mesh(option: Option) -> str:
    return " x ".join(map(str, option.load.mesh))


def line(name: str, plan: Plan) -> str:
    """One row of the table in the docs: the best option of the config `name`, or that there is none."""
    option, topology = plan.best or plan.options[0], plan.topology
    cells = [
        name, topology.name, _mesh(option), f"{option.load.rows} x {option.load.accumulation}",
        f"{option.arguments / 1e9:.1f} + {option.temporaries / 1e9:.1f}", f"{topology.chip.hbm / 1e9:.0f}",
        f"{option.load.useful() / 1e12:.0f}",
    ]  # fmt: skip
    if plan.best:
        days = f"{option.days(plan.config.train.samples):.1f}"
        cells += [f"{option.seconds:.1f}", f"{option.samples_per_s:.1f}", f"{option.mfu:.0%}", days]
    else:
        cells += ["does not fit", "", "", ""]
    return f"| {' | '.join([*cells, option.source])} |"


def read_lines(path: pathlib.Path) -> dict[tuple[str, str], str]:
    """The rows of the table in a markdown file by (config, topology)."""
    lines = _parts(path)[1].splitlines()
    rows = [line for line in lines if line.startswith("| ") and not line.startswith(f"| {HEADERS[0]} ")]
    return {tuple(cell.strip() for cell in row.split("|")[1:3]): row for row in rows}


def write_lines(path: pathlib.Path, lines: Sequence[str]) -> None:
    """Puts the table between the two marks of a markdown file. UserError if it has no such marks."""
    head, _, tail = _parts(path)
    table = [f"| {' | '.join(HEADERS)} |", f"|{'---|' * len(HEADERS)}", *lines]
    write_text(path, "\n".join([head + BEGIN, *table, END]) + tail)


def _parts(path: pathlib.Path) -> tuple[str, str, str]:
    """What stands before, between and behind the marks."""
    text = path.read_text()
    if BEGIN not in text or END not in text:
        raise UserError(f"{path}: the lines {BEGIN} and {END} are missing")
    head, rest = text.split(BEGIN)
    return head, *rest.split(END)
