"""`vlm3 calibrate`: intervals around depths that hold the truth as often as they say."""

from vlm3_jax import storage
from vlm3_jax.commands import arguments
from vlm3_jax.errors import UserError


def add(parsers) -> None:
    """The command with its options."""
    sub = arguments.command(
        parsers,
        "calibrate",
        _calibrate,
        "learn on held-out data how far the spread of a model's depths reaches, for vlm3 depth --spread",
    )
    arguments.with_config(sub)
    sub.add_argument("--records", type=int, default=200, metavar="N", help="of the held-out component (default: 200)")
    sub.add_argument("--component", help="which of the config's held-out depth components (default: the first)")
    sub.add_argument(
        "--out", help="folder for spread.json, reliability.png and predictions.jsonl (default: the model's own)"
    )


def _calibrate(args, fields) -> None:
    import json
    import sys

    import jax.numpy as jnp

    from vlm3_jax.data.progress import Progress
    from vlm3_jax.evaluate import calibration, predictions
    from vlm3_jax.evaluate.items import HeldOut
    from vlm3_jax.files import write_bytes, write_text
    from vlm3_jax.infer.engine import Engine
    from vlm3_jax.setup import Setup

    if args.records < 2:
        raise UserError(f"--records={args.records}: 2 at least, one for each half")
    setup = Setup.from_config(arguments.read_config(args, fields))
    config = setup.config
    table = {name: entry for name, entry in config.eval.components.items() if entry.task == "depth" and entry.weight}
    name = args.component or next(iter(table), "")
    if name not in table:
        known = ", ".join(table) or "none"
        raise UserError(f"--component={name}: no held-out depth component of this config; there are: {known}")
    asked = HeldOut(setup.components({name: table[name]}), args.records, config.seed)
    model = setup.model
    sizes = {"image_sets": 1, "questions": 32, "max_new_tokens": config.eval.max_new_tokens}
    engine = Engine(model.cfg, model.params(dtype="float32"), model.chat, model.spec, jnp.dtype("float32"), **sizes)
    with Progress("records", len(asked)) as progress:
        held = calibration.answer(engine, asked, progress.advance)
    found = calibration.reliability(held, f"held-out component {name}, {len(asked)} records")
    print("\n".join(found.lines()))
    out = storage.path(args.out) if args.out else model.folder
    out.mkdir(parents=True, exist_ok=True)
    print(found.calibration.write(out))
    if args.out:
        write_text(out / predictions.FILE, "".join(json.dumps(row) + "\n" for row in found.rows))
        print(f"{out / predictions.FILE} (vlm3 report {out} tells of the spread too)")
    try:
        write_bytes(out / "reliability.png", calibration.picture(found))
        print(out / "reliability.png")
    except UserError as error:
        print(f"no picture: {error}", file=sys.stderr)
