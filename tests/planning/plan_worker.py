"""What eight fake devices send each other in steps of models of several depths: `plan_worker OUT`."""

import dataclasses
import functools
import json
import os
import pathlib
import sys
from concurrent.futures import ThreadPoolExecutor

if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax

from vlm3_jax import config as configs
from vlm3_jax.data.packing import RowBudget
from vlm3_jax.model import params as parameters
from vlm3_jax.model.sizes import released
from vlm3_jax.parallel import mesh as meshes
from vlm3_jax.planning import compile as compiler
from vlm3_jax.planning.collectives import KINDS, traffic

BUDGET = RowBudget(tokens=64, patches=64, targets=16)
MESH = (1, 8, 1)


def model(layers: int):
    """One decoder layer with a tap and `layers` without; a tower of one block."""
    cfg = released("cpu")
    text = dataclasses.replace(
        cfg.text, vocab_size=512, hidden_size=64, intermediate_size=192, layers=1 + layers, heads=4, kv_heads=2,
        head_dim=16, mrope_section=(4, 2, 2),
    )  # fmt: skip
    vision = dataclasses.replace(
        cfg.vision, hidden_size=64, intermediate_size=128, depth=1, heads=2, taps=(0,), out_hidden_size=64, table_side=8
    )
    ids = dict(zip(("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"), range(4)))
    return dataclasses.replace(cfg, text=text, vision=vision, **ids)


def lower(layers: int):
    """The step of a model, traced."""
    config = configs.base()
    config.train.samples, config.train.dtype, config.train.remat = 1000, "float32", "full"
    return compiler.lower(model(layers), config, BUDGET, 8, 1, meshes.make_mesh(*MESH))


def measure(lowered) -> dict[str, float]:
    """Bytes that a device receives, by kind and in all."""
    found = traffic(lowered.compile().as_text(), MESH).bytes
    kinds = {kind: sum(size for (name, _), size in found.items() if name == kind) for kind in KINDS}
    return kinds | {"total": sum(found.values())}


def main(out: pathlib.Path) -> None:
    """Depth 4 in a loop, and depths 1, 2 and 4 without loops."""
    lowered = {"scanned 4": lower(4)}
    jax.lax.scan = functools.partial(jax.lax.scan, unroll=True)
    lowered |= {f"unrolled {layers}": lower(layers) for layers in (1, 2, 4)}
    with ThreadPoolExecutor(2) as pool:
        results: dict = dict(zip(lowered, pool.map(measure, lowered.values())))
    rows = [row for row in parameters.table(model(1)) if row.path[:2] == ("text", "layers")]
    sizes = dict(zip(meshes.AXES, MESH))
    results["cut_bytes"] = sum(4 * row.size for row in rows if "fsdp" in meshes.resolve(row, sizes)[0])
    results["all_bytes"] = sum(4 * row.size for row in rows)
    out.write_text(json.dumps(results))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
