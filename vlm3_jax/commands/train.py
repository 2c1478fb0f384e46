"""`vlm3 train`."""

from vlm3_jax.commands import arguments


def add(parsers) -> None:
    """The command with its options."""
    sub = arguments.command(parsers, "train", _train, "fine-tune a model; the same command again resumes")
    arguments.with_config(sub)
    sub.add_argument("--profile", metavar="FIRST:LAST", help="record these steps for xprof (config.train.profile)")
    arguments.with_processes(sub)
    sub.add_argument("--stopped-code", type=int, default=0, metavar="CODE", help="exit code after a stop signal")


def _train(args, fields) -> int:
    from vlm3_jax.parallel import processes

    with processes.joined("train", args.coordinator, args.processes, args.process):
        from vlm3_jax.train.loop import train

        return 0 if train(arguments.read_config(args, fields)) else args.stopped_code
