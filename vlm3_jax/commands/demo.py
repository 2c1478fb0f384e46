"""`vlm3 demo`."""

from vlm3_jax.commands import arguments


def add(parsers) -> None:
    """The command with its options."""
    sub = arguments.command(
        parsers, "demo", _demo, "render, train, evaluate and report on two cores in minutes; resumable"
    )
    arguments.with_config(sub, required=False)
    sub.add_argument("--scenes", type=int, default=4096, help="scenes to render for training")


def _demo(args, fields) -> None:
    args.config = args.config or "demo"
    config = arguments.read_config(args, fields)
    from vlm3_jax.demo import demo

    config.unlock()
    demo(config, args.scenes, args.config)
