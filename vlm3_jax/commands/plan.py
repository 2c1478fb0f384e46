"""`vlm3 plan`."""

import json
import os
import sys

from vlm3_jax.commands import arguments
from vlm3_jax.errors import UserError


def add(parsers) -> None:
    """The command with its options."""
    sub = arguments.command(
        parsers, "plan", _plan, "memory, time and days of a recipe on TPUs or GPUs that are not there, by mesh shape"
    )
    arguments.with_config(sub, required=False)
    sub.add_argument("--eval", action="store_true", help="plan an evaluation on benchmarks instead of training")
    sub.add_argument(
        "--bench", action="append", default=[], metavar="NAME", help="--eval: which, as of vlm3 eval (default: all)"
    )
    sub.add_argument(
        "--topology",
        required=True,
        help="v5p:2x2x2, v6e:16x16, h100:8x4 (GPUs x nodes); v5p-64, a3-ultragpu-8g:4 (nodes)",
    )
    sub.add_argument(
        "--mesh", action="append", default=[], metavar="RxFxT", help="replica x fsdp x tensor (repeatable; default all)"
    )
    sub.add_argument(
        "--compile", type=int, default=1, metavar="N", help="TPU: compile the N best (minutes each; 0: estimates only)"
    )
    sub.add_argument("--reached", type=float, help="share of the bound on speed that a run reaches (default 0.6)")
    sub.add_argument("--price", type=float, metavar="PER_CHIP_HOUR", help="also say what the run costs at this price")
    sub.add_argument("--json", action="store_true", help="print all figures as JSON")


def _plan(args, fields) -> None:
    # The compiler runs here, for devices that are elsewhere.
    os.environ["JAX_PLATFORMS"] = "cpu"
    import dataclasses
    import math

    import rich.console

    from vlm3_jax.planning import plan, table, topology

    wanted = topology.parse(args.topology)
    shapes = [topology.parse_mesh(text, wanted) for text in args.mesh] or None
    reached = plan.REACHED if args.reached is None else args.reached
    if not 0 < reached <= 1:
        raise UserError(f"--reached={reached}: give the share of the bound that is reached, above 0 and at most 1")
    if args.price is not None and not 0 <= args.price < math.inf:
        raise UserError(f"--price={args.price}: give the price of a device for an hour, finite and at least 0")

    if args.eval:
        _plan_eval(args, fields, wanted, reached)
        return
    if not args.config:
        raise UserError("--config: missing; name a recipe, or give --eval")

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    found = plan.make_plan(arguments.read_config(args, fields), wanted, shapes, args.compile, reached, say)
    found = dataclasses.replace(found, price=args.price)
    if args.json:
        print(json.dumps(found.to_json(), indent=2))
    else:
        table.print_plan(found, rich.console.Console(width=None if sys.stdout.isatty() else 180))


def _plan_eval(args, fields, wanted, reached: float) -> None:
    from vlm3_jax.evaluate import benchmarks
    from vlm3_jax.planning import evaluation

    # What accelerators are for.
    fields = fields if args.config else ["eval.dtype=bfloat16", *fields]
    config = arguments.read_config(args, fields)
    evaluation.check(config)
    found = evaluation.make_plan(config, benchmarks.find(args.bench or ["all"]), wanted, reached)
    if args.json:
        print(json.dumps(found.to_json(), indent=2))
    else:
        arguments.wide_console().print(found.rich(args.price))
