"""Plans of all recipes and sizes, as the table in docs/scaling.md: `plan_all.py FILE [--compile N] [--only TEXT]`.

A row stays as it is once the compiler has made it, so a run of hours goes on where it stopped; estimates are made anew.
"""

import argparse
import itertools
import os
import pathlib

os.environ["JAX_PLATFORMS"] = "cpu"

from vlm3_jax import config as configs
from vlm3_jax.planning import table
from vlm3_jax.planning.plan import make_plan
from vlm3_jax.planning.topology import parse

RECIPES, SIZES = ("depth", "objects", "correspondence", "pose", "joint"), ("2b", "4b", "8b", "32b")
TOPOLOGIES = ("v5p:4x4x4", "v6e:8x8", "h100:8x8")
# The smallest slices that a test or a first run takes.
SMALL = [("depth:4b", "v5p:2x2x2"), ("depth:4b", "h100:8x4"), ("depth:4b", "h200:8"), ("depth:8b", "h200:8")]


def main() -> None:
    """Writes a row after each plan."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("--compile", type=int, default=1, help="meshes to compile for a TPU (0: estimates only)")
    parser.add_argument("--only", default="", help='only rows that hold this text, for example "depth:4b | v5p"')
    args = parser.parse_args()
    wanted = [(f"{r}:{s}", t) for r, s, t in itertools.product(RECIPES, SIZES, TOPOLOGIES)]
    kept = {key: text for key, text in table.read_lines(args.file).items() if key in {*SMALL, *wanted}}
    for key in [*SMALL, *wanted]:
        name, topology = key
        if kept.get(key, "").endswith("compiler |") or args.only not in " | ".join(key):
            continue
        plan = make_plan(configs.load(name).lock(), parse(topology), count=args.compile, say=print)
        kept[key] = table.line(name, plan)
        table.write_lines(args.file, [kept[k] for k in [*SMALL, *wanted] if k in kept])


if __name__ == "__main__":
    main()
